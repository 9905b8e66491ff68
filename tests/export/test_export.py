"""Exports are read back by the tools they are for, and hold the same set."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import edf_jax
from edf_jax.data import DatasetInfo, Normalisation
from edf_jax.distilled_set import DistilledSet
from edf_jax.evaluate import labelled_images
from edf_jax.export import write as export
from edf_jax.export.__main__ import main
from edf_jax.export.formats import as_uint8, describe, probabilities
from edf_jax.export.huggingface import dataset_card
from edf_jax.methods.parametrisation.multi_formation import multi_formation
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.runtime.errors import UserError

NAMES = ("tench", 'a "b", c/d', "Käfer")
RESULT = {
    "distilled_mean": 51.0,
    "distilled_std": 1.5,
    "distilled_num_eval": 3,
    "distilled_step": 7,
    "best_on_test_mean": 53.0,
    "best_on_test_std": 1.0,
    "best_on_test_num_eval": 3,
    "best_on_test_step": 5,
    "random_mean": 20.0,
    "random_std": 2.0,
    "full_mean": 90.0,
    "command": "python -m edf_jax.main --config=configs/some.py:ipc2",
    "versions": {"jax": "0.10.2"},
    "hardware": {"device": "1 x cpu", "cpu": "a processor"},
}


def _set(channels: int = 3, zca: bool = False, cache_dir: str = "") -> DistilledSet:
    rng = np.random.default_rng(0)
    mean, std = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)) if channels == 3 else ((0.3,), (0.2,))
    normalisation = Normalisation(mean[:channels], std[:channels])
    if zca:
        real = rng.integers(0, 256, (40, 6, 5, channels)).astype(np.uint8)
        normalisation = Normalisation.fit_zca(real, cache_dir)
    images = normalisation.apply(rng.uniform(0, 1, (7, 6, 5, channels)).astype(np.float32))
    logits = 3 * np.eye(3)[np.arange(7) % 3] + rng.uniform(0, 1, (7, 3))
    config = {"data.source": "tfds", "data.name": "some-set", "method": "edf", "model.width": 8}
    if zca:
        config["data.cache_dir"] = cache_dir
    logits = np.float32(logits)
    return DistilledSet(np.asarray(images), logits, 0.0321, NAMES, normalisation, 7, config=config)


@pytest.fixture
def run(tmp_path):
    """A run's folder with its last set."""
    folder = tmp_path / "run"
    _set().save(folder / "distilled" / "last.safetensors")
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def test_images_folder_has_every_image_and_its_soft_label(run):
    distilled = _set()
    out = export.export_run(run, "images")
    assert out == run / "exported" / "images"
    with open(out / "labels.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7
    for i, row in enumerate(rows):
        pixels = np.asarray(Image.open(out / row["file"]))
        np.testing.assert_array_equal(pixels, as_uint8(distilled.pixels)[i])
        soft = np.array([row[f"probability_{c}"] for c in range(3)], np.float32)
        np.testing.assert_array_equal(soft, probabilities(distilled.labels)[i])
        assert int(row["label"]) == distilled.classes[i]
        assert row["class_name"] == NAMES[distilled.classes[i]]
    # Readers such as torchvision's ImageFolder number classes in the order of folders' names.
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert [int(name[0]) for name in folders] == list(range(3))


def test_exports_hold_decoded_images_and_say_what_is_stored(tmp_path):
    distilled = _set()
    grids = dataclasses.replace(
        distilled,
        labels=np.repeat(distilled.labels, 4, axis=0),
        parametrisation=multi_formation(2),
    )
    out = export.export(grids, "images", tmp_path / "images")
    assert len(list(out.glob("*/*.png"))) == 28
    with np.load(export.export(grids, "npz", tmp_path / "a.npz"), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["images"], grids.images)
        record = json.loads(str(arrays["record"]))
    assert record["num_images"] == 28
    assert record["stored"] == {
        "parametrisation": "multi_formation", "factor": 2, "num_images": 7, "dtype": "float32",
        "image_bytes": 7 * 6 * 5 * 3 * 4, "label_bytes": 28 * 3 * 4,
        "decoded_image_bytes": 28 * 6 * 5 * 3 * 4,
    }  # fmt: skip
    card = dataset_card(describe(grids, RESULT))
    assert "they take 2,520 bytes (7 stored images, `multi_formation` with factor\n2;" in card
    assert "in float32, 10,080) and the labels' logits 336 (float32)." in card
    assert "random real images of as many bytes" in card
    assert "the images take 2,520 bytes and" in dataset_card(describe(distilled, RESULT))


def test_grey_images_stay_grey(tmp_path):
    distilled = _set(channels=1)
    out = export.export(distilled, "images", tmp_path / "grey")
    for i, path in enumerate(sorted(out.glob("*/*.png"), key=lambda p: p.name)):
        picture = Image.open(path)
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), as_uint8(distilled.pixels)[i, ..., 0])


