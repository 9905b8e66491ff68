"""Decoding, resizing and the cache on disk."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from edf_jax.data import load_dataset, preprocess
from edf_jax.data.decode import ImageSettings, decode
from edf_jax.runtime import preemption
from edf_jax.runtime.errors import Preempted, UserError
from tests.data_layouts import data_config, jpeg, marks, photograph, write_folder

SETTINGS = {
    "resolution": 16,
    "resize": "squash",
    "antialias": True,
    "channels": 3,
    "upright": False,
}


def _decode(image: np.ndarray, **changes) -> np.ndarray:
    return decode(image, ImageSettings(**SETTINGS | changes))[0]


def _torch_resize(image: np.ndarray, size, antialias: bool) -> np.ndarray:
    torch = pytest.importorskip("torch")
    x = torch.tensor(image).permute(2, 0, 1)[None].float()
    y = torch.nn.functional.interpolate(
        x, size=size, mode="bilinear", align_corners=False, antialias=antialias
    )
    return y[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(50, 37), (9, 70), (16, 16), (10, 11)])
def test_squash_is_pytorchs_bilinear_resize(shape, antialias):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    ours = _decode(image, antialias=antialias)
    expected = _torch_resize(image, (16, 16), antialias)
    assert ours.shape == (16, 16, 3)
    assert np.abs(ours - expected).max() <= 1.01


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(50, 37), (37, 50), (18, 75), (16, 16), (9, 12)])
def test_crop_takes_the_short_side_then_the_centre(shape, antialias):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    ours = _decode(image, resize="crop", antialias=antialias)
    short = min(shape)
    size = tuple(16 if side == short else int(16 * side / short) for side in shape)
    resized = _torch_resize(image, size, antialias)
    top, left = round((size[0] - 16) / 2), round((size[1] - 16) / 2)
    expected = resized[top : top + 16, left : left + 16]
    assert np.abs(ours - expected).max() <= 1.01


def test_native_size_and_channels():
    image = photograph(0)
    np.testing.assert_array_equal(_decode(image, resolution=0), image)
    assert _decode(image, channels=1).shape == (16, 16, 1)
    assert _decode(image[..., :1]).shape == (16, 16, 3)
    np.testing.assert_array_equal(_decode(image[..., :1], resolution=0, channels=1), image[..., :1])


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder of 26 images, a config for it, and chunks of four images."""
    monkeypatch.setattr(preprocess, "_CHUNK_IMAGES", 4)
    write_folder(tmp_path / "pets", ["a", "b"], train=9, test=4)
    return data_config(path=tmp_path / "pets", cache_dir=str(tmp_path / "cache"))


def _count_decodes(monkeypatch) -> list:
    calls = []

    def spy(content, settings):
        calls.append(1)
        return decode(content, settings)

    monkeypatch.setattr(preprocess, "decode", spy)
    return calls


def test_any_number_of_workers_gives_the_same_arrays(prepared, tmp_path):
    expected = load_dataset(prepared)
    for workers in (1, 5):
        prepared.cache_dir, prepared.workers = str(tmp_path / f"cache{workers}"), workers
        dataset = load_dataset(prepared)
        np.testing.assert_array_equal(dataset.train.images, expected.train.images)
        assert dataset.info == expected.info


def test_the_second_load_reads_the_cache(prepared, monkeypatch):
    done = []
    first = load_dataset(prepared, progress=lambda *args: done.append(args))
    assert done[-1] == (26, 26) and len(done) == 26
    calls = _count_decodes(monkeypatch)
    done.clear()
    second = load_dataset(prepared, progress=lambda *args: done.append(args))
    assert done[-1] == (26, 26)
    assert not calls
    assert isinstance(second.train.images, np.memmap)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert first.info.fingerprint == second.info.fingerprint


def prepared_dir(config):
    from edf_jax.data.load import find_cache_dir

    return find_cache_dir(config)


@pytest.mark.parametrize(
    "change", [{"resolution": 8}, {"resize": "crop"}, {"antialias": False}, {"image": True}]
)
def test_other_settings_or_images_are_prepared_anew(prepared, monkeypatch, change):
    first = load_dataset(prepared)
    if change.pop("image", False):
        path = next((prepared_dir(prepared).parent / "pets" / "train" / "a").iterdir())
        path.write_bytes(jpeg(photograph(77, 30, 30)))
    for key, value in change.items():
        setattr(prepared, key, value)
    calls = _count_decodes(monkeypatch)
    second = load_dataset(prepared)
    assert calls and first.info.fingerprint != second.info.fingerprint


