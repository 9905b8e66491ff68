"""Distilled sets from anywhere: our files, `.npz`, the official triple, folders of images."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest

from edf_jax.data import Normalisation
from edf_jax.evaluate import labelled_images
from edf_jax.export.write import export
from edf_jax.runtime.errors import UserError
from tests.evaluation_data import CLASSES, make_dataset, make_distilled


@pytest.fixture(scope="module")
def info():
    return make_dataset().info


@pytest.fixture(scope="module")
def distilled():
    """A set with soft labels, and pixels that 8 bits hold exactly."""
    return make_distilled(make_dataset(), soft=True)


def _check_same(subject, distilled, *, atol=1e-5):
    np.testing.assert_allclose(subject.images, distilled.images, atol=atol)
    shifted = subject.labels - subject.labels.max(axis=1, keepdims=True)
    expected = distilled.labels - distilled.labels.max(axis=1, keepdims=True)
    np.testing.assert_allclose(shifted, expected, atol=1e-4)
    assert subject.alpha == pytest.approx(distilled.alpha)


@pytest.mark.parametrize("form", ["images", "npz", "torch"])
def test_what_we_export_is_read_back(form, distilled, info, tmp_path):
    if form == "torch":
        pytest.importorskip("torch")
    path = export(distilled, form, tmp_path / ("set.npz" if form == "npz" else form))
    _check_same(labelled_images.read(str(path), info), distilled)


def test_our_own_files_and_runs_are_read(distilled, info, tmp_path):
    distilled.save(tmp_path / "distilled" / "last.safetensors")
    for path in (tmp_path, tmp_path / "distilled" / "last.safetensors"):
        subject = labelled_images.read(str(path), info)
        _check_same(subject, distilled)
        assert subject.note.startswith("step 7 of")


def test_a_set_normalised_otherwise_is_made_anew_from_its_pixels(distilled, info, tmp_path):
    other = Normalisation((0.1,) * 3, (0.7,) * 3)
    images = np.asarray(other.apply(distilled.pixels), np.float32)
    anew = dataclasses.replace(distilled, parameters=images, normalisation=other)
    anew.save(tmp_path / "a.safetensors")
    _check_same(labelled_images.read(str(tmp_path / "a.safetensors"), info), distilled)
    np.savez(
        tmp_path / "b.npz", images=images, labels=distilled.labels, mean=[0.1] * 3, std=[0.7] * 3,
        alpha=distilled.alpha,
    )
    _check_same(labelled_images.read(str(tmp_path / "b.npz"), info), distilled)


def test_a_plain_npz_may_have_bytes_and_class_numbers(info, tmp_path):
    images = make_dataset().train.images[:6]
    np.savez(tmp_path / "set.npz", images=images, labels=np.asarray([0, 1, 2, 0, 1, 2]))
    subject = labelled_images.read(str(tmp_path / "set.npz"), info)
    np.testing.assert_allclose(subject.images, info.normalisation.apply(images), atol=1e-6)
    assert subject.classes.tolist() == [0, 1, 2, 0, 1, 2]
    assert subject.alpha is None and not subject.has_soft_labels


def test_the_official_triple_needs_no_record(distilled, info, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.tensor(distilled.images.transpose(0, 3, 1, 2)), tmp_path / "images_best.pt")
    torch.save(torch.tensor(distilled.labels), tmp_path / "labels_best.pt")
    torch.save(torch.tensor(distilled.alpha), tmp_path / "lr_best.pt")
    for path in (tmp_path, tmp_path / "images_best.pt"):
        _check_same(labelled_images.read(str(path), info), distilled)
    # Beside the best the official codes keep those of iterations.
    other = dataclasses.replace(distilled, parameters=distilled.images / 2, alpha=0.5)
    torch.save(torch.tensor(other.images.transpose(0, 3, 1, 2)), tmp_path / "images_500.pt")
    torch.save(torch.tensor(other.labels), tmp_path / "labels_500.pt")
    torch.save(torch.tensor(other.alpha), tmp_path / "lr_500.pt")
    _check_same(labelled_images.read(str(tmp_path / "images_500.pt"), info), other)
    with pytest.raises(UserError, match="labels_500.pt: of the three files .* give the images'"):
        labelled_images.read(str(tmp_path / "labels_500.pt"), info)


def test_an_npz_meets_whitened_data_by_its_pixels(distilled, info, tmp_path):
    train = make_dataset().train.images
    zca = Normalisation.fit_zca(train, str(tmp_path))
    whitened = dataclasses.replace(info, normalisation=zca)
    expected = dataclasses.replace(distilled, parameters=zca.apply(distilled.pixels))
    export(distilled, "npz", tmp_path / "plain.npz")
    _check_same(labelled_images.read(str(tmp_path / "plain.npz"), whitened), expected)
    same = dataclasses.replace(expected, normalisation=zca)
    export(same, "npz", tmp_path / "same.npz")
    _check_same(labelled_images.read(str(tmp_path / "same.npz"), whitened), same)
    # Of another matrix: by the pixels, to plain data and to whitened.
    _check_same(labelled_images.read(str(tmp_path / "same.npz"), info), distilled, atol=1e-3)
    other = Normalisation.fit_zca(train[::2], str(tmp_path))
    there = dataclasses.replace(info, normalisation=other)
    anew = dataclasses.replace(distilled, parameters=other.apply(same.pixels))
    _check_same(labelled_images.read(str(tmp_path / "same.npz"), there), anew, atol=1e-3)
    with np.load(tmp_path / "same.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "pixels"}
    np.savez(tmp_path / "no_pixels.npz", **arrays)
    with pytest.raises(UserError, match="another ZCA matrix"):
        labelled_images.read(str(tmp_path / "no_pixels.npz"), there)


def _write_png(path, pixels):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_subfolders_are_classes_by_name_or_in_order(info, tmp_path):
    images = make_dataset().train.images[:6]  # classes 0, 1, 2, 0, 1, 2
    for i, image in enumerate(images):
        _write_png(tmp_path / "named" / CLASSES[i % 3] / f"{i}.png", image)
        _write_png(tmp_path / "numbered" / f"{i % 3:05d}" / f"{i}.png", image)
    for name, order in (("named", [0, 3, 2, 5, 1, 4]), ("numbered", [0, 3, 1, 4, 2, 5])):
        subject = labelled_images.read(str(tmp_path / name), info)
        expected = info.normalisation.apply(images[order])
        np.testing.assert_allclose(subject.images, expected, atol=1e-6)
        np.testing.assert_array_equal(subject.classes, np.asarray(order) % 3)


def test_a_table_of_labels_names_files(info, tmp_path):
    images = make_dataset().train.images[:3]
    for i, image in enumerate(images):
        _write_png(tmp_path / f"{i}.png", image)
    with open(tmp_path / "labels.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["file", "label"], ["2.png", 2], ["0.png", 0], ["1.png", 1]])
    subject = labelled_images.read(str(tmp_path), info)
    assert subject.classes.tolist() == [2, 0, 1]
    expected = info.normalisation.apply(images[[2, 0, 1]])
    np.testing.assert_allclose(subject.images, expected, atol=1e-6)


def test_what_does_not_fit_is_refused_in_a_line(distilled, info, tmp_path):
    with pytest.raises(UserError, match="there is nothing there"):
        labelled_images.read(str(tmp_path / "none"), info)
    np.savez(tmp_path / "small.npz", images=np.zeros((3, 4, 4, 3), np.uint8), labels=np.arange(3))
    with pytest.raises(UserError, match=r"\(4, 4, 3\), the data's are \(8, 8, 3\)"):
        labelled_images.read(str(tmp_path / "small.npz"), info)
    np.savez(tmp_path / "classes.npz", images=distilled.images, labels=np.zeros((6, 4)))
    with pytest.raises(UserError, match="the data's 3 classes"):
        labelled_images.read(str(tmp_path / "classes.npz"), info)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="it needs 'labels'"):
        labelled_images.read(str(tmp_path / "other.npz"), info)
    (tmp_path / "folder" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="1 subfolders, the data 3 classes"):
        labelled_images.read(str(tmp_path / "folder"), info)
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(UserError, match="give a run, a .safetensors"):
        labelled_images.read(str(tmp_path / "text.txt"), info)
