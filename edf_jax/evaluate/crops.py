"""What the protocols with a teacher do to a batch: crops, flips, swapped halves, CutMix.

Each op is a function of a batch and of its explicit draws, so that draws can be kept and used
again.

References:
  Yin et al., SRe2L (2306.13092); Sun et al., RDED (2312.03526); Yun et al., CutMix (1905.04899).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edf_jax.methods import sampling

# Shapes of a crop, width over height, and how often one that fits is sought.
_ASPECTS = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class Mix(NamedTuple):
    """One CutMix of a batch.

    Attributes:
        partners: `[n]` int32, whose pixels come into the box.
        box: `[4]` int32: first row, first column, and those after the last.
    """

    partners: jax.Array
    box: jax.Array


def draw_crops(
    key: jax.Array,
    n: int,
    size: tuple[int, int],
    smallest: float,
    largest: float = 1.0,
    aspects: tuple[float, float] = _ASPECTS,
) -> jax.Array:
    """The boxes of random resized crops.

    The area is uniform between the two shares of the image's, the aspect log-uniform between those
    given, the place uniform; the first of ten draws that fits is taken. Where none does, the
    largest centred box of an allowed aspect.

    Args:
        key: for the draws.
        n: how many.
        size: `(H, W)` of the images.
        smallest: share of the area.
        largest: share of the area.
        aspects: least and largest width over height.

    Returns:
        `[n, 4]` int32: first row, first column, height, width.

    References:
        Szegedy et al. (1409.4842), as torchvision's RandomResizedCrop does it.
    """
    height, width = size
    keys = jax.random.split(key, 4)
    shape = (_ATTEMPTS, n)
    area = height * width * jax.random.uniform(keys[0], shape, minval=smallest, maxval=largest)
    log_aspects = [math.log(aspect) for aspect in aspects]
    aspect = jnp.exp(
        jax.random.uniform(keys[1], shape, minval=log_aspects[0], maxval=log_aspects[1])
    )
    rows = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first = jnp.argmax(fits, axis=0), jnp.arange(n)
    whole_rows = min(height, round(width / aspects[0]))
    whole_columns = min(width, round(height * aspects[1]))
    found = fits[first]
    rows = jnp.where(found, rows[first], whole_rows)
    columns = jnp.where(found, columns[first], whole_columns)
    top = jnp.floor(jax.random.uniform(keys[2], (n,)) * (height - rows + 1)).astype(jnp.int32)
    left = jnp.floor(jax.random.uniform(keys[3], (n,)) * (width - columns + 1)).astype(jnp.int32)
    top = jnp.where(found, top, (height - whole_rows) // 2)
    left = jnp.where(found, left, (width - whole_columns) // 2)
    return jnp.stack([top, left, rows, columns], axis=-1)


def resized_crop(images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Each image's box, resized bilinearly to the whole image's size.

    A box is never larger than its image, so antialiasing would change nothing.

    Args:
        images: `[n, H, W, C]`.
        boxes: `[n, 4]`, as `draw_crops` gives them.
    """
    boxes = boxes.astype(images.dtype)

    def positions(size: int, start: jax.Array, length: jax.Array) -> jax.Array:
        start, length = start[:, None], length[:, None]
        inside = (jnp.arange(size) + 0.5) * (length / size) - 0.5
        return start + jnp.clip(inside, 0, length - 1)

    rows = positions(images.shape[1], boxes[:, 0], boxes[:, 2])
    columns = positions(images.shape[2], boxes[:, 1], boxes[:, 3])
    return sampling.sample_separably(images, rows, columns)


