"""Folders of images, in the layouts that labs have."""

from __future__ import annotations

import builtins
import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from edf_jax.data import load_dataset
from edf_jax.data.subsets import find_subset, imagenet_classes
from edf_jax.runtime.errors import UserError
from tests.data_layouts import data_config, jpeg, marked, marks, photograph, write_folder


def _load(root, tmp_path, **changes):
    return load_dataset(data_config(path=root, cache_dir=str(tmp_path / "cache"), **changes))


@pytest.mark.parametrize(
    "name", ["imagenette", "imagewoof", "imageyellow", "bird_easy", "dog_hard"]
)
def test_subsets_of_an_imagenet_folder(tmp_path, name):
    subset = find_subset(name)
    others = [imagenet_classes()[i].wnid for i in (1, 500, 998)]
    # On disk the classes lie in sorted order; a label is the position in the published list.
    write_folder(tmp_path / "in", [*subset.wnids, *others], train=2, test=1)
    dataset = _load(tmp_path / "in", tmp_path, subset=name)
    assert dataset.info.name == name
    assert dataset.info.class_names == subset.class_names
    assert dataset.info.imagenet_indices == subset.indices
    assert dataset.train.images.shape == (20, 16, 16, 3) and dataset.train.labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.train.labels, np.repeat(np.arange(10), 2))
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(marks(split.images), split.labels)


def test_music_hard_loads_as_nine_classes(tmp_path):
    subset = find_subset("music_hard")
    write_folder(tmp_path / "in", subset.wnids)
    with pytest.warns(UserWarning, match="420"):
        dataset = _load(tmp_path / "in", tmp_path, subset="music_hard")
    assert dataset.info.num_classes == 9
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [3] * 9)


def test_class_folders_named_by_index_agree_with_wordnet_ids(tmp_path):
    subset = find_subset("imagefruit")
    write_folder(tmp_path / "wnids", subset.wnids)
    write_folder(tmp_path / "indices", [f"{i:03d}" for i in subset.indices])
    by_wnid = _load(tmp_path / "wnids", tmp_path, subset="imagefruit")
    by_index = _load(tmp_path / "indices", tmp_path, subset="imagefruit")
    np.testing.assert_array_equal(by_wnid.train.images, by_index.train.images)
    np.testing.assert_array_equal(by_wnid.test.labels, by_index.test.labels)


