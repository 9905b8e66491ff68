"""Sets on disk: what is stored of their images, how many bytes that is, and what is read of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edf_jax import distilled_set
from edf_jax.distilled_set import BYTES, StoredBytes
from edf_jax.methods.family import PARAMETRISATIONS
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError
from tests import tiny


def _set(name: str, factor: int = 2) -> distilled_set.DistilledSet:
    stored = PARAMETRISATIONS[name](factor)
    labelled = tiny.initial_set(ipc=2 * stored.images)
    parameters = tiny.initial_set(1, ipc=2).parameters
    return dataclasses.replace(labelled, parameters=parameters, parametrisation=stored, step=7)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_a_set_is_read_as_it_was_written(name, tmp_path):
    written = _set(name)
    written.save(tmp_path / "a.safetensors")
    read = distilled_set.load(tmp_path / "a.safetensors")
    assert read.parametrisation == written.parametrisation and read.step == 7
    assert read.digest == written.digest
    for array in ("parameters", "images", "labels"):
        np.testing.assert_array_equal(getattr(read, array), getattr(written, array))
    assert len(read.images) == len(read.labels) == len(read.classes)
    assert read.images is read.images  # decoded once


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_counted_bytes_are_those_on_disk_but_for_the_header_and_the_rate(name, tmp_path):
    path = tmp_path / "a.safetensors"
    written = _set(name)
    written.save(path)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    rate = 4
    assert path.stat().st_size == 8 + header + sum(written.stored_bytes) + rate
    assert written.stored_bytes.images == 6 * tiny.SIDE**2 * 3 * 4


def test_pixels_are_written_as_they_always_were(tmp_path):
    tensors, metadata = _set("pixels").packed()
    assert metadata["format"] == "edf_jax distilled set 1" and "parametrisation" not in metadata
    assert set(tensors) == {"images", "labels", "alpha"}
    # Whoever reads images alone finds none where there are other parameters.
    tensors, metadata = _set("multi_formation").packed()
    assert metadata["format"] == "edf_jax distilled set 2"
    assert set(tensors) == {"parameters", "labels", "alpha"}


def test_sets_of_one_array_that_decode_otherwise_are_others():
    frequencies = _set("frequency", 4)
    grids = dataclasses.replace(frequencies, parametrisation=PARAMETRISATIONS["multi_formation"](2))
    assert frequencies.digest != grids.digest
    assert not np.array_equal(frequencies.images, grids.images)


def test_a_set_of_a_parametrisation_that_is_not_known_is_refused(tmp_path):
    tensors, metadata = _set("multi_formation").packed()
    metadata["parametrisation"] = json.dumps({"name": "wavelets", "factor": 2})
    path = tmp_path / "a.safetensors"
    storage.save_tensors(path, tensors, {**metadata, "name": "a"})
    with pytest.raises(UserError, match="as 'wavelets', which isn't known here"):
        distilled_set.load(path)


def test_a_result_tells_bytes_by_kind():
    sizes = StoredBytes(12_288, 400)
    row = {f"distilled_{name}": value for name, value in sizes.figures().items()}
    assert StoredBytes.of_figures(row, "distilled") == sizes
    assert StoredBytes.of_figures(sizes.figures()) == sizes
    assert StoredBytes.of_figures(row, "random") is None
    assert (BYTES, sizes.text) == ("bytes, images + labels", "12,288 + 400")