def test_npz_loads_without_pickling(run):
    distilled = _set()
    with np.load(export.export_run(run, "npz"), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["images"], distilled.images)
        np.testing.assert_array_equal(arrays["pixels"], distilled.pixels)
        np.testing.assert_array_equal(arrays["labels"], distilled.labels)
        np.testing.assert_allclose(arrays["probabilities"].sum(axis=1), 1, rtol=1e-6)
        assert tuple(arrays["class_names"]) == NAMES
        assert float(arrays["alpha"]) == pytest.approx(0.0321)
        restored = arrays["pixels"] - arrays["mean"]
        np.testing.assert_allclose(restored / arrays["std"], arrays["images"], atol=1e-5)
        assert json.loads(str(arrays["record"]))["accuracy"]["mean"] == 51.0


def test_torch_triple_loads_with_weights_only(run):
    torch = pytest.importorskip("torch")
    distilled = _set()
    out = export.export_run(run, "torch")
    images, labels, rate = (
        torch.load(out / f"{name}_best.pt", weights_only=True)
        for name in ("images", "labels", "lr")
    )
    assert images.dtype == labels.dtype == rate.dtype == torch.float32
    np.testing.assert_array_equal(images.numpy(), distilled.images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(labels.numpy(), distilled.labels)
    assert float(rate) == pytest.approx(0.0321)
    assert json.loads((out / "distilled_set.json").read_text())["class_names"] == list(NAMES)


def test_parquet_holds_what_the_set_does(run):
    parquet = pytest.importorskip("pyarrow.parquet")
    distilled = _set()
    out = export.export_run(run, "huggingface")
    columns = parquet.read_table(out / "data" / "train-00000-of-00001.parquet").to_pydict()
    assert columns["label"] == distilled.classes.tolist()
    soft = np.asarray(columns["soft_label"], np.float32)
    np.testing.assert_array_equal(soft, probabilities(distilled.labels))
    assert all(image["bytes"].startswith(b"\x89PNG") for image in columns["image"])
    np.testing.assert_array_equal(
        edf_jax.load(out / "distilled.safetensors").images, distilled.images
    )


def test_hugging_face_folder_loads_with_load_dataset(run, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs pip install 'edf_jax[export]'")
    distilled = _set()
    out = export.export_run(run, "huggingface")
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names == list(NAMES)
    for i, row in enumerate(loaded):
        np.testing.assert_array_equal(np.asarray(row["image"]), as_uint8(distilled.pixels)[i])
        assert row["label"] == distilled.classes[i]
        np.testing.assert_array_equal(
            np.asarray(row["soft_label"], np.float32), probabilities(distilled.labels)[i]
        )


def test_card_tells_accuracy_of_this_very_set():
    distilled = _set()
    card = dataset_card(describe(distilled, RESULT))
    assert "| this set | 51.0 ± 1.5 |" in card and "the run's last" in card
    assert "| as many random real images | 20.0 ± 2.0 |" in card
    assert RESULT["command"] in card and "0.0321" in card
    best = dataclasses.replace(distilled, step=5)
    assert "| this set | 53.0 ± 1.0 |" in dataset_card(describe(best, RESULT))
    assert "best on test images" in dataset_card(describe(best, RESULT))
    names = ("mean", "std", "num_eval")
    held_out = {f"best_on_held_out_{name}": RESULT[f"distilled_{name}"] for name in names}
    result = {**RESULT, **held_out, "best_on_held_out_step": 7}
    card = dataset_card(describe(distilled, result, "best_on_held_out"))
    assert "This set is the run's best on training images that were held out." in card
    other = dataclasses.replace(distilled, step=3)
    assert "Accuracy" not in dataset_card(describe(other, RESULT))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("last", "This set is the run's last, chosen by no images."),
        ("best_on_test", "This set is the run's best on test images, which flatters its accuracy"),
        ("best_on_held_out", "This set is the run's best on training images that were held out."),
        ("step_000003", ""),
    ],
)
def test_card_tells_by_what_images_the_set_was_chosen(run, name, told):
    path = run / "distilled" / f"{name}.safetensors"
    dataclasses.replace(_set(), step=7 if told else 3).save(path)
    card = " ".join((export.export_run(path, "huggingface") / "README.md").read_text().split())
    assert told in card and ("This set is" in card) == bool(told)