def test_only_the_files_of_the_subset_are_opened(tmp_path, monkeypatch):
    subset = find_subset("imagenette")
    write_folder(tmp_path / "in", [*subset.wnids, "n01443537"], train=1, test=1)
    opened = []
    real_open = builtins.open

    def spy(file, *args, **kwargs):
        opened.append(os.fspath(file) if not isinstance(file, int) else file)
        return real_open(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", spy)
    _load(tmp_path / "in", tmp_path, subset="imagenette")
    images = [f for f in opened if str(f).endswith(".JPEG")]
    assert len(images) == 20 and not any("n01443537" in f for f in images)


def test_ones_own_classes_in_sorted_order(tmp_path):
    write_folder(tmp_path / "pets", ["cat", "dog", "emu"], test_name="test")
    (tmp_path / "pets" / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("x")
    dataset = _load(tmp_path / "pets", tmp_path)
    assert dataset.info.name == "pets" and dataset.info.class_names == ("cat", "dog", "emu")
    assert dataset.info.imagenet_indices is None
    np.testing.assert_array_equal(marks(dataset.train.images), dataset.train.labels)


def test_ones_own_photographs_stand_as_the_camera_says_and_imagenet_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn a quarter clockwise to stand
    buffer = io.BytesIO()
    Image.fromarray(photograph(0, 24, 24)).save(buffer, "JPEG", quality=95, exif=exif)
    for root, classes in (("own", ["a", "b"]), ("imagenet", find_subset("imagenette").wnids)):
        write_folder(tmp_path / root, classes, train=1, test=1)
        first = next((tmp_path / root / "train" / classes[0]).iterdir())
        first.write_bytes(buffer.getvalue())
    stored = np.asarray(Image.open(buffer))
    own = _load(tmp_path / "own", tmp_path, resolution=24)
    published = _load(tmp_path / "imagenet", tmp_path, subset="imagenette", resolution=24)
    np.testing.assert_array_equal(own.train.images[0], np.rot90(stored, -1))
    np.testing.assert_array_equal(published.train.images[0], stored)


def test_tiny_imagenet_as_it_is_unpacked(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    wnids = ["n01443537", "n01629819", "n99999999"]
    for position, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for i in range(3):
            (folder / f"{wnid}_{i}.JPEG").write_bytes(jpeg(marked(position, i)))
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(6):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg(marked(i % 3, i)))
        lines.append(f"val_{i}.JPEG\t{wnids[i % 3]}\t0\t32\t44\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "test" / "images").mkdir(parents=True)
    (root / "test" / "images" / "test_0.JPEG").write_bytes(jpeg(photograph(0)))
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius\nn99999999\tthing, object\n")
    dataset = _load(root, tmp_path, name="tiny_imagenet")
    assert dataset.info.name == "tiny_imagenet"
    assert dataset.info.class_names == ("goldfish", "European fire salamander", "thing")
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 2, 0, 1, 2])
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(marks(split.images), split.labels)


def test_grey_cmyk_16_bit_transparent_and_animated_images_are_used(tmp_path):
    root = tmp_path / "pets"
    write_folder(root, ["a"], train=1, test=1)
    folder = root / "train" / "a"
    image = Image.fromarray(photograph(3, 24, 24))
    grey = np.asarray(image.convert("L"))
    image.convert("L").save(folder / "grey.png")
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    image.convert("P").save(folder / "palette.gif")
    image.convert("1").save(folder / "bits.png")
    rgba = image.convert("RGBA")
    rgba.putalpha(0)
    rgba.save(folder / "clear.png")
    frames = [Image.fromarray(photograph(i, 24, 24)) for i in (3, 4)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"1 of 8 images are used in part: .*moving.gif \(first"):
        dataset = _load(root, tmp_path, resolution=24)
    names = sorted(p.name for p in folder.iterdir())
    images = dict(zip(names, dataset.train.images.astype(int), strict=True))
    colour, grey = np.asarray(image).astype(int), np.repeat(grey[..., None].astype(int), 3, -1)
    for name, expected, tolerance in (
        ("grey.png", grey, 0),
        ("deep.png", grey, 0),
        ("cmyk.jpg", colour, 8),
        ("palette.gif", colour, 20),
        ("moving.gif", colour, 20),
        ("clear.png", np.full((24, 24, 3), 255), 0),
    ):
        assert np.abs(images[name] - expected).mean() <= tolerance, name
    assert set(np.unique(images["bits.png"])) == {0, 255}


def test_images_that_cannot_be_read_are_named_and_left_out(tmp_path):
    root = tmp_path / "pets"
    write_folder(root, ["a", "b"], train=2, test=1)
    folder = root / "train" / "a"
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(jpeg(photograph(0, 100, 100))[:900])
    (folder / "text.png").write_bytes(b"<html>not found</html>")
    with pytest.warns(UserWarning) as warned:
        dataset = _load(root, tmp_path)
    (said,) = (str(w.message) for w in warned)
    for expected in ("3 of 7", "empty.jpg (empty file)", "cut.jpg (", "text.png ("):
        assert expected in said
    assert "\n" not in said
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(marks(dataset.train.images), dataset.train.labels)
    with pytest.warns(UserWarning, match="3 of 7"):  # from the cache too
        _load(root, tmp_path)


def test_a_class_without_readable_images_is_named(tmp_path):
    root = tmp_path / "pets"
    write_folder(root, ["a", "b"], train=1, test=1)
    next((root / "train" / "b").iterdir()).write_bytes(b"")
    with pytest.raises(UserError, match=r"class b .*empty file"):
        _load(root, tmp_path)


def test_missing_parts_are_named(tmp_path):
    root = tmp_path / "in"
    subset = find_subset("imagenette")
    write_folder(root, subset.wnids, train=1, test=1)

    def refused(match, **changes):
        with pytest.raises(UserError, match=match) as refusal:
            _load(**{"root": root, "tmp_path": tmp_path, "subset": "imagenette"} | changes)
        assert "\n" not in str(refusal.value)

    refused("data.path is not set; expected is .*tfds build", root="")
    refused("data.path=.*nowhere is not a folder", root=tmp_path / "nowhere")
    refused(r"none of the class folders of imagefruit", subset="imagefruit")
    (root / "train" / subset.wnids[3]).rename(root / "train" / "elsewhere")
    refused(r"no folder for 1 of the classes: n03000684 \(chain saw\)")
    (root / "train" / "elsewhere").rename(root / "train" / subset.wnids[3])
    next((root / "val" / subset.wnids[2]).iterdir()).unlink()
    refused("No images of class cassette player in the val split")
    shutil.rmtree(root / "val")
    refused("no val/")
    (root / "val").mkdir()
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(jpeg(photograph(0)))
    refused("not sorted into folders")
    shutil.rmtree(root / "train")
    refused("no train/")


def test_missing_parts_of_ones_own_folder_are_named(tmp_path):
    root = tmp_path / "pets"
    (root / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="no class folders"):
        _load(root, tmp_path)
    write_folder(root, ["a", "b"], train=1, test=1)
    (root / "val" / "c").mkdir()
    with pytest.raises(UserError, match="classes that train/ lacks: c"):
        _load(root, tmp_path)
    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match="neither val/ nor test/"):
        _load(root, tmp_path)
