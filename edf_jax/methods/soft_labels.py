"""The labels of synthetic images: hard, smoothed, or what networks say of them.

References:
    DATM (2310.05773), section 3.3: soft labels of the experts that are right. TESLA (2211.10586):
    those of the snapshot that is matched.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from edf_jax.models import Network
from edf_jax.runtime.shapes import Array, Classes, Float, Images, Integer, Logits, Theta

# Whose labels networks are trained on: the set's own, its classes', a teacher's.
LABEL_REGIMES = ("own", "hard", "teacher")
# Softmax of these logits is exactly one-hot in float32.
_HARD_LOGIT = 120.0
_NOISE_CONFIDENCE = 0.9
_LABEL_BATCH = 256


def average_labels(expert_logits: Float[Array, "K n C"], labels: Classes) -> Logits:
    """Soft labels: the mean logits of the experts that are right, of all where none is.

    Args:
        expert_logits: `[K, n, C]`.
        labels: `[n]`, the true classes.

    Returns:
        `[n, C]` logits.

    References:
        DATM (2310.05773); where no expert is right the official code divides 0 by 0.
    """
    right = jnp.argmax(expert_logits, axis=-1) == labels
    counts = jnp.sum(right, axis=0)
    weights = jnp.where(counts == 0, 1 / len(expert_logits), right / jnp.maximum(counts, 1))
    return jnp.einsum("kn,knc->nc", weights.astype(expert_logits.dtype), expert_logits)


def hard_labels(labels: Integer[np.ndarray, " n"], num_classes: int) -> Float[np.ndarray, "n C"]:
    """Logits whose softmax is one-hot, `[n, C]` float32."""
    return np.float32(_HARD_LOGIT) * np.eye(num_classes, dtype=np.float32)[labels]


def smoothed_labels(
    labels: Integer[np.ndarray, " n"], num_classes: int
) -> Float[np.ndarray, "n C"]:
    """Logits whose softmax is 0.9 on the class and equal elsewhere, `[n, C]` float32."""
    probabilities = np.full(
        (len(labels), num_classes), (1 - _NOISE_CONFIDENCE) / max(num_classes - 1, 1), np.float32
    )
    probabilities[np.arange(len(labels)), labels] = _NOISE_CONFIDENCE
    return np.log(probabilities)


def snapshot_labels(network: Network, theta: Theta, images: Images) -> Logits:
    """The logits `[n, C]` that a snapshot gives the synthetic images (TESLA's soft labels).

    Args:
        network: the experts' architecture; snapshots hold no batch-norm statistics, so those of
            the images are taken.
        theta: `[P]`.
        images: `[n, H, W, C]`, normalised.
    """
    cuts = list(range(_LABEL_BATCH, len(images), _LABEL_BATCH))
    chunks = [network.apply(theta, chunk, train=True) for chunk in jnp.split(images, cuts)]
    return lax.stop_gradient(jnp.concatenate(chunks))