@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "garble"])
def test_a_damaged_cache_is_made_again_with_a_warning(prepared, harm):
    first = load_dataset(prepared)
    expected = np.array(first.train.images)
    del first
    (record,) = prepared_dir(prepared).glob("pets-train-*.jsonl")
    victim = record if harm == "garble" else record.with_suffix(".npy")
    content = bytearray(victim.read_bytes())
    if harm == "lose":
        victim.unlink()
    elif harm == "cut":
        victim.write_bytes(content[:-5])
    else:
        content[len(content) // 2 if harm == "garble" else -3] ^= 4
        victim.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged; it is made again"):
        second = load_dataset(prepared)
    np.testing.assert_array_equal(second.train.images, expected)
    np.testing.assert_array_equal(second.train.labels, [0] * 9 + [1] * 9)


_CHILD = """
import itertools, sys, time
from edf_jax.data import load_dataset, preprocess
from tests.data_layouts import data_config
preprocess._CHUNK_IMAGES = 4
whole, calls = preprocess.decode, itertools.count()
def decode(*args):
    if next(calls) == 10:  # two chunks and a half
        time.sleep(600)
    return whole(*args)
preprocess.decode = decode
load_dataset(data_config(path=sys.argv[1], cache_dir=sys.argv[2], workers=1))
"""


def _record(cache) -> list[str]:
    return [line for path in cache.glob("*.jsonl") for line in path.read_text().split("\n")[1:]]


def test_a_killed_preparation_continues_where_it_stopped(prepared, monkeypatch):
    cache = prepared_dir(prepared)
    child = subprocess.Popen([sys.executable, "-c", _CHILD, prepared.path, str(cache)])
    deadline = time.monotonic() + 60
    while len(_record(cache)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    finished = len(_record(cache))
    assert finished == 2
    calls = _count_decodes(monkeypatch)
    resumed = load_dataset(prepared)
    assert len(calls) == 26 - 4 * finished
    prepared.cache_dir += "-fresh"
    fresh = load_dataset(prepared)
    np.testing.assert_array_equal(resumed.train.images, fresh.train.images)
    assert resumed.info == fresh.info
    kinds = {path.name.split(".", 1)[1] for path in cache.iterdir()}
    assert kinds == {"npy", "jsonl", "lock"}


@pytest.mark.parametrize("rows", [18, 17])
def test_a_preparation_killed_at_its_very_end_decodes_nothing_again(prepared, monkeypatch, rows):
    """One image is left out: the file was 18 long, its header, then itself are made shorter."""
    next((prepared_dir(prepared).parent / "pets" / "train" / "a").iterdir()).write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 18 images cannot be read"):
        expected = load_dataset(prepared)
    (path,) = prepared_dir(prepared).glob("pets-train-*.npy")
    with open(path, "r+b") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 16, 16, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 18 * 16 * 16 * 3)
    decodes = _count_decodes(monkeypatch)
    with pytest.warns(UserWarning, match="1 of 18 images cannot be read"):
        dataset = load_dataset(prepared)
    assert not decodes
    assert len(dataset.train) == len(dataset.train.images) == 17
    np.testing.assert_array_equal(marks(dataset.train.images), dataset.train.labels)
    assert dataset.info == expected.info


def test_a_killed_preparation_is_made_again_from_where_it_is_damaged(prepared, monkeypatch):
    expected = np.array(load_dataset(prepared).train.images)
    (images,) = prepared_dir(prepared).glob("pets-train-*.npy")
    record = images.with_suffix(".jsonl")
    lines = record.read_text().split("\n")
    record.write_text("\n".join(lines[:5])[:-10])  # killed while writing the fourth line
    content = bytearray(images.read_bytes())
    content[-16 * 16 * 3 * 7 - 5] ^= 1  # of 18 images the eleventh, in the third chunk of four
    images.write_bytes(content)
    calls = _count_decodes(monkeypatch)
    np.testing.assert_array_equal(load_dataset(prepared).train.images, expected)
    assert len(calls) == 18 - 8


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_who_waits_for_another_process_to_prepare_hears_signals(tmp_path, number, error):
    write_folder(tmp_path / "pets", ["cat", "dog"])
    config = data_config(path=tmp_path / "pets", cache_dir=str(tmp_path / "cache"))
    load_dataset(config)
    (path,) = (tmp_path / "cache").glob("*train*.lock")
    with open(path, "w") as lock, preemption.listening():
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        with pytest.raises(error):
            load_dataset(config)
    load_dataset(config)


def test_images_of_unequal_size_need_a_resolution(prepared):
    prepared.resolution = 0
    native = load_dataset(prepared)
    assert native.info.image_shape == (20, 26, 3)
    path = next((prepared_dir(prepared).parent / "pets" / "train" / "b").iterdir())
    Image.fromarray(photograph(1, 20, 27)).save(path, "JPEG")
    with pytest.raises(UserError, match=r"differ in size: .*\[20, 27, 3\].*data.resolution"):
        load_dataset(prepared)


def test_a_cache_that_cannot_be_written_is_named(prepared, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="data cache .*file/cache cannot be written"):
        load_dataset(data_config(path=prepared.path, cache_dir=str(tmp_path / "file" / "cache")))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left.*data.cache_dir"):
        load_dataset(prepared)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "web"}, "data.source='web' is unknown; one of cluttered_digits, tfds"),
        ({"resize": "stretch"}, "data.resize='stretch'"),
        ({"resolution": -1}, "data.resolution=-1"),
        ({"resolution": 0, "subset": "imagenette"}, "differ in size"),
    ],
)
def test_impossible_settings_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        load_dataset(data_config(**changes))
