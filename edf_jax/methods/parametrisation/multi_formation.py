"""Several small images in each stored one, enlarged when they are used.

References:
    Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (IDC,
    2205.14959): multi-formation. Neighbouring pixels say much the same, so images of half the side
    lose little, and four of them take the bytes of one.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp

from edf_jax.methods.parametrisation.stored import Parametrisation, parts
from edf_jax.runtime.shapes import Array, Float, Images


def multi_formation(factor: int) -> Parametrisation:
    """A stored image is a grid of `factor * factor` tiles, each decoded into an image."""
    return Parametrisation(
        "multi_formation",
        functools.partial(shrink, factor=factor),
        functools.partial(enlarge, factor=factor),
        factor,
        images=factor**2,
        real=factor**2,
        is_picture=factor > 1,
    )


def _tiles(height: int, width: int, factor: int) -> list[tuple[slice, slice]]:
    """The grid's tiles row by row; where a side isn't divisible, the first are a pixel larger."""
    return list(itertools.product(parts(height, factor), parts(width, factor)))


def enlarge(parameters: Images, factor: int) -> Float[Array, "m h w c"]:
    """The images of stored grids: every tile, enlarged bilinearly to the whole size.

    Args:
        parameters: `[n, H, W, C]`; sides of at least `factor`.
        factor: tiles in a row and in a column.

    Returns:
        `[n * factor**2, H, W, C]`, the tiles of a grid row by row.
    """
    count, height, width, channels = parameters.shape
    shape = (count, height, width, channels)
    enlarged = [
        jax.image.resize(parameters[:, rows, columns], shape, "bilinear")
        for rows, columns in _tiles(height, width, factor)
    ]
    return jnp.stack(enlarged, axis=1).reshape(-1, height, width, channels)


def shrink(images: Images, factor: int) -> Float[Array, "m h w c"]:
    """The grids that images are stored as: each shrunk to a tile, bilinearly and antialiased.

    Args:
        images: `[n * factor**2, H, W, C]`.
        factor: tiles in a row and in a column.

    Returns:
        `[n, H, W, C]`.
    """
    height, width, channels = images.shape[1:]
    groups = images.reshape(-1, factor**2, height, width, channels)
    grids = jnp.zeros((len(groups), height, width, channels), images.dtype)
    for index, (rows, columns) in enumerate(_tiles(height, width, factor)):
        tile = (len(groups), rows.stop - rows.start, columns.stop - columns.start, channels)
        shrunk = jax.image.resize(groups[:, index], tile, "bilinear")
        grids = grids.at[:, rows, columns].set(shrunk)
    return grids
