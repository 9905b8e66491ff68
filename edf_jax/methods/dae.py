"""Discriminative area enhancement: the weight of pixel gradients where a class is seen.

References:
    EDF (2410.17193), section 3.3.
"""

from __future__ import annotations

import jax.numpy as jnp

from edf_jax.runtime.shapes import Array, Float, Maps


def dae_weight(maps: Maps, beta: float, threshold: float = 0.0) -> Float[Array, "n a b 1"]:
    """The weight of discriminative area enhancement: `A + beta` where `A` is high, else 1.

    Args:
      maps: `A`, `[N, H, W]` in [0, 1].
      beta: added to the map in the discriminative area.
      threshold: the area is where `A >= threshold`; 0 takes the mean of each map instead.

    Returns:
      `[N, H, W, 1]`, to multiply the gradient of images `[N, H, W, C]`.

    References:
      EDF (arXiv 2410.17193), section 3.3.
    """
    mean = jnp.mean(maps, axis=(1, 2), keepdims=True)
    high = maps >= jnp.where(threshold > 0, threshold, mean)
    return jnp.where(high, maps + beta, 1)[..., None]
