"""A set meets the classes that it was made of, or none."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from edf_jax import distilled_set
from edf_jax.config.resolve import default_config, resolve
from edf_jax.data import Dataset, DatasetInfo, Split
from edf_jax.data.normalisation import IMAGENET
from edf_jax.data.subsets import find_subset
from edf_jax.distilled_set import DistilledSet
from edf_jax.evaluate import labelled_images
from edf_jax.evaluate.stage import evaluate_run
from edf_jax.export import export
from edf_jax.runtime.errors import UserError
from tests.data_layouts import marked

_SIDE = 8


def _info(name="imagenette", indices=None, called=None) -> DatasetInfo:
    subset = find_subset(name.removesuffix("_fastai"))
    return DatasetInfo(
        called or name,
        subset.class_names,
        (_SIDE, _SIDE, 3),
        IMAGENET,
        subset.indices if indices is None else indices,
        "0123456789abcdef",
    )


def _distilled(info: DatasetInfo) -> DistilledSet:
    pixels = np.stack([marked(label, seed=label)[:_SIDE, :_SIDE] for label in range(10)])
    logits = np.random.default_rng(0).normal(size=(10, 10)) + 4 * np.eye(10)
    return DistilledSet(
        np.asarray(IMAGENET.apply(pixels), np.float32),
        logits.astype(np.float32),
        0.02,
        info.class_names,
        IMAGENET,
        7,
        origin=info.identity,
    )


def _permuted(distilled: DistilledSet, order: np.ndarray) -> DistilledSet:
    """The same set, its labels' columns in another order of classes."""
    origin = dict(distilled.origin)
    if origin:
        origin["classes"] = [origin["classes"][i] for i in order]
    names = tuple(distilled.class_names[i] for i in order)
    labels = np.ascontiguousarray(distilled.labels[:, order])
    return dataclasses.replace(distilled, labels=labels, class_names=names, origin=origin)


def _save(distilled: DistilledSet, to: str, folder) -> str:
    if to == "safetensors":
        distilled.save(folder / "set.safetensors")
        return str(folder / "set.safetensors")
    if to == "torch":
        pytest.importorskip("torch")
    return str(export(distilled, to, folder / ("set.npz" if to == "npz" else to)))


_FORMS = ("safetensors", "npz", "torch", "images")


def test_a_set_carries_classes_resolution_and_digest(tmp_path):
    info = _info()
    found = distilled_set.load(_save(_distilled(info), "safetensors", tmp_path))
    assert found.origin == {
        "name": "imagenette",
        "classes": list(find_subset("imagenette").wnids),
        "resolution": [_SIDE, _SIDE],
        "digest": info.fingerprint,
    }
    folder = export(found, "images", tmp_path / "images")
    record = json.loads((folder / "distilled_set.json").read_text())
    assert record["origin"] == found.origin and record["name"] == "imagenette"
    card = (export(found, "huggingface", tmp_path / "hub") / "README.md").read_text()
    card = " ".join(card.split())
    assert "Of `imagenette`, at 8 x 8 pixels; digest 0123456789abcdef." in card
    assert "n01440764 (tench), n02102040 (English springer)" in card
    fastai = dataclasses.replace(found, origin={**found.origin, "name": "imagenette_fastai"})
    card = (export(fastai, "huggingface", tmp_path / "hub") / "README.md").read_text()
    card = " ".join(card.split())
    assert "`imagenette_fastai`, split as fast.ai does and not as the published set" in card


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("known", [True, False])
def test_a_set_of_other_classes_is_refused_in_a_line(tmp_path, form, known):
    distilled = _distilled(_info("imagewoof"))
    if not known:  # as earlier versions wrote them
        distilled = dataclasses.replace(distilled, origin={})
    path = _save(distilled, form, tmp_path)
    assert labelled_images.read(path, _info("imagewoof")).labels.shape == (10, 10)
    with pytest.raises(UserError, match="is of other classes.*than the data .imagenette.") as told:
        labelled_images.read(path, _info())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("known", [True, False])
