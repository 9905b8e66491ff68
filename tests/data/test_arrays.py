"""idx files and .npz."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from edf_jax.data import arrays, describe_dataset, load_dataset, normalisation
from edf_jax.runtime.errors import UserError
from tests.data_layouts import data_config, write_idx


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
def test_idx_files_gzipped_or_not(tmp_path, compressed, place):
    written = write_idx(tmp_path / place, compressed=compressed)
    config = data_config(source="idx", name="fashion_mnist", path=tmp_path, resolution=0)
    dataset = load_dataset(config)
    for found, expected in zip(
        (dataset.train.images[..., 0], dataset.train.labels,
         dataset.test.images[..., 0], dataset.test.labels),
        written,
    ):  # fmt: skip
        np.testing.assert_array_equal(found, expected)
    assert dataset.info.image_shape == (28, 28, 1) and dataset.train.labels.dtype == np.int32
    assert dataset.info.class_names[9] == "ankle boot"
    assert dataset.info.normalisation == normalisation.FASHION_MNIST
    assert dataset.info.normalisation.apply(dataset.train.images).shape == (40, 28, 28, 1)


def test_the_debian_package_is_found_where_it_installs(tmp_path, monkeypatch):
    write_idx(tmp_path, compressed=True)
    monkeypatch.setattr(arrays, "DEBIAN_FASHION_MNIST", tmp_path)
    config = data_config(source="idx", name="fashion_mnist", resolution=28)
    assert describe_dataset(config).available
    assert len(load_dataset(config).train) == 40


def test_the_real_fashion_mnist_where_it_is_installed():
    if not arrays.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    dataset = load_dataset(data_config(source="idx", name="fashion_mnist", resolution=0))
    assert dataset.train.images.shape == (60_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [1000] * 10)
    measured = normalisation.Normalisation.measured(dataset.train.images)
    constants = normalisation.FASHION_MNIST
    np.testing.assert_allclose(measured.mean + measured.std, constants.mean + constants.std,
                               atol=2e-4)  # fmt: skip


def test_another_resolution_is_prepared_and_cached(tmp_path):
    images, *_ = write_idx(tmp_path / "idx", compressed=False)
    config = data_config(source="idx", name="mnist", path=tmp_path / "idx", resolution=14,
                         cache_dir=str(tmp_path / "cache"))  # fmt: skip
    dataset = load_dataset(config)
    expected = Image.fromarray(images[7]).resize((14, 14), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(dataset.train.images[7, ..., 0], expected)
    assert len(list((tmp_path / "cache").glob("mnist-t*.jsonl"))) == 2


def _spoil(path: pathlib.Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], "cut short"),
        ("train-images-idx3-ubyte", lambda b: b"PK" + b[2:], "not an idx file"),
        ("t10k-images-idx3-ubyte", lambda b: b"", "not an idx file"),
        ("train-labels-idx1-ubyte", lambda b: b[:4] + b"\0\0\0\x14" + b[8:28], "40 images but 20"),
        ("train-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0b", "Label 11 in the train split"),
        ("t10k-labels-idx1-ubyte", lambda b: b.replace(b"\x03", b"\x04"),
         "No images of class three in the test split"),
    ],
)  # fmt: skip
def test_damaged_idx_files_are_named(tmp_path, file, change, said):
    write_idx(tmp_path, compressed=False)
    _spoil(tmp_path / file, change)
    with pytest.raises(UserError, match=said):
        load_dataset(data_config(source="idx", name="mnist", path=tmp_path, resolution=0))


def test_a_cut_gzip_and_missing_files_are_named(tmp_path):
    write_idx(tmp_path, compressed=True)
    config = data_config(source="idx", name="mnist", path=tmp_path, resolution=0)
    _spoil(tmp_path / "t10k-images-idx3-ubyte.gz", lambda b: b[:-40])
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte.gz cannot be read"):
        load_dataset(config)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match="has no t10k-images-idx3-ubyte"):
        load_dataset(config)
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match="no idx files"):
        load_dataset(config)


def _npz(path, **changes):
    generator = np.random.default_rng(0)
    content = {
        "x_train": generator.integers(0, 256, (12, 6, 5, 3), np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": generator.integers(0, 256, (6, 6, 5, 3), np.uint8),
        "y_test": np.arange(6)[:, None] % 3,
    }
    content |= changes
    np.savez(path, **content)
    return content


def test_npz_with_rectangular_images_and_class_names(tmp_path):
    content = _npz(tmp_path / "mine.npz", class_names=["a", "b", "c"])
    dataset = load_dataset(data_config(source="npz", path=tmp_path / "mine.npz", resolution=0))
    np.testing.assert_array_equal(dataset.train.images, content["x_train"])
    np.testing.assert_array_equal(dataset.test.labels, content["y_test"][:, 0])
    assert dataset.info.name == "mine" and dataset.info.class_names == ("a", "b", "c")
    assert dataset.info.image_shape == (6, 5, 3)
    expected = content["x_train"].reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.info.normalisation.mean, expected.mean(0), atol=1e-4)


def test_npz_of_a_known_set_takes_its_constants(tmp_path):
    labels = np.arange(20) % 10
    images = np.zeros((20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "c.npz", train_images=images, train_labels=labels, test_images=images,
             test_labels=labels)  # fmt: skip
    config = data_config(source="npz", name="CIFAR-10", path=tmp_path / "c.npz", resolution=32)
    info = load_dataset(config).info
    assert info.name == "cifar10" and info.class_names[8] == "ship"
    assert info.normalisation == normalisation.CIFAR


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_train": np.zeros((12, 6, 5, 3), np.float32)}, "float32 .* expected is uint8"),
        ({"x_train": np.zeros((12, 30), np.uint8)}, "expected is uint8"),
        ({"y_train": np.zeros(12)}, "labels .* float64"),
        ({"y_train": np.arange(11) % 3}, "12 images but 11 labels"),
        ({"y_test": np.full(6, 3)}, "Label 3 in the test split .* 3 classes"),
        ({"y_test": np.full(6, -1)}, "Label -1"),
        ({"y_train": np.arange(12) % 2 * 2}, "No images of class class 1 in the train split"),
        ({"x_test": np.zeros((6, 5, 6, 3), np.uint8)}, r"\[6, 5, 3\] in train but \[5, 6, 3\]"),
        ({"y_test": np.array([None] * 6)}, "without pickled objects"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, changes, said):
    _npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(UserError, match=said):
        load_dataset(data_config(source="npz", path=tmp_path / "mine.npz", resolution=0))


def test_npz_files_that_are_none_are_named(tmp_path):
    def refused(match, path):
        with pytest.raises(UserError, match=match):
            load_dataset(data_config(source="npz", path=path, resolution=0))

    refused("not set", "")
    refused("not a file", tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("text")
    refused("cannot be read", tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    refused("has a; expected", tmp_path / "other.npz")
