"""Differentiable Siamese augmentation (DSA), one op drawn per minibatch.

Each op is a function of a batch and of its explicit draws, one per image. All of them are affine
in the images, and linear but for brightness.

References:
  Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation"
  (arXiv 2102.08259), section 3.2.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from edf_jax.methods import sampling
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.shapes import Images, Key, PerImage

BRIGHTNESS = 1.0
SATURATION = 2.0
CONTRAST = 0.5
CUTOUT_RATIO = 0.5
FLIP_PROBABILITY = 0.5
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0


def _per_image(values: jax.Array, images: Images) -> jax.Array:
    return values.astype(images.dtype)[:, None, None, None]


def brightness(images: Images, u: PerImage, *, strength: float = BRIGHTNESS) -> Images:
    """Add `(u - 1/2) * strength` to each image.

    Args:
      images: `[n, H, W, C]`.
      u: `[n]`, uniform in [0, 1).
      strength: width of the range of shifts.

    Returns:
      `[n, H, W, C]`.
    """
    return images + _per_image((u - 0.5) * strength, images)


def saturation(images: Images, u: PerImage, *, strength: float = SATURATION) -> Images:
    """Scale each pixel's distance from its mean over channels by `strength * u`.

    Args and result as in `brightness`.
    """
    # As a sum of slices, since XLA's reduction of so short an axis is slow on a CPU.
    channels = images.shape[3]
    grey = sum(images[..., c : c + 1] for c in range(channels)) / channels
    return (images - grey) * _per_image(u * strength, images) + grey


def contrast(images: Images, u: PerImage, *, strength: float = CONTRAST) -> Images:
    """Scale each image's distance from its mean over pixels and channels by `u + strength`.

    Args and result as in `brightness`.
    """
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return (images - mean) * _per_image(u + strength, images) + mean


def crop(images: Images, rows: PerImage, columns: PerImage) -> Images:
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
    return sampling.sample_separably(images, source_rows, source_columns)


def cutout(
    images: Images, rows: PerImage, columns: PerImage, *, ratio: float = CUTOUT_RATIO
) -> Images:
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


def flip(images: Images, u: PerImage, *, probability: float = FLIP_PROBABILITY) -> Images:
    """Mirror left and right the images whose `u` is below `probability`.

    Args:
      images: `[n, H, W, C]`.
      u: `[n]`, uniform in [0, 1).
      probability: of being mirrored.

    Returns:
      `[n, H, W, C]`.
    """
    return jnp.where((u < probability)[:, None, None, None], images[:, :, ::-1], images)


def scale(
    images: Images, u_width: PerImage, u_height: PerImage, *, ratio: float = SCALE_RATIO
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

    def positions(size: int, u: PerImage) -> jax.Array:
        factor = u * (ratio - 1 / ratio) + 1 / ratio
        centre = (size - 1) / 2
        return (jnp.arange(size) - centre) * factor[:, None] + centre

    return sampling.sample_separably(images, positions(height, u_height), positions(width, u_width))


def rotate(images: Images, u: PerImage, *, degrees: float = ROTATE_DEGREES) -> Images:
    """Rotate each image about its centre, bilinearly with aligned corners and zeros outside.

    Differentiable in reverse mode, in the images alone.

    Args:
      images: `[n, H, W, C]`.
      u: `[n]`, uniform in [0, 1): the angle is `(2 u - 1) * degrees`, in coordinates where the
        picture is [-1, 1] both ways.
      degrees: the largest angle.

    Returns:
      `[n, H, W, C]`.
    """
    most = math.radians(degrees)
    return sampling.rotate(images, (u - 0.5) * (2 * most), most)


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


def _colour(crop_ratio, uniforms, images):
    del crop_ratio
    images = brightness(images, uniforms[:, 0])
    return contrast(saturation(images, uniforms[:, 1]), uniforms[:, 2])


def _crop(crop_ratio, uniforms, images):
    def shift(size: int, u: PerImage) -> jax.Array:
        most = int(crop_ratio * size + 0.5)
        return jnp.floor(u * (2 * most + 1)) - most

    height, width = images.shape[1:3]
    return crop(images, shift(height, uniforms[:, 0]), shift(width, uniforms[:, 1]))


def _cutout(crop_ratio, uniforms, images):
    del crop_ratio

    def centre(size: int, u: PerImage) -> jax.Array:
        return jnp.floor(u * (size + 1 - _cutout_side(size, CUTOUT_RATIO) % 2))

    height, width = images.shape[1:3]
    return cutout(images, centre(height, uniforms[:, 0]), centre(width, uniforms[:, 1]))


def _flip(crop_ratio, uniforms, images):
    del crop_ratio
    return flip(images, uniforms[:, 0])


def _scale(crop_ratio, uniforms, images):
    del crop_ratio
    return scale(images, uniforms[:, 0], uniforms[:, 1])


def _rotate(crop_ratio, uniforms, images):
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
    key: Key,
    n: int,
    *,
    strategy: str = FULL_STRATEGY,
    dtype: jnp.dtype = jnp.float32,
    op_key: Key | None = None,
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
    images: Images,
    *,
    strategy: str = FULL_STRATEGY,
    crop_ratio: float = 0.125,
) -> Images:
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
    names = parse_strategy(strategy)
    if not names:
        return images
    return _apply_one_of(names, crop_ratio, draws, images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _apply_one_of(names, crop_ratio, draws, images):
    """`lax.switch` whose backward pass keeps the draws, not what every op would keep."""
    ops = [functools.partial(_OPS[name], crop_ratio) for name in names]
    return lax.switch(draws.op, ops, draws.uniforms, images)


def _apply_forward(names, crop_ratio, draws, images):
    return _apply_one_of(names, crop_ratio, draws, images), draws


def _apply_backward(names, crop_ratio, draws, cotangents):
    def transpose(op, uniforms, cotangents):
        affine = functools.partial(op, crop_ratio, uniforms)
        _, pullback = jax.vjp(affine, jnp.zeros_like(cotangents))
        return pullback(cotangents)[0]

    transposes = [functools.partial(transpose, _OPS[name]) for name in names]
    return None, lax.switch(draws.op, transposes, draws.uniforms, cotangents)


_apply_one_of.defvjp(_apply_forward, _apply_backward)


def dsa(
    key: Key,
    images: Images,
    *,
    strategy: str = FULL_STRATEGY,
    crop_ratio: float = 0.125,
    op_key: Key | None = None,
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
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    draws = draw_dsa(key, images.shape[0], strategy=strategy, dtype=dtype, op_key=op_key)
    return apply_dsa(draws, images, strategy=strategy, crop_ratio=crop_ratio)