def test_the_same_classes_in_another_order_are_mapped(tmp_path, form, known):
    info = _info()
    order = np.random.default_rng(3).permutation(10)
    distilled = _distilled(info)
    if not known:
        distilled = dataclasses.replace(distilled, origin={})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = labelled_images.read(_save(distilled, form, tmp_path / "a"), info)
    mapped = labelled_images.read(_save(_permuted(distilled, order), form, tmp_path / "b"), info)
    assert mapped.digest == plain.digest
    np.testing.assert_array_equal(mapped.labels, plain.labels)


def test_a_permuted_set_evaluates_to_the_same_digit(tmp_path):
    info = _info()
    distilled = _distilled(info)
    images = np.stack([marked(i % 10, seed=i)[:_SIDE, :_SIDE] for i in range(40)])
    split = Split(images, np.arange(40, dtype=np.int32) % 10)
    results = []
    for name, order in (("a", np.arange(10)), ("b", np.arange(10)[::-1])):
        (tmp_path / name).mkdir()
        path = _save(_permuted(distilled, order), "safetensors", tmp_path / name)
        values = {"evaluate.distilled": path, "evaluate.epochs": 3, "evaluate.num": 2}
        values |= {"evaluate.baselines": "", "model.width": 4, "model.depth": 1}
        config = resolve(default_config(**values, **{"data.resolution": _SIDE}))
        result = evaluate_run(config, Dataset(split, split, info), [], tmp_path / name)
        assert result["dataset"] == "imagenette"
        results.append(result["distilled_mean"])
    assert results[0] == results[1] > 0


@pytest.mark.parametrize("names", [("imagenette", "imagenette_fastai")] * 2)
def test_a_set_of_another_split_of_the_same_images_is_refused(tmp_path, names):
    made, met = (_info("imagenette", called=name) for name in names)
    for mine, other in ((made, met), (met, made)):
        path = _save(_distilled(mine), "safetensors", tmp_path)
        labelled_images.read(path, mine)
        with pytest.raises(UserError, match="split the same images differently"):
            labelled_images.read(path, other)


def test_classes_that_nobody_named_are_taken_in_order(tmp_path):
    info = _info()
    nameless = dataclasses.replace(
        info, class_names=tuple(f"class {i}" for i in range(10)), imagenet_indices=None
    )
    path = _save(_distilled(info), "safetensors", tmp_path)
    np.testing.assert_array_equal(
        labelled_images.read(path, nameless).labels, _distilled(info).labels
    )


@pytest.mark.parametrize("form", (*_FORMS, "huggingface", "tfds"))
def test_two_classes_of_one_name_export_and_load(tmp_path, form):
    if form == "tfds":
        tfds = pytest.importorskip("tensorflow_datasets")
    info = _info()
    names = ("crane", "crane", *info.class_names[2:])
    info = dataclasses.replace(info, class_names=names)
    distilled = _distilled(info)
    path = _save(distilled, form, tmp_path)
    if form == "tfds":
        found = tfds.builder_from_directory(path).info.features["label"].names
        assert found[:2] == [f"crane ({wnid})" for wnid in info.class_ids[:2]]
    elif form == "huggingface":
        found = distilled_set.load(tmp_path / form / "distilled.safetensors")
        assert found.class_names == names
    else:
        labels = labelled_images.read(path, info).labels
        softmax = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (labels, distilled.labels)]
        np.testing.assert_allclose(*softmax, atol=1e-6)


def _npz(path, **changes):
    distilled = _distilled(_info())
    content = {"images": distilled.images, "labels": distilled.labels, "alpha": np.float32(0.02)}
    content = {k: v for k, v in (content | changes).items() if v is not None}
    np.savez(path, **content)
    return str(path)


