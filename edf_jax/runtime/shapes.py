"""Arrays by their shapes, for annotations; the tests check them at every call.

One letter means one size within a call: `n` images of `h` x `w` pixels and `c` channels, `C`
classes, `P` parameters, `N` student steps, `K` networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Integer, PRNGKeyArray, Shaped

if TYPE_CHECKING:
    Array = jax.Array
else:
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
    "Images",
    "Key",
    "Logits",
    "Maps",
    "Mask",
    "PerImage",
    "Scalar",
    "Selected",
    "Theta",
]