def test_card_tells_the_training_of_the_run():
    config = {"evaluate.epochs": 300, "evaluate.batch": 64, "augment.strategy": "color_crop"}
    card = dataset_card(describe(dataclasses.replace(_set(), config=config), RESULT))
    card = " ".join(card.split())
    assert "for 301 epochs in batches of 64, augmented by DSA (color, crop)" in card
    assert "After 152 epochs the rate falls to a tenth" in card
    plain = dataclasses.replace(_set(), config={"augment.strategy": "none"})
    assert "without augmentation" in dataset_card(describe(plain, {}))


def test_tfds_folder_reads_without_tensorflow(run):
    tfds = pytest.importorskip("tensorflow_datasets")
    distilled = _set()
    builder = tfds.builder_from_directory(export.export_run(run, "tfds"))
    assert builder.info.features["label"].names == list(NAMES)
    source = builder.as_data_source("train")
    assert len(source) == 7
    for i in range(7):
        np.testing.assert_array_equal(source[i]["image"], as_uint8(distilled.pixels)[i])
        assert source[i]["label"] == distilled.classes[i]
        np.testing.assert_array_equal(source[i]["soft_label"], probabilities(distilled.labels)[i])


def test_hard_labels_become_exact_probabilities():
    logits = hard_labels(np.array([2, 0]), 3)
    np.testing.assert_array_equal(probabilities(logits), np.eye(3, dtype=np.float32)[[2, 0]])


def test_record_measures_what_eight_bits_lose():
    distilled = _set()
    beyond = distilled.images.copy()
    beyond[0] += 10  # far out of a pixel's range
    assert describe(distilled, {})["rounding_rms"] < 0.01
    assert describe(dataclasses.replace(distilled, parameters=beyond), {})["rounding_rms"] > 1


def test_whitened_sets_export_pixels_turned_back(tmp_path):
    distilled = _set(zca=True, cache_dir=str(tmp_path / "cache"))
    distilled.save(tmp_path / "set.safetensors")
    out = export.export_run(tmp_path / "set.safetensors", "images")
    assert out == tmp_path / "exported" / "images"
    record = json.loads((out / "distilled_set.json").read_text())
    assert record["zca"] == distilled.normalisation.zca.digest
    for i, path in enumerate(sorted(out.glob("*/*.png"), key=lambda p: p.name)):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), as_uint8(distilled.pixels)[i])


@pytest.mark.parametrize("to", ["images", "npz", "torch"])
def test_exports_can_be_evaluated(run, to):
    if to == "torch":
        pytest.importorskip("torch")
    distilled = _set()
    info = DatasetInfo("some", NAMES, (6, 5, 3), distilled.normalisation, None, "")
    subject = labelled_images.read(str(export.export_run(run, to)), info)
    soft_labels = probabilities(distilled.labels)
    np.testing.assert_allclose(probabilities(subject.labels), soft_labels, atol=1e-6)
    # PNG rounds to 8 bits.
    tolerance = 0.011 if to == "images" else 1e-6
    np.testing.assert_allclose(subject.images, distilled.images, atol=tolerance)
    assert subject.alpha == pytest.approx(0.0321)


def test_an_earlier_export_is_replaced_and_other_files_are_not_touched(run, tmp_path):
    out = export.export_run(run, "images")
    (out / "labels.csv").write_text("old")
    export.export_run(run, "images")
    assert (out / "labels.csv").read_text().startswith("file,label")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        export.export_run(run, "images", mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    (out / "notes.txt").write_text("kept beside the images")
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\)"):
        export.export_run(run, "images")
    assert (out / "notes.txt").exists()


