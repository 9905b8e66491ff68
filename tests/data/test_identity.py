"""Data that isn't what it seems is noticed: other splits, images, labels, names."""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from edf_jax.data import describe_dataset, load, load_dataset, whitening
from edf_jax.data.decode import ImageSettings, decode
from edf_jax.data.sources import Listing, Source
from edf_jax.data.subsets import find_subset
from edf_jax.runtime.errors import UserError
from tests.data_layouts import data_config, photograph, write_folder, write_idx

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"


def _fastai(root, name, *, train=3, test=2):
    """A folder of a subset as fast.ai splits it: the last training image is of ILSVRC's own val."""
    wnids = find_subset(name).wnids
    write_folder(root, wnids, train=train, test=test)
    for number, wnid in enumerate(wnids):
        image = root / "train" / wnid / f"{wnid}_{train - 1}.JPEG"
        image.rename(image.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))


@pytest.mark.parametrize("name", ["imagenette", "imagewoof"])
@pytest.mark.parametrize("asked", [{"subset": True}, {}])
def test_fastais_splits_of_a_folder_are_named_as_such(tmp_path, name, asked):
    _fastai(tmp_path / "in", name)
    subset = {"subset": name} if asked else {}
    config = data_config(path=tmp_path / "in", cache_dir=str(tmp_path / "cache"), **subset)
    assert describe_dataset(config).name == f"{name}_fastai"
    info = load_dataset(config).info
    assert info.name == info.identity["name"] == f"{name}_fastai"
    assert sorted(info.identity["classes"]) == sorted(find_subset(name).wnids)
    assert info.identity["resolution"] == [16, 16]


def test_the_split_of_ilsvrc_keeps_the_published_name(tmp_path):
    _fastai(tmp_path / "in", "imagenette")
    for image in (tmp_path / "in" / "train").glob("*/ILSVRC2012_val_*"):
        image.rename(tmp_path / "in" / "val" / image.parent.name / image.name)
    assert describe_dataset(data_config(path=tmp_path / "in", subset="imagenette")).name == (
        "imagenette"
    )


def test_fastais_training_images_beside_ilsvrcs_validation_images_are_a_leak(tmp_path):
    _fastai(tmp_path / "in", "imagenette")
    for image in (tmp_path / "in" / "train").glob("*/ILSVRC2012_val_*"):
        (tmp_path / "in" / "val" / image.parent.name / image.name).symlink_to(image)
    config = data_config(path=tmp_path / "in", subset="imagenette")
    for function in (describe_dataset, load_dataset):
        with pytest.raises(UserError, match="10 of the test images are in train/ too, ILSVRC2012"):
            function(config)


@pytest.mark.skipif(not SHARED.is_dir(), reason="wants fast.ai's sets in ../shared/data")
@pytest.mark.parametrize(
    ("name", "counts"), [("imagenette", (9_469, 3_925)), ("imagewoof", (9_025, 3_929))]
)
def test_the_real_folders_of_fastai_are_known(name, counts):
    plan = describe_dataset(
        data_config(path=SHARED / f"{name}-128", subset=name, resolution=128)
    )
    assert plan.name == f"{name}_fastai" and (plan.num_train, plan.num_test) == counts


@pytest.mark.parametrize("kind", ["BMP", "PPM", "TIFF"])
def test_images_replaced_by_others_of_the_same_length_are_noticed(tmp_path, kind):
    root = tmp_path / "pets"
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(photograph(i, 16, 16))
                image.save(root / split / label / f"{i}.{kind.lower()}", kind)
    config = data_config(path=root, cache_dir=str(tmp_path / "cache"))
    first = load_dataset(config)
    path = root / "train" / "a" / f"0.{kind.lower()}"
    length, time = path.stat().st_size, path.stat().st_mtime_ns
    Image.fromarray(photograph(7, 16, 16)).save(path, kind)
    os.utime(path, ns=(time, time + 10**9))
    assert path.stat().st_size == length
    second = load_dataset(config)
    assert first.info.fingerprint != second.info.fingerprint
    np.testing.assert_array_equal(second.train.images[0], photograph(7, 16, 16))


def test_the_same_images_elsewhere_and_at_another_time_are_the_same_data(tmp_path):
    infos = []
    for name in ("a", "b"):
        write_folder(tmp_path / name / "pets", ["cat", "dog"])
        if name == "b":
            for path in (tmp_path / name).rglob("*.JPEG"):
                os.utime(path, ns=(1, 1))
        config = data_config(path=tmp_path / name / "pets", cache_dir=str(tmp_path / "cache"))
        infos.append(load_dataset(config).info)
    assert infos[0] == infos[1]


