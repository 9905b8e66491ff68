"""The plain protocol: fresh networks trained on a small set, tested on the real test images.

SGD at a given rate with momentum and weight decay, DSA, soft cross-entropy; half-way the rate
falls tenfold and the momentum starts anew.

References:
  EDF's and DATM's official evaluation (EDF, arXiv 2410.17193; DATM, arXiv 2310.05773).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from edf_jax.evaluate.from_scratch import FromScratch, RealTestData
from edf_jax.methods import dsa
from edf_jax.models import Network
from edf_jax.training import losses
from edf_jax.training.loop import Epochs, Recipe, sgd


def schedule(epochs: int, rate: jax.Array) -> Epochs:
    """The `epochs + 1` epochs of the recipe.

    Full rate up to and including the zero-based epoch `epochs // 2 + 1`, a tenth after it, where
    momentum restarts.
    """
    index = jnp.arange(epochs + 1, dtype=jnp.int32)
    drop = epochs // 2 + 2
    rates = rate * jnp.where(index < drop, 1.0, 0.1)
    return Epochs(index, rates, index == drop)


def plain_evaluator(
    network: Network,
    test: RealTestData,
    *,
    epochs: int,
    batch: int = 128,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    strategy: str = dsa.FULL_STRATEGY,
    crop_ratio: float = 0.25,
) -> FromScratch:
    """Trains and tests networks by the plain protocol; targets are label logits `[n, C]`.

    Args:
        network: the architecture.
        test: what they are tested on.
        epochs: E_eval; one more is run.
        batch: training batch size.
        momentum: of SGD.
        weight_decay: of SGD.
        strategy: DSA's ops.
        crop_ratio: DSA's largest shift over the side.
    """
    recipe = Recipe(
        network,
        losses.soft_cross_entropy,
        sgd(momentum, weight_decay),
        lambda key, x: dsa.dsa(key, x, strategy=strategy, crop_ratio=crop_ratio),
        lambda images: images,
        batch,
    )
    epochs_at = functools.partial(schedule, epochs)
    return FromScratch(network, lambda _: recipe, epochs_at, epochs + 1, test)