def test_an_npz_file_that_is_no_export_is_not_touched(run, tmp_path):
    out = export.export_run(run, "npz")
    assert export.export_run(run, "npz") == out
    np.savez(tmp_path / "mine.npz", images=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    for name in ("mine.npz", "text.npz"):
        content = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f"{name} is no export of ours"):
            export.export_run(run, "npz", tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


def test_a_failed_export_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def fail(distilled, record, out):
        (out / "half").write_text("x")
        raise UserError("no room")

    monkeypatch.setitem(export._WRITERS, "images", fail)
    with pytest.raises(UserError, match="no room"):
        export.export_run(run, "images", tmp_path / "elsewhere" / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@contextlib.contextmanager
def _files_no_larger_than(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("to", export.FORMATS)
def test_a_disk_that_takes_no_more_is_told_in_one_line(run, tmp_path, to):
    if to == "torch":
        pytest.importorskip("torch")
    if to == "tfds":
        pytest.importorskip("tensorflow_datasets")
    out = tmp_path / "elsewhere" / ("set.npz" if to == "npz" else "set")
    with pytest.raises(UserError, match=f"{out} can't be written") as told:
        with _files_no_larger_than(64):
            export.export_run(run, to, out)
    assert "\n" not in str(told.value)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--to=npz"], "--run"),
        (["--run=RUN"], "--to"),
        (["--run=RUN", "--to=jpeg"], "jpeg"),
        (["--run=nowhere", "--to=npz"], "no distilled set at nowhere"),
        (["--run=RUN", "--to=npz", "--out=folder"], ".npz"),
        (["--run=RUN", "--to=npz", "--colour=red"], "--colour"),
        (["--run=RUN/result.json", "--to=npz"], "can't be read"),
        (["--run=RUN", "--to=images", "--out=RUN/result.json"], "is a file"),
        (["--run=RUN", "--to=images", "--out=RUN/result.json/x"], "can't be written"),
    ],
)
def test_mistakes_are_told_in_one_line(run, capsys, arguments, words):
    assert main([argument.replace("RUN", str(run)) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err and told.err.count("\n") == 1


def test_command_prints_where_the_export_is(run, capsys):
    assert main([f"--run={run}/distilled/last.safetensors", "--to=npz"]) == 0
    assert capsys.readouterr().out == f"{run}/exported/distilled.npz\n"


def test_images_of_other_channels_are_refused_by_png_only(tmp_path):
    distilled = _set()
    four = dataclasses.replace(
        distilled,
        parameters=np.zeros((2, 6, 5, 4), np.float32),
        labels=np.zeros((2, 3), np.float32),
        normalisation=Normalisation((0.0,) * 4, (1.0,) * 4),
    )
    with pytest.raises(UserError, match="4"):
        export.export(four, "images", tmp_path / "images")
    export.export(four, "npz", tmp_path / "four.npz")


def test_importing_the_package_alone_imports_nothing_else():
    code = (
        "import sys, edf_jax; heavy = {'jax', 'numpy', 'flax', 'absl'} & set(sys.modules); "
        "assert not heavy, heavy; assert callable(edf_jax.load); assert 'load' in dir(edf_jax)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        edf_jax.lod  # noqa: B018


@pytest.mark.parametrize("form", ["npz", "torch", "huggingface"])
def test_an_export_is_loaded_as_the_set_that_it_was(run, form):
    if form != "npz":
        pytest.importorskip("torch" if form == "torch" else "pyarrow")
    distilled = _set()
    found = edf_jax.load(export.export_run(run, form))
    for name in ("images", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(distilled, name))
    for name in ("class_names", "normalisation", "step", "config", "origin"):
        assert getattr(found, name) == getattr(distilled, name)
    assert found.alpha == pytest.approx(0.0321)


def test_what_is_no_whole_export_is_not_loaded(run, tmp_path):
    with pytest.raises(UserError, match="8-bit images: export as npz, torch or huggingface"):
        edf_jax.load(export.export_run(run, "images"))
    np.savez(tmp_path / "other.npz", images=np.zeros((1, 2, 2, 3)))
    (tmp_path / "torn.npz").write_bytes(b"PK")
    for name in ("other.npz", "torn.npz", "none.npz"):
        with pytest.raises(UserError, match="can't be read as an export of edf_jax"):
            edf_jax.load(tmp_path / name)


def test_a_set_is_shown_in_a_line():
    told = "7 images of 6 x 5 x 3, 3 classes, soft labels"
    assert repr(_set()) == f"DistilledSet({told}, rate 0.0321)"
