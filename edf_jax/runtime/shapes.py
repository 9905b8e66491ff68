"""Arrays by their shapes, for annotations; the tests check them at every call.

One letter means one size within a call: `n` images of `h` x `w` pixels and `c` channels, `C`
classes, `P` parameters, `N` student steps, `K` networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Integer, PRNGKeyArray, Shaped

    Array = jax.Array
else:
    try:
        from jaxtyping import Bool, Float, Integer, PRNGKeyArray, Shaped
    except ModuleNotFoundError:
        # A machine with no more than JAX and its libraries computes all the same.
        class Shaped:
            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Integer = Shaped
        PRNGKeyArray = jax.Array

    # NumPy's arrays do as well wherever JAX's own functions take them.
    Array = jax.Array | np.ndarray

Scalar = Float[Array, ""]
Theta = Float[Array, " P"]
Images = Float[Array, "n h w c"]
# Of as many images as there are, of any kind of number.
PerImage = Shaped[Array, " n"]
Classes = Integer[Array, " n"]
Logits = Float[Array, "n C"]
# Activation maps: of a CAM layer, and resized to the images.
Maps = Float[Array, "n a b"]
Mask = Shaped[Array, " n"]
Selected = Bool[Array, " P"]
Key = PRNGKeyArray

__all__ = [
    "Array",
    "Classes",
    "Float",
    "Images",
    "Integer",
    "Key",
    "Logits",
    "Maps",
    "Mask",
    "PerImage",
    "Scalar",
    "Selected",
    "Theta",
]
