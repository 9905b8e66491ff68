"""Losses of a batch of logits, and the count of right answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from edf_jax.runtime.shapes import Classes, Logits, Mask, PerImage, Scalar


def _mean(
    values: PerImage, mask: Mask | None, count: Scalar | float | None = None
) -> Scalar:
    if mask is None:
        return jnp.mean(values) if count is None else jnp.sum(values) / count
    mask = mask.astype(values.dtype)
    return jnp.sum(values * mask) / (jnp.sum(mask) if count is None else count)


def soft_cross_entropy(
    logits: Logits,
    target_logits: Logits,
    mask: Mask | None = None,
    *,
    count: Scalar | float | None = None,
) -> Scalar:
    """Mean over the batch of `-sum softmax(target_logits) * log_softmax(logits)`.

    Args:
      logits: `[n, C]`.
      target_logits: `[n, C]`, the labels as logits; the loss is differentiable in them too.
      mask: `[n]`, 1 for examples that count and 0 for padding; None counts all. At least one
        example has to count.
      count: what the sum is divided by, where these are a share of a larger batch.

    Returns:
      A scalar.

    References:
      DATM (arXiv 2310.05773), section 3.3; the inner loss of EDF (arXiv 2410.17193).
    """
    losses = optax.losses.softmax_cross_entropy(logits, jax.nn.softmax(target_logits))
    return _mean(losses, mask, count)


def hard_cross_entropy(
    logits: Logits, labels: Classes, mask: Mask | None = None
) -> Scalar:
    """Mean over the batch of `-log_softmax(logits)[label]`.

    Args:
      logits: `[n, C]`.
      labels: `[n]`, integers.
      mask: `[n]`, as in `soft_cross_entropy`.

    Returns:
      A scalar.
    """
    return _mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels), mask)


def kl_divergence(
    logits: Logits,
    target_logits: Logits,
    temperature: float,
    mask: Mask | None = None,
) -> Scalar:
    """Mean over the batch of `KL(softmax(target_logits / T) || softmax(logits / T))`.

    There is no factor `T**2`: the protocols of SRe2L and RDED leave it out.

    Args:
      logits: `[n, C]`, the student's.
      target_logits: `[n, C]`, the teacher's.
      temperature: `T`.
      mask: `[n]`, as in `soft_cross_entropy`.

    Returns:
      A scalar.

    References:
      Hinton et al. (arXiv 1503.02531), section 2; SRe2L (arXiv 2306.13092); RDED
      (arXiv 2312.03526).
    """
    divergences = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(logits / temperature), jax.nn.log_softmax(target_logits / temperature)
    )
    return _mean(divergences, mask)


def accuracy_count(
    logits: Logits, labels: Classes, mask: Mask | None = None
) -> jax.Array:
    """How many of the batch have their largest logit (the first of equals) at their label.

    Args:
      logits: `[n, C]`.
      labels: `[n]`, integers.
      mask: `[n]`, as in `soft_cross_entropy`, but none has to count.

    Returns:
      An int32 scalar.
    """
    right = jnp.argmax(logits, axis=-1) == labels
    if mask is not None:
        right = right & (mask > 0)
    return jnp.sum(right, dtype=jnp.int32)
