"""RDED's patches, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edf_jax.methods import rded


def test_each_image_gives_its_best_crop_and_the_best_are_kept():
    losses = np.array([[0.9, 0.4], [0.2, 0.3], [0.8, 0.7], [0.1, 0.5]])
    images, crops = rded.best_crops(losses, 3)
    np.testing.assert_array_equal(images, [3, 1, 0])
    np.testing.assert_array_equal(crops, [0, 0, 1])


def test_patches_of_every_quality_are_in_every_image():
    patches = np.arange(8.0)[:, None, None, None] * np.ones((8, 2, 2, 1))
    patches[:, 1, 0] += 0.5  # which way up they are
    found = rded.stitch(patches, 2)
    assert found.shape == (2, 4, 4, 1)
    # The first of two images: 0, and 2 to its right; below 4 and 6.
    expected = [[0, 0, 2, 2], [0.5, 0, 2.5, 2], [4, 4, 6, 6], [4.5, 4, 6.5, 6]]
    np.testing.assert_array_equal(found[0, ..., 0], expected)
    np.testing.assert_array_equal(found[1, ..., 0], np.array(expected) + 1)
    np.testing.assert_array_equal(rded.stitch(patches, 1), patches)


@pytest.mark.parametrize(("size", "factor"), [(32, 1), (64, 1), (128, 2), (224, 2), (97, 1)])
def test_as_many_patches_as_its_scripts_have(size, factor):
    assert rded.factor_of(size) == factor