def _npz(path, **changes):
    content = {
        "x_train": np.stack([photograph(i, 8, 8) for i in range(6)]),
        "y_train": np.arange(6) % 3,
        "x_test": np.stack([photograph(i, 8, 8) for i in range(3)]),
        "y_test": np.arange(3),
    }
    np.savez(path, **content | changes)
    return data_config(source="npz", path=path, resolution=0)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("label", "said"),
    [
        (2**32 + 1, "Label 4294967297 in"),
        (2**31, "Label 2147483648 in"),
        (np.uint64(2**64 - 1), "Label 18446744073709551615 in"),
        (-1, "Label -1 in"),
        (3, "Label 3 in"),
        (0.5, "are float64"),
        (1.0, "are float64"),
        (True, "are bool"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, split, label, said):
    labels = {"train": np.arange(6) % 3, "test": np.arange(3)}[split]
    labels = labels.astype(np.asarray(label).dtype)
    labels[1] = label
    names = {"class_names": ["a", "b", "c"]}
    config = _npz(tmp_path / "x.npz", **{f"y_{split}": labels}, **names)
    with pytest.raises(UserError, match=said):
        load_dataset(config)


def test_a_label_of_millions_costs_nothing(tmp_path):
    config = _npz(tmp_path / "x.npz", y_train=np.array([0, 1, 2, 0, 1, 2**31 - 1]))
    with pytest.raises(UserError, match="Label 2147483647 in the train split"):
        load_dataset(config)


@pytest.mark.parametrize(
    ("labels", "said"),
    [([0, 2], "Label 2"), ([-1, 1], "Label -1"), ([0.0, 1.0], "float64"), ([False, True], "bool")],
)
def test_labels_of_someones_own_source_are_checked(monkeypatch, labels, said):
    listing = Listing(np.array(labels), lambda i: photograph(i), str, "x")
    good = Listing(np.array([0, 1]), lambda i: photograph(i), str, "y")
    own = lambda config, cache_dir: Source("mine", ("a", "b"), 3, good, listing)  # noqa: E731
    monkeypatch.setitem(load.OPENERS, "mine", own)
    with pytest.raises(UserError, match=said):
        load_dataset(data_config(source="mine"))


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((20, 26, 3)), photograph(0).astype(np.int64), photograph(0) > 3, photograph(0)[0]],
)
def test_pixels_of_someones_own_source_are_bytes(monkeypatch, tmp_path, pixels):
    listing = Listing(np.array([0, 1]), lambda i: pixels, str, f"{pixels.dtype}{pixels.shape}")
    own = lambda config, cache_dir: Source("mine", ("a", "b"), 3, listing, listing)  # noqa: E731
    monkeypatch.setitem(load.OPENERS, "mine", own)
    with pytest.raises(UserError, match="no image of class a can be read.*not uint8"):
        load_dataset(data_config(source="mine", cache_dir=str(tmp_path)))


def test_fractions_cut_to_bytes_are_said(tmp_path):
    images = (np.stack([photograph(i, 8, 8) for i in range(6)]) / 255).round().astype(np.uint8)
    with pytest.warns(UserWarning, match="are 0 and 1 of 255: were they in"):
        load_dataset(_npz(tmp_path / "x.npz", x_train=images))


def test_labels_of_idx_files_are_checked(tmp_path):
    write_idx(tmp_path, compressed=False)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] = 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="Label 255 in the test split"):
        load_dataset(data_config(source="idx", name="mnist", path=tmp_path, resolution=0))


@pytest.mark.parametrize("largest", [40, 255, 256, 40_000, 65_535])
@pytest.mark.parametrize("kind", ["png", "pgm", "tiff"])
def test_sixteen_bits_are_read_by_their_upper_eight(tmp_path, largest, kind):
    deep = np.linspace(0, largest, 64).astype(np.uint16).reshape(8, 8)
    path = tmp_path / f"deep.{kind}"
    if kind == "pgm":  # Pillow writes none
        path.write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(path)
    settings = ImageSettings(0, "squash", True, 1, False)
    np.testing.assert_array_equal(decode(path.read_bytes(), settings)[0][..., 0], deep >> 8)


