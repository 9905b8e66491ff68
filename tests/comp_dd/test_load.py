"""Comp-DD as its README documents it."""

from __future__ import annotations

import numpy as np
import pytest

from edf_jax.comp_dd import load_comp_dd
from edf_jax.data import normalisation
from edf_jax.data.subsets import find_comp_dd
from edf_jax.runtime.errors import UserError
from tests.data_layouts import marks, write_folder


def _load(tmp_path, category, subset, **changes):
    write_folder(tmp_path / "in", find_comp_dd(category, subset).wnids, train=2, test=1)
    usual = {"im_size": (16, 16), "batch_size": 8, "cache_dir": str(tmp_path / "cache")}
    return load_comp_dd(tmp_path / "in", category, subset, **usual | changes)


@pytest.mark.parametrize("category", ["bird", "dogs"])
def test_the_documented_seven_values(tmp_path, category):
    channel, im_size, num_classes, dst_train, dst_test, class_map, class_map_inv = _load(
        tmp_path, category, "easy"
    )
    indices = find_comp_dd(category, "easy").indices
    assert (channel, im_size, num_classes) == (3, (16, 16), 10)
    assert class_map == {index: label for label, index in enumerate(indices)}
    assert class_map_inv == dict(enumerate(indices))
    assert len(dst_train) == 20 and len(dst_test) == 10
    image, label = dst_train[0]
    assert image.shape == (16, 16, 3) and image.dtype == np.float32 and label == 0
    pixels = normalisation.IMAGENET.invert(np.stack([image for image, _ in dst_train])) * 255
    np.testing.assert_array_equal(marks(pixels), [label for _, label in dst_train])


def test_batches_cover_a_split_in_order(tmp_path):
    *_, dst_train, _, _, _ = _load(tmp_path, "bird", "hard")
    batches = list(dst_train.batches())
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), dst_train.labels)
    np.testing.assert_allclose(batches[1][0][0], dst_train[8][0])


def test_pytorch_gets_channels_first(tmp_path):
    *_, ours, _, _, _ = _load(tmp_path, "bird", "hard")
    *_, theirs, _, _, _ = _load(tmp_path, "bird", "hard", layout="NCHW")
    assert theirs[0][0].shape == (3, 16, 16) and theirs[0][0].flags.c_contiguous
    np.testing.assert_array_equal(theirs[3][0], ours[3][0].transpose(2, 0, 1))
    for (images, labels), (expected, same) in zip(theirs.batches(), ours.batches(), strict=True):
        np.testing.assert_array_equal(images, expected.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(labels, same)
    with pytest.raises(UserError, match="layout='CHWN' is unknown; one of NHWC, NCHW"):
        load_comp_dd(tmp_path, "bird", "easy", (16, 16), 8, layout="CHWN")


def test_music_hard_has_nine_classes_and_ten_positions(tmp_path):
    with pytest.warns(UserWarning, match="class 420"):
        _, _, num_classes, dst_train, _, class_map, class_map_inv = _load(tmp_path, "music", "hard")
    assert num_classes == 9
    assert sorted(set(dst_train.labels)) == list(range(9)) == sorted(class_map.values())
    assert list(class_map_inv) == list(range(10))
    assert class_map_inv[0] == class_map_inv[2] == 420


def test_a_single_number_is_a_square(tmp_path):
    assert _load(tmp_path, "fishes", "hard", im_size=8)[1] == (8, 8)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no category 'cat'"):
        load_comp_dd(tmp_path, "cat", "easy", (16, 16), 8)
    with pytest.raises(UserError, match="not a square"):
        load_comp_dd(tmp_path, "bird", "easy", (16, 20), 8)
    with pytest.raises(UserError, match="batch_size=0"):
        load_comp_dd(tmp_path, "bird", "easy", (16, 16), 0)
    with pytest.raises(UserError, match="is not a folder; expected is a folder with ImageNet"):
        load_comp_dd(tmp_path / "nowhere", "bird", "easy", (16, 16), 8)
