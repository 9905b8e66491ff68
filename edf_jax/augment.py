"""Differentiable Siamese augmentation (DSA), one op drawn per minibatch.

Each op is a function of a batch and of its explicit draws, one per image. All of them are affine
in the images, and linear but for brightness.

References:
  Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation"
  (arXiv 2102.08259), section 3.2.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from edf_jax.errors import UserError

BRIGHTNESS = 1.0
SATURATION = 2.0
CONTRAST = 0.5
CUTOUT_RATIO = 0.5
FLIP_PROBABILITY = 0.5
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0

_PER_IMAGE = (slice(None), None, None, None)


def brightness(images: jax.Array, u: jax.Array, *, strength: float = BRIGHTNESS) -> jax.Array:
    """Add `(u - 1/2) * strength` to each image.

    Args:
      images: `[n, H, W, C]`.
      u: `[n]`, uniform in [0, 1).
      strength: width of the range of shifts.

    Returns:
      `[n, H, W, C]`.
    """
    return images + ((u - 0.5) * strength)[_PER_IMAGE]


def saturation(images: jax.Array, u: jax.Array, *, strength: float = SATURATION) -> jax.Array:
    """Scale each pixel's distance from its mean over channels by `strength * u`.

    Args and result as in `brightness`.
    """
    grey = jnp.mean(images, axis=3, keepdims=True)
    return (images - grey) * (u * strength)[_PER_IMAGE] + grey


def contrast(images: jax.Array, u: jax.Array, *, strength: float = CONTRAST) -> jax.Array:
    """Scale each image's distance from its mean over pixels and channels by `u + strength`.

    Args and result as in `brightness`.
    """
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return (images - mean) * (u + strength)[_PER_IMAGE] + mean


def crop(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Shift each image, zeros coming in: `out[r, c] = images[r + rows, c + columns]`.

    Args:
      images: `[n, H, W, C]`.
      rows: `[n]` whole numbers (of any dtype).
      columns: `[n]` whole numbers.

    Returns:
      `[n, H, W, C]`.
    """
    height, width = images.shape[1:3]
    source_rows = jnp.arange(height) + rows[:, None]
    source_columns = jnp.arange(width) + columns[:, None]
    return _sample_separably(
        images, source_rows.astype(images.dtype), source_columns.astype(images.dtype)
    )


def cutout(
    images: jax.Array, rows: jax.Array, columns: jax.Array, *, ratio: float = CUTOUT_RATIO
) -> jax.Array:
    """Set a rectangle of each image to zero, clipped at the border.

    Args:
      images: `[n, H, W, C]`.
      rows: `[n]` whole numbers: the rectangle's centre, its first row `side // 2` above.
      columns: `[n]` whole numbers.
      ratio: the rectangle's sides over the image's.

    Returns:
      `[n, H, W, C]`.
    """

    def inside(size: int, centre: jax.Array) -> jax.Array:
        side = _cutout_side(size, ratio)
        offset = jnp.arange(size) - (centre[:, None] - side // 2)
        return (offset >= 0) & (offset < side)

    hole = inside(images.shape[1], rows)[:, :, None] & inside(images.shape[2], columns)[:, None, :]
    return jnp.where(hole[..., None], 0, images)


def flip(images: jax.Array, u: jax.Array, *, probability: float = FLIP_PROBABILITY) -> jax.Array:
    """Mirror left and right the images whose `u` is below `probability`.

    Args:
      images: `[n, H, W, C]`.
      u: `[n]`, uniform in [0, 1).
      probability: of being mirrored.

    Returns:
      `[n, H, W, C]`.
    """
    return jnp.where((u < probability)[_PER_IMAGE], images[:, :, ::-1], images)


def scale(
    images: jax.Array, u_width: jax.Array, u_height: jax.Array, *, ratio: float = SCALE_RATIO
) -> jax.Array:
    """Resize each image about its centre, bilinearly with aligned corners and zeros outside.

    The sample coordinates, in [-1, 1], are multiplied by factors between `1 / ratio` and
    `ratio`: one over 1 shrinks the picture.

    Args:
      images: `[n, H, W, C]`.
      u_width: `[n]`, uniform in [0, 1), along the width.
      u_height: `[n]`, uniform in [0, 1), along the height.
      ratio: the largest factor.

    Returns:
      `[n, H, W, C]`.
    """
    height, width = images.shape[1:3]

    def positions(size: int, u: jax.Array) -> jax.Array:
        factor = u * (ratio - 1 / ratio) + 1 / ratio
        centre = (size - 1) / 2
        return (jnp.arange(size) - centre) * factor[:, None].astype(images.dtype) + centre

    return _sample_separably(images, positions(height, u_height), positions(width, u_width))


def rotate(images: jax.Array, u: jax.Array, *, degrees: float = ROTATE_DEGREES) -> jax.Array:
    """Rotate each image about its centre, bilinearly with aligned corners and zeros outside.

    Args:
      images: `[n, H, W, C]`.
      u: `[n]`, uniform in [0, 1): the angle is `(2 u - 1) * degrees`, in coordinates where the
        picture is [-1, 1] both ways.
      degrees: the largest angle.

    Returns:
      `[n, H, W, C]`.
    """
    n, height, width, channels = images.shape
    rows, columns = _rotated_positions(u, height, width, degrees, images.dtype)
    top, left = jnp.floor(rows), jnp.floor(columns)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    flat = padded.reshape(n, (height + 2) * (width + 2), channels)
    result = 0
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - jnp.abs(rows - row)) * (1 - jnp.abs(columns - column))
            index = jnp.clip(row + 1, 0, height + 1) * (width + 2)
            index = (index + jnp.clip(column + 1, 0, width + 1)).astype(jnp.int32)
            tap = jnp.take_along_axis(flat, index.reshape(n, -1, 1), axis=1)
            result += weight[..., None] * tap.reshape(images.shape)
    return result


