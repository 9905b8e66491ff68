"""What a way of storing synthetic images is: two pure functions of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Parametrisation:
    """A way of storing synthetic images, `n` of them as parameters `[n, H, W, C]`.

    Two are the same where name and factor are.

    Attributes:
        name: what `distill.parametrisation` calls it.
        encode: real images `[n * real, H, W, C]` -> the parameters that distillation starts from.
        decode: parameters -> images `[n * images, H, W, C]`, those of one stored image beside each
            other; differentiable.
        factor: its only setting, at least 1; 1 where it has none.
        images: how many images a stored one is decoded into, a multiple of `real`.
        real: of how many real images a stored one is made at the start.
        is_picture: whether parameters are pictures, in the units of images, but not the images.
    """

    name: str
    encode: Callable[[Any], Any] = dataclasses.field(compare=False)
    decode: Callable[[Any], Any] = dataclasses.field(compare=False)
    factor: int = 1
    images: int = 1
    real: int = 1
    is_picture: bool = False


def parts(size: int, count: int) -> list[slice]:
    """A length cut into so many parts; where it isn't divisible, the first are one longer."""
    return [slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(size), count)]
