"""The Grain pipeline that images are streamed by."""

from __future__ import annotations

import numpy as np
import pytest

from edf_jax.data import pipeline
from edf_jax.runtime.errors import UserError

_ROW = 4 * 5 * 3


@pytest.fixture
def stored(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 5, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    return images, np.load(tmp_path / "images.npy", mmap_mode="r"), tmp_path / "images.npy"


def test_batches_come_in_order_from_memory_a_file_and_a_part_of_one(stored):
    images, mapped, _ = stored
    positions = np.random.default_rng(1).permutation(40)[:36].reshape(9, 4)
    for source in (images, mapped):
        found = list(pipeline.stream(source, positions, workers=3, together=2))
        assert [len(element) for element in found] == [8, 8, 8, 8, 4]
        np.testing.assert_array_equal(np.concatenate(found), images[positions.ravel()])
    (part,) = pipeline.stream(mapped[10:], np.arange(4)[None])
    np.testing.assert_array_equal(part, images[10:14])


def test_an_iterator_goes_on_from_its_state(stored):
    images, mapped, _ = stored
    positions = np.random.default_rng(1).permutation(40).reshape(10, 4)
    iterator = iter(pipeline.stream(mapped, positions, together=2))
    for _ in range(2):
        next(iterator)
    state = iterator.get_state()
    again = iter(pipeline.stream(mapped, positions, together=2))
    again.set_state(state)
    np.testing.assert_array_equal(np.concatenate(list(again)), images[positions[4:].ravel()])


def test_a_file_that_is_cut_short_while_it_is_streamed_ends_in_one_line(stored):
    _, mapped, path = stored
    iterator = iter(pipeline.stream(mapped, np.arange(40).reshape(10, 4), workers=1))
    next(iterator)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 3 * _ROW)
    with pytest.raises(UserError, match="images.npy was cut short while it was read") as refusal:
        list(iterator)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_gone_is_named(stored):
    _, mapped, path = stored
    path.unlink()
    with pytest.raises(UserError, match="images.npy can't be read again"):
        pipeline.stream(mapped, np.arange(4)[None])