def flip(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirrors left and right the images `[n, H, W, C]` where `mirrored [n]` is true."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def swap_halves(images: jax.Array, columns: jax.Array, rows: jax.Array) -> jax.Array:
    """Swaps the column halves, then the row halves, of the images where it is told.

    Args:
        images: `[n, H, W, C]`; the first half of an odd side is the smaller one.
        columns: `[n]` bool.
        rows: `[n]` bool.

    References:
        RDED's official code, with its factor of 2.
    """
    height, width = images.shape[1:3]
    swapped = jnp.roll(images, -(width // 2), axis=2)
    images = jnp.where(columns[:, None, None, None], swapped, images)
    swapped = jnp.roll(images, -(height // 2), axis=1)
    return jnp.where(rows[:, None, None, None], swapped, images)


def draw_mix(key: jax.Array, n: int, size: tuple[int, int]) -> Mix:
    """One box and one permutation for a batch.

    The share that stays is from Beta(1, 1); the box has the rest of the area and the image's
    aspect, its centre is uniform, and the border clips it.

    Args:
        key: for the draws.
        n: the batch's size.
        size: `(H, W)`.
    """
    order_key, ratio_key, place_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.uniform(ratio_key))
    extent = jnp.asarray(size, jnp.int32)
    lengths = jnp.floor(extent * side).astype(jnp.int32)
    centre = jnp.floor(jax.random.uniform(place_key, (2,)) * extent).astype(jnp.int32)
    low = jnp.clip(centre - lengths // 2, 0, extent)
    high = jnp.clip(centre + lengths // 2, 0, extent)
    partners = jax.random.permutation(order_key, n).astype(jnp.int32)
    return Mix(partners, jnp.concatenate([low, high]))


def paste(images: jax.Array, others: jax.Array, boxes: jax.Array) -> jax.Array:
    """`images` with `others` inside the boxes.

    Args:
        images: `[n, H, W, C]`.
        others: `[n, H, W, C]`.
        boxes: `[4]` for all, or `[n, 4]`; as in `Mix`.
    """
    boxes = jnp.broadcast_to(boxes, (len(images), 4)).astype(jnp.int32)
    rows, columns = (jnp.arange(size) for size in images.shape[1:3])
    inside_rows = (rows >= boxes[:, :1]) & (rows < boxes[:, 2:3])
    inside_columns = (columns >= boxes[:, 1:2]) & (columns < boxes[:, 3:])
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return jnp.where(inside[..., None], others, images)


def mix_labels(labels: jax.Array, others: jax.Array, boxes: jax.Array, size: tuple[int, int]):
    """Label logits of `paste`d images: each image's probabilities count by its share of the area.

    Args:
        labels: `[n, C]` logits, of the images.
        others: `[n, C]` logits, of those inside the boxes.
        boxes: as `paste` takes them.
        size: `(H, W)` of the images.

    Returns:
        `[n, C]` logarithms of probabilities.

    References:
        Yun et al., CutMix (1905.04899), equation 1.
    """
    boxes = jnp.broadcast_to(boxes, (len(labels), 4)).astype(labels.dtype)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    inside = (areas / math.prod(size))[:, None]
    return jnp.logaddexp(
        jnp.log1p(-inside) + jax.nn.log_softmax(labels),
        jnp.log(inside) + jax.nn.log_softmax(others),
    )


def rded_mix(key: jax.Array, n: int, size: tuple[int, int]) -> Mix:
    """The CutMix that `rded` does with the same key to a batch of `n` images."""
    return draw_mix(jax.random.split(key, 4)[3], n, size)


def rded(key: jax.Array, images: jax.Array, mixed: bool = True) -> jax.Array:
    """RDED's augmentation of a batch: halves swapped, a crop of 0.5 to 1, a flip, CutMix.

    Args:
        key: for all draws.
        images: `[n, H, W, C]`.
        mixed: False gives the same batch before CutMix.
    """
    n, height, width, _ = images.shape
    size = (height, width)
    halves_key, crop_key, flip_key, _ = jax.random.split(key, 4)
    swaps = jax.random.bernoulli(halves_key, 0.5, (2, n))
    images = swap_halves(images, swaps[0], swaps[1])
    images = resized_crop(images, draw_crops(crop_key, n, size, 0.5))
    images = flip(images, jax.random.bernoulli(flip_key, 0.5, (n,)))
    if not mixed:
        return images
    mix = rded_mix(key, n, size)
    return paste(images, images[mix.partners], mix.box)


def crop_and_flip(key: jax.Array, images: jax.Array, smallest: float) -> jax.Array:
    """A random resized crop and a flip of each image, each with its own draws.

    Args:
        key: for all draws.
        images: `[n, H, W, C]`.
        smallest: least share of the area.
    """
    crop_key, flip_key = jax.random.split(key)
    n, height, width, _ = images.shape
    images = resized_crop(images, draw_crops(crop_key, n, (height, width), smallest))
    return flip(images, jax.random.bernoulli(flip_key, 0.5, (n,)))


def enlarge(images: jax.Array) -> jax.Array:
    """The centre of images enlarged to `size // 7 * 8`, as RDED shows test images to networks.

    The new size is its official code's (256 for 224, 144 for 128, and 32 for 32).

    Args:
        images: `[n, H, W, C]`.

    Returns:
        The same shape.
    """

    def positions(size: int) -> jax.Array:
        large = max(size // 7 * 8, size)
        margin = round((large - size) / 2)
        inside = (jnp.arange(size) + margin + 0.5) * (size / large) - 0.5
        return jnp.broadcast_to(jnp.clip(inside, 0, size - 1), (len(images), size))

    return sampling.sample_separably(
        images, positions(images.shape[1]), positions(images.shape[2])
    )
