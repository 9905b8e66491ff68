"""Crops, flips, halves and mixtures of the protocols with a teacher."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.evaluate import crops


def _images(n=3, height=6, width=8, channels=2):
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, height, width, channels)))


def test_a_crop_of_everything_is_the_image():
    images = _images()
    boxes = jnp.tile(jnp.asarray([0, 0, 6, 8]), (3, 1))
    np.testing.assert_allclose(crops.resized_crop(images, boxes), images, atol=1e-6)


def test_crops_are_resized_as_by_hand():
    # 2 of 4 columns become 4, half-pixel centres: a, 3/4 a + 1/4 b, 1/4 a + 3/4 b, b.
    images = jnp.asarray([[[[9.0], [1.0], [5.0], [7.0]]]])
    found = crops.resized_crop(images, jnp.asarray([[0, 1, 1, 2]]))
    np.testing.assert_allclose(found[0, 0, :, 0], [1, 2, 4, 5], atol=1e-6)


def test_crops_equal_pytorch_on_other_shapes():
    torch = pytest.importorskip("torch")
    images = _images(2, 9, 7, 3).astype(jnp.float32)
    boxes = np.asarray([[1, 2, 5, 4], [3, 0, 6, 7]])
    found = crops.resized_crop(images, jnp.asarray(boxes))
    for image, (top, left, height, width), result in zip(images, boxes, found):
        part = np.asarray(image)[top : top + height, left : left + width].transpose(2, 0, 1)
        expected = torch.nn.functional.interpolate(
            torch.tensor(part)[None], size=(9, 7), mode="bilinear", antialias=True
        )
        np.testing.assert_allclose(result, expected[0].permute(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize(("size", "smallest"), [((32, 32), 0.08), ((20, 30), 0.5)])
def test_drawn_crops_have_the_asked_area_and_aspect(size, smallest):
    boxes = np.asarray(crops.draw_crops(jax.random.key(0), 2000, size, smallest))
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    area = height * width / (size[0] * size[1])
    # Sides are rounded to whole pixels.
    assert area.min() > smallest * 0.8 and area.max() <= 1
    assert (np.abs(np.log(width / height)) < np.log(4 / 3) + 0.2).all()
    assert len(np.unique(top)) > 1 and len(np.unique(left)) > 5


def test_images_that_no_aspect_fits_get_the_largest_centred_crop():
    boxes = crops.draw_crops(jax.random.key(0), 4, (8, 64), 0.9)
    np.testing.assert_array_equal(boxes, np.tile([0, 26, 8, 11], (4, 1)))


def test_halves_are_swapped_where_told():
    image = jnp.arange(6.0).reshape(1, 2, 3, 1)
    images = jnp.tile(image, (3, 1, 1, 1))
    columns, rows = jnp.asarray([True, False, True]), jnp.asarray([False, True, True])
    found = crops.swap_halves(images, columns, rows)
    np.testing.assert_array_equal(found[0, ..., 0], [[1, 2, 0], [4, 5, 3]])
    np.testing.assert_array_equal(found[1, ..., 0], [[3, 4, 5], [0, 1, 2]])
    np.testing.assert_array_equal(found[2, ..., 0], [[4, 5, 3], [1, 2, 0]])


def test_the_box_of_a_mixture_has_the_rest_of_the_area():
    size = (40, 60)
    keys = jax.random.split(jax.random.key(0), 300)
    mixes = jax.jit(jax.vmap(lambda key: crops.draw_mix(key, 5, size)))(keys)
    boxes = np.asarray(mixes.box)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= size).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < size).all(1)
    heights, widths = (boxes[inside, 2] - boxes[inside, 0]), (boxes[inside, 3] - boxes[inside, 1])
    assert np.abs(heights / 40 - widths / 60).max() < 0.06  # the image's aspect
    np.testing.assert_array_equal(np.sort(mixes.partners), np.tile(np.arange(5), (300, 1)))


def test_pasting_takes_pixels_inside_the_box_alone():
    images, others = _images(), -_images() + 100
    found = crops.paste(images, others, jnp.asarray([1, 2, 4, 7]))
    expected = np.array(images)
    expected[:, 1:4, 2:7] = others[:, 1:4, 2:7]
    np.testing.assert_array_equal(found, expected)


def test_rded_augmentation_mixes_crops_of_the_batch():
    images = jnp.broadcast_to(jnp.arange(1.0, 7.0)[:, None, None, None], (6, 8, 8, 1))
    found = np.asarray(jax.jit(crops.rded)(jax.random.key(3), images))
    assert found.shape == images.shape
    # Flat images stay flat, so every pixel is its own image's number or its partner's.
    kinds = [np.unique(np.round(image, 4)) for image in found]
    assert all(len(kind) <= 2 for kind in kinds)
    assert {float(value) for kind in kinds for value in kind} <= {1, 2, 3, 4, 5, 6}


def test_test_images_are_enlarged_as_the_official_code_sizes_them():
    images = _images(2, 32, 32, 1)
    np.testing.assert_allclose(crops.enlarge(images), images, atol=1e-6)  # 32 // 7 * 8 is 32
    ramp = jnp.broadcast_to(jnp.arange(56.0)[:, None], (1, 56, 56))[..., None]
    rows = np.asarray(crops.enlarge(ramp))[0, :, 0, 0]  # 64, of which the centre
    np.testing.assert_allclose(np.diff(rows), 7 / 8, atol=1e-5)
    assert abs(rows.mean() - 27.5) < 1e-4


def test_labels_of_a_cutmix_are_weighed_by_area():
    labels, others = jnp.log(jnp.asarray([[0.9, 0.1], [0.5, 0.5]])), jnp.asarray([[0, 9.0]] * 2)
    certain = math.exp(9) / (1 + math.exp(9))
    boxes = jnp.asarray([[1, 0, 3, 4], [0, 0, 0, 0]])  # 8 of 32 pixels; none
    found = np.exp(crops.mix_labels(labels, others, boxes, (4, 8)))
    first = 0.75 * 0.9 + 0.25 * (1 - certain)
    np.testing.assert_allclose(found, [[first, 1 - first], [0.5, 0.5]], rtol=1e-5)
