"""Bilinear samples of image batches whose transposes are as fast as they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def sample_separably(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Bilinear samples on a grid of its own for each image, zeros outside.

    As matrix products, because their transpose is one too, where a gather's is a scatter.

    Args:
      images: `[n, H, W, C]`.
      rows: `[n, R]`, in pixels, 0 being the centre of the first.
      columns: `[n, S]`.

    Returns:
      `[n, R, S, C]`.
    """

    def weights(positions: jax.Array, size: int) -> jax.Array:
        return _hat(positions[..., None] - jnp.arange(size)).astype(images.dtype)

    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    images = product("nrh,nhwc->nrwc", weights(rows, images.shape[1]), images)
    return product("nsw,nrwc->nrsc", weights(columns, images.shape[2]), images)


def rotate(images: jax.Array, angle: jax.Array, most: float) -> jax.Array:
    """Bilinear samples at `[[cos, -sin], [sin, cos]] (x, y)`, zeros outside.

    `(x, y)` in [-1, 1] with -1 and 1 at the centres of the border pixels. Differentiable in
    reverse mode, in the images alone: the transpose gathers, where the scatter that JAX would
    derive is several times slower on a CPU and adds in no fixed order on a GPU.

    Args:
      images: `[n, H, W, C]`.
      angle: `[n]`, in radians.
      most: no angle is larger than this, which is at most pi/2.

    Returns:
      `[n, H, W, C]`.
    """
    return _rotate(most, angle, images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rotate(most, angle, images):
    rotation = _Rotation(images.shape, angle)
    rows, columns = rotation.source(*rotation.pixels())

    def weight(row, column):
        return _hat(rows - row) * _hat(columns - column)

    return _sum_of_taps(images, _taps(rows, 1), _taps(columns, 1), weight)


def _rotate_forward(most, angle, images):
    return _rotate(most, angle, images), angle


def _rotate_backward(most, angle, cotangents):
    """Each pixel collects from the outputs that sample within one pixel of it."""
    rotation = _Rotation(cotangents.shape, angle)
    pixel_rows, pixel_columns = rotation.pixels()
    rows, columns = rotation.target(pixel_rows, pixel_columns)
    reach_rows, reach_columns = rotation.reach(most)

    def weight(row, column):
        sampled_row, sampled_column = rotation.source(row, column)
        return _hat(sampled_row - pixel_rows) * _hat(sampled_column - pixel_columns)

    taps = _taps(rows, reach_rows), _taps(columns, reach_columns)
    return None, _sum_of_taps(cotangents, *taps, weight)


_rotate.defvjp(_rotate_forward, _rotate_backward)


class _Rotation:
    """Where each output pixel of a rotation samples, in pixels."""

    def __init__(self, shape: tuple[int, ...], angle: jax.Array):
        self.size = shape[1:3]
        self.centre = [(size - 1) / 2 for size in self.size]
        self.aspect = max(self.centre[1], 0.5) / max(self.centre[0], 0.5)
        self.sin = jnp.sin(angle)[:, None, None]
        self.cos = jnp.cos(angle)[:, None, None]

    def pixels(self) -> tuple[jax.Array, jax.Array]:
        rows, columns = (jnp.arange(size, dtype=self.cos.dtype) for size in self.size)
        return rows[:, None], columns

    def source(self, rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The place where an output pixel samples."""
        rows, columns = rows - self.centre[0], columns - self.centre[1]
        return (
            self.sin / self.aspect * columns + self.cos * rows + self.centre[0],
            self.cos * columns - self.sin * self.aspect * rows + self.centre[1],
        )

    def target(self, rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The place whose `source` this is."""
        rows, columns = rows - self.centre[0], columns - self.centre[1]
        return (
            self.cos * rows - self.sin / self.aspect * columns + self.centre[0],
            self.sin * self.aspect * rows + self.cos * columns + self.centre[1],
        )

    def reach(self, most: float) -> tuple[float, float]:
        """How far from `target` those may lie whose `source` is within one pixel both ways."""

        def reach_along(slope: float) -> float:
            angle = min(most, math.atan(slope))
            return math.cos(angle) + slope * math.sin(angle)

        return reach_along(1 / self.aspect), reach_along(self.aspect)


def _taps(positions: jax.Array, reach: float) -> list[jax.Array]:
    """The whole numbers less than `reach` from each position, and perhaps one more."""
    first = jnp.floor(positions - reach) + 1
    return [first + tap for tap in range(math.ceil(2 * reach))]


def _sum_of_taps(
    images: jax.Array,
    rows: list[jax.Array],
    columns: list[jax.Array],
    weight: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """`sum weight(r, c) * images[r, c]` over the taps of every pixel, zeros outside."""
    n, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    flat = padded.reshape(n, (height + 2) * (width + 2), channels)
    result = jnp.zeros_like(images)
    for row in rows:
        row_index = jnp.clip(row.astype(jnp.int32) + 1, 0, height + 1) * (width + 2)
        for column in columns:
            index = row_index + jnp.clip(column.astype(jnp.int32) + 1, 0, width + 1)
            tap = jnp.take_along_axis(
                flat, index.reshape(n, -1, 1), axis=1, mode="promise_in_bounds"
            )
            factor = weight(row, column).astype(images.dtype)[..., None]
            result += factor * tap.reshape(images.shape)
    return result


def _hat(distances: jax.Array) -> jax.Array:
    """The weight of a bilinear sample at these distances along an axis."""
    return jnp.maximum(0, 1 - jnp.abs(distances))
