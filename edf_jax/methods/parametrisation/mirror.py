"""Each stored image beside its mirror image.

References:
    Son et al., "FYI: Flip Your Images for Dataset Distillation" (2407.08113): an image and its
    flip teach together, so that a stored image need not hold both sides of an object.
"""

from __future__ import annotations

import jax.numpy as jnp

from edf_jax.methods.parametrisation.stored import Parametrisation
from edf_jax.runtime.shapes import Array, Float, Images


def mirror(factor: int = 1) -> Parametrisation:
    """A stored image is decoded into itself and its mirror image; there is no factor."""
    del factor
    return Parametrisation(
        "mirror", encode=lambda images: images, decode=with_mirror_images, images=2
    )


def with_mirror_images(images: Images) -> Float[Array, "m h w c"]:
    """`[2n, H, W, C]`: each of `[n, H, W, C]`, followed by itself with left and right exchanged."""
    both = jnp.stack([images, images[:, :, ::-1]], axis=1)
    return both.reshape(-1, *images.shape[1:])