_BYTES = np.zeros((10, _SIDE, _SIDE, 3), np.uint8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alpha": np.float32(np.nan)}, "the rate nan"),
        ({"alpha": np.float32(np.inf)}, "the rate inf"),
        ({"alpha": np.float32(-0.1)}, "the rate -0.1"),
        ({"alpha": np.ones(2)}, r"alpha is float64 \[2\], not one number"),
        ({"alpha": np.array("0.1")}, "alpha is .U3"),
        ({"alpha": np.array(True)}, "alpha is bool"),
        ({"labels": np.arange(10) - 1}, "Label -1 in"),
        ({"labels": np.arange(1, 11)}, "Label 10 in"),
        ({"labels": np.arange(10) + 2**32}, "Label 4294967305 in"),
        ({"labels": np.arange(10) / 2}, "float64"),
        ({"labels": np.arange(10) > 4}, "bool"),
        ({"labels": np.eye(10) > 0}, "bool"),
        ({"images": None, "pixels": _BYTES + 1.5}, r"pixels are float64 and not in \[0, 1\]"),
        ({"images": None, "pixels": _BYTES - 0.5}, r"not in \[0, 1\]"),
        ({"images": None, "pixels": _BYTES + np.nan}, r"not in \[0, 1\]"),
        ({"images": None, "pixels": _BYTES.astype(np.int64)}, "pixels are int64"),
        ({"images": None, "pixels": _BYTES > 0}, "pixels are bool"),
        ({"images": _BYTES.astype(np.int32)}, "images are int32"),
        ({"images": np.arange(1920.0).reshape(_BYTES.shape) % 256}, "look like pixels from 0"),
    ],
)
def test_rates_labels_and_pixels_that_cannot_be_are_refused(tmp_path, changes, said):
    path = _npz(tmp_path / "set.npz")
    assert labelled_images.read(path, _info()).alpha == pytest.approx(0.02)
    with pytest.raises(UserError, match=said) as told:
        labelled_images.read(_npz(tmp_path / "set.npz", **changes), _info())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("label", ["-1", "10", "1.5", "True", "4294967296", "", "9" * 40])
def test_labels_of_a_table_are_numbers_of_classes(tmp_path, label):
    Image.fromarray(_BYTES[0]).save(tmp_path / "a.png")

    def write(value):
        with open(tmp_path / "labels.csv", "w", newline="") as stream:
            csv.writer(stream).writerows([["file", "label"], ["a.png", value]])

    write("3")
    assert labelled_images.read(str(tmp_path), _info()).classes.tolist() == [3]
    write(label)
    with pytest.raises(UserError):
        labelled_images.read(str(tmp_path), _info())


def test_images_of_a_folder_are_read_as_data_is(tmp_path):
    """Sixteen bits by their upper eight, what is transparent on white."""
    deep = np.linspace(0, 65535, _SIDE**2).astype(np.uint16).reshape(_SIDE, _SIDE)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.new("RGBA", (_SIDE, _SIDE), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    rows = "file,label\ndeep.png,0\nclear.png,1\n"
    (tmp_path / "labels.csv").write_text(rows)
    found = labelled_images.read(str(tmp_path), _info())
    pixels = IMAGENET.invert(found.images) * 255
    np.testing.assert_allclose(pixels[0, ..., 0], deep >> 8, atol=1e-3)
    np.testing.assert_allclose(pixels[1], 255, atol=1e-3)


def test_subfolders_are_matched_by_name_or_wordnet_id(tmp_path, caplog):
    info = _info()
    for how, names in (("names", info.class_names), ("ids", info.class_ids)):
        for label, name in enumerate(names):
            (tmp_path / how / name).mkdir(parents=True)
            image = Image.new("RGB", (_SIDE, _SIDE), (20 * label,) * 3)
            image.save(tmp_path / how / name / "0.png")
        found = labelled_images.read(str(tmp_path / how), info)
        grey = np.rint(IMAGENET.invert(found.images)[:, 0, 0, 0] * 255 / 20).astype(int)
        np.testing.assert_array_equal(found.classes, grey)
    with pytest.raises(UserError, match="are other classes of ImageNet than the data's"):
        labelled_images.read(str(tmp_path / "ids"), _info("imagewoof"))
    for number, folder in enumerate((tmp_path / "names").iterdir()):
        folder.rename(tmp_path / "names" / f"{number}")
    labelled_images.read(str(tmp_path / "names"), info)
    assert "taken in order" in caplog.text