def test_what_is_no_file_among_the_images_is_passed_over_with_a_warning(tmp_path):
    root = tmp_path / "pets"
    write_folder(root, ["a", "b"])
    os.mkfifo(root / "train" / "a" / "pipe.jpg")
    (root / "train" / "b" / "device.png").symlink_to("/dev/zero")
    config = data_config(path=root, cache_dir=str(tmp_path / "cache"))
    told = r"2 images of the train split .* are passed over.*pipe.jpg.*device.png"
    with pytest.warns(UserWarning, match=told):
        assert describe_dataset(config).num_train == 6
    with pytest.warns(UserWarning, match=told):
        assert len(load_dataset(config).train) == 6


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_of_nothing_but_pipes_is_told_in_one_line(tmp_path, split):
    root = tmp_path / "pets"
    write_folder(root, ["a", "b"])
    for path in (root / split / "b").iterdir():
        path.unlink()
        os.mkfifo(path)
    config = data_config(path=root, cache_dir=str(tmp_path / "cache"))
    for function in (describe_dataset, load_dataset):
        with warnings.catch_warnings(), pytest.raises(UserError) as told:
            warnings.simplefilter("error")
            function(config)
        count = {"train": 3, "val": 2}[split]
        assert str(told.value).startswith(
            f"No images of class b in the {split} split of {root}. {count} images of the {split} "
            f"split of {root} are passed over, for they are no files: {root / split / 'b'}"
        )
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_an_image_of_one_row_costs_no_gigabytes(tmp_path, resize, size):
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "row.png")
    code = (
        "import resource, sys\n"
        "from edf_jax.data.decode import ImageSettings, decode\n"
        f"content = open({str(tmp_path / 'row.png')!r}, 'rb').read()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        f"pixels, _ = decode(content, ImageSettings(128, {resize!r}, True, 3, False))\n"
        "assert pixels.shape == (128, 128, 3) and (pixels == (10, 20, 30)).all()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # A child's figure begins at its parent's.
    assert int(done.stdout) <= max(own, 1_000_000)  # kilobytes


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"bell\x07"])
def test_class_names_that_cannot_be_written_are_refused_at_the_start(tmp_path, name):
    root = tmp_path / "pets"
    write_folder(root, ["a", "b"], train=2, test=1)
    for split in ("train", "val"):
        place = os.fsencode(root / split)
        os.rename(place + b"/b", place + b"/" + name)
    config = data_config(path=root, cache_dir=str(tmp_path / "cache"))
    for function in (describe_dataset, load_dataset):
        with pytest.raises(UserError, match="name of a class, .*, can't be written") as refusal:
            function(config)
        str(refusal.value).encode("ascii")
        assert "\n" not in str(refusal.value)


def test_class_names_with_dollars_and_backslashes_are_taken(tmp_path):
    names = [r"$\frac{1}{0}$", r"a\b", "100%"]
    write_folder(tmp_path / "odd", names)
    config = data_config(path=tmp_path / "odd", cache_dir=str(tmp_path / "cache"))
    assert load_dataset(config).info.class_names == tuple(sorted(names))


def test_two_classes_of_one_name_get_different_ones(tmp_path):
    cranes = ["n02012849", "n03126707", "n01443537"]
    write_folder(tmp_path / "in", cranes)
    words = "n02012849\tcrane, bird\nn03126707\tcrane, machine\n"
    (tmp_path / "in" / "words.txt").write_text(words)
    config = data_config(path=tmp_path / "in", cache_dir=str(tmp_path / "cache"))
    info = load_dataset(config).info
    assert info.class_names == ("goldfish", "crane (n02012849)", "crane (n03126707)")
    config = _npz(tmp_path / "x.npz", class_names=["crane", "crane", "fish"])
    assert load_dataset(config).info.class_names == ("crane (0)", "crane (1)", "fish")


@pytest.mark.parametrize("step", ["the matrix", "its record"])
def test_a_full_disk_in_zca_is_told_in_a_line(tmp_path, monkeypatch, step):
    config = _npz(tmp_path / "x.npz")
    config.zca, config.cache_dir = True, str(tmp_path / "cache")
    real, calls = np.save, []

    def full(file, array):
        calls.append(1)
        raise OSError(28, "No space left on device")

    if step == "the matrix":
        monkeypatch.setattr(whitening.np, "save", full)
    else:
        monkeypatch.setattr(os, "replace", full)
        monkeypatch.setattr(pathlib.Path, "replace", full)
    with pytest.raises(UserError, match="(?i)no space left") as refusal:
        load_dataset(config)
    assert "\n" not in str(refusal.value) and calls
    assert not list((tmp_path / "cache").glob("*.npy"))
    monkeypatch.setattr(whitening.np, "save", real)


def test_damaged_settings_of_zca_are_made_again(tmp_path):
    config = _npz(tmp_path / "x.npz")
    config.zca, config.cache_dir = True, str(tmp_path / "cache")
    first = load_dataset(config)
    (record,) = (tmp_path / "cache").glob("zca_of_*.json")
    record.write_text(record.read_text()[:-4])
    with pytest.warns(UserWarning, match="is damaged; it is made again"):
        assert load_dataset(config).info == first.info
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(config)