def _rotated_positions(
    u: jax.Array, height: int, width: int, degrees: float, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Where each output pixel is sampled: rows and columns, each `[n, H, W]`."""
    angle = ((u - 0.5) * (2 * degrees / 180 * jnp.pi)).astype(dtype)[:, None, None]
    y = jnp.linspace(-1, 1, height, dtype=dtype)[:, None]
    x = jnp.linspace(-1, 1, width, dtype=dtype)
    rows = jnp.sin(angle) * x + jnp.cos(angle) * y
    columns = jnp.cos(angle) * x - jnp.sin(angle) * y
    return (rows + 1) * ((height - 1) / 2), (columns + 1) * ((width - 1) / 2)


def _sample_separably(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Bilinear samples on a grid per image: `rows [n, H]` by `columns [n, W]`, zeros outside.

    As matrix products, because their transpose is one too, where a gather's is a scatter.
    """

    def weights(positions: jax.Array, size: int) -> jax.Array:
        distance = jnp.abs(positions[..., None] - jnp.arange(size, dtype=positions.dtype))
        return jnp.maximum(0, 1 - distance)

    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    images = product("nrh,nhwc->nrwc", weights(rows, images.shape[1]), images)
    return product("nsw,nrwc->nrsc", weights(columns, images.shape[2]), images)


def _cutout_side(size: int, ratio: float) -> int:
    return int(size * ratio + 0.5)


class Draws(NamedTuple):
    """The draws of one minibatch.

    Attributes:
      op: int32 scalar, the position of the op in the strategy.
      uniforms: `[n, 3]`, uniform in [0, 1); ops use as many of the columns as they need.
    """

    op: jax.Array
    uniforms: jax.Array


def _colour(images, uniforms, crop_ratio):
    del crop_ratio
    images = brightness(images, uniforms[:, 0])
    return contrast(saturation(images, uniforms[:, 1]), uniforms[:, 2])


def _crop(images, uniforms, crop_ratio):
    def shift(size: int, u: jax.Array) -> jax.Array:
        most = int(crop_ratio * size + 0.5)
        return jnp.floor(u * (2 * most + 1)) - most

    height, width = images.shape[1:3]
    return crop(images, shift(height, uniforms[:, 0]), shift(width, uniforms[:, 1]))


def _cutout(images, uniforms, crop_ratio):
    del crop_ratio

    def centre(size: int, u: jax.Array) -> jax.Array:
        return jnp.floor(u * (size + 1 - _cutout_side(size, CUTOUT_RATIO) % 2))

    height, width = images.shape[1:3]
    return cutout(images, centre(height, uniforms[:, 0]), centre(width, uniforms[:, 1]))


def _flip(images, uniforms, crop_ratio):
    del crop_ratio
    return flip(images, uniforms[:, 0])


def _scale(images, uniforms, crop_ratio):
    del crop_ratio
    return scale(images, uniforms[:, 0], uniforms[:, 1])


def _rotate(images, uniforms, crop_ratio):
    del crop_ratio
    return rotate(images, uniforms[:, 0])


_OPS = {
    "color": _colour,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}

FULL_STRATEGY = "_".join(_OPS)


@functools.cache
def parse_strategy(strategy: str) -> tuple[str, ...]:
    """The ops of an underscore-joined strategy; none for "" and "none".

    Raises:
      UserError: for an op that there is not, or one given twice.
    """
    if strategy in ("", "none"):
        return ()
    names = tuple(strategy.split("_"))
    for name in names:
        if name not in _OPS:
            raise UserError(
                f"DSA strategy {strategy!r}: there is no op {name!r}; "
                f"join any of {', '.join(_OPS)} with underscores"
            )
        if names.count(name) > 1:
            raise UserError(f"DSA strategy {strategy!r}: {name!r} is given twice; give it once")
    return names


def draw_dsa(
    key: jax.Array,
    n: int,
    *,
    strategy: str = FULL_STRATEGY,
    dtype: jnp.dtype = jnp.float32,
    op_key: jax.Array | None = None,
) -> Draws:
    """Draw an op of `strategy`, equally likely, and the draws of `n` images.

    Args:
      key: for the draws of the images, and for the op where `op_key` is None.
      n: images in the minibatch.
      strategy: as in `parse_strategy`.
      dtype: of the draws.
      op_key: for the op alone. Under `vmap` over `key` an unbatched `op_key` lets all take the
        same op, so that only this one is computed.

    Returns:
      `Draws`. Rows of `uniforms` belong to images, so a part of a batch takes its part of them.
    """
    if op_key is None:
        op_key, key = jax.random.split(key)
    op = jax.random.randint(op_key, (), 0, max(1, len(parse_strategy(strategy))))
    return Draws(op, jax.random.uniform(key, (n, 3), dtype))


def apply_dsa(
    draws: Draws,
    images: jax.Array,
    *,
    strategy: str = FULL_STRATEGY,
    crop_ratio: float = 0.125,
) -> jax.Array:
    """Augment a minibatch by given draws; affine in the images.

    For reverse-mode differentiation in the images. The backward pass keeps the draws alone.

    Args:
      draws: as `draw_dsa` gives them for the same strategy.
      images: `[n, H, W, C]`.
      strategy: as in `parse_strategy`.
      crop_ratio: the largest shift of the crop over the image's side.

    Returns:
      `[n, H, W, C]`.
    """
    ops = [functools.partial(_OPS[name], crop_ratio=crop_ratio) for name in parse_strategy(strategy)]
    if not ops:
        return images
    return lax.switch(draws.op, ops, images, draws.uniforms)


def dsa(
    key: jax.Array,
    images: jax.Array,
    *,
    strategy: str = FULL_STRATEGY,
    crop_ratio: float = 0.125,
    op_key: jax.Array | None = None,
) -> jax.Array:
    """`apply_dsa` with draws from `draw_dsa`: one op per call, its own draw per image.

    Affine in the images, so a vector-Jacobian product does not depend on them.

    Args:
      key: for the draws of the images, and for the op where `op_key` is None.
      images: `[n, H, W, C]`.
      strategy: as in `parse_strategy`; identity for "" and "none".
      crop_ratio: the largest shift of the crop over the image's side: EDF has 0.25 in
        distillation and evaluation, expert training and the older methods 0.125.
      op_key: for the op alone, as in `draw_dsa`.

    Returns:
      `[n, H, W, C]`.

    Raises:
      UserError: for an unusable strategy.
    """
    draws = draw_dsa(
        key, images.shape[0], strategy=strategy, dtype=images.dtype, op_key=op_key
    )
    return apply_dsa(draws, images, strategy=strategy, crop_ratio=crop_ratio)
