"""What is evaluated: a few labelled images, from a run, a file of any form, or the real data."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edf_jax import distilled_set
from edf_jax.convert import distilled_set as distilled
from edf_jax.data import DatasetInfo, Normalisation
from edf_jax.distilled_set import DistilledSet
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# A label surer than this is a hard one.
_HARD = 0.999


@dataclasses.dataclass(frozen=True)
class Subject:
    """A few labelled images.

    Attributes:
        images: `[n, H, W, C]` float32, normalised.
        labels: `[n, C]` float32 logits.
        alpha: the learned rate to train on them with, None where there is none.
        config: of the run that learned it, as `{dotted key: value}`; {} where unknown.
        note: what it is, for people.
        positions: of the images in the real training set, None where they aren't from there.
    """

    images: np.ndarray
    labels: np.ndarray
    alpha: float | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    positions: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """Of everything that decides an accuracy."""
        alpha = np.float32(np.nan if self.alpha is None else self.alpha)
        arrays = (self.images, self.labels, np.asarray(alpha))
        return "".join(storage.digest(array)[:8] for array in arrays)

    @property
    def classes(self) -> np.ndarray:
        """Each image's likeliest class, `[n]`."""
        return np.argmax(self.labels, axis=1)

    @property
    def has_soft_labels(self) -> bool:
        """Whether any label is less than certain."""
        shifted = self.labels - self.labels.max(axis=1, keepdims=True)
        surest = 1 / np.exp(shifted).sum(axis=1)
        return bool(surest.min() < _HARD)

    def with_hard_labels(self) -> Subject:
        """The same images, each labelled by its likeliest class alone; no learned rate."""
        labels = hard_labels(self.classes, self.labels.shape[1])
        return dataclasses.replace(self, labels=labels, alpha=None)


def of_distilled(distilled: DistilledSet, note: str = "") -> Subject:
    """A distilled set as a subject."""
    return Subject(
        np.asarray(distilled.images, np.float32),
        np.asarray(distilled.labels, np.float32),
        float(distilled.alpha),
        distilled.config,
        note,
    )


def of_real(
    images: np.ndarray, labels: np.ndarray, positions: np.ndarray, info: DatasetInfo, note: str
) -> Subject:
    """Real training images with their own labels.

    Args:
        images: all training images, as stored.
        labels: theirs, `[N]`.
        positions: which.
        info: of the dataset.
        note: how they were chosen.
    """
    inputs = np.asarray(info.normalisation.apply(np.asarray(images[positions])), np.float32)
    targets = hard_labels(labels[positions], info.num_classes)
    return Subject(inputs, targets, note=note, positions=positions)


def read(path: str, info: DatasetInfo) -> Subject:
    """A distilled set in any form, checked against a dataset.

    Args:
        path: a run's folder or a `.safetensors` file of ours; the official `.pt` triple (its
            folder or its file of images); a `.npz` file with `images` or `pixels` and `labels`;
            or a folder of images, a subfolder per class, or with `labels.csv`.
        info: the dataset whose test images it will meet.

    Raises:
        UserError: nothing is there, its form is unknown, or its images or classes don't fit.
    """
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise UserError(f"evaluate.distilled={path}: there is nothing there")
    if place.suffix == ".npz":
        subject = _read_npz(place, info)
    elif place.suffix == ".safetensors" or (place / "distilled").is_dir():
        distilled = distilled_set.load(place)
        subject = _as_normalised(distilled, info, f"step {distilled.step} of {path}")
    elif place.suffix == ".pt" or (place / "images_best.pt").exists():
        subject = _read_triple(place, info)
    elif place.is_dir():
        subject = _read_folder(place, info)
    else:
        raise UserError(
            f"evaluate.distilled={path}: give a run, a .safetensors, .npz or images .pt file, or "
            "a folder of images"
        )
    _check(subject, info, path)
    return dataclasses.replace(subject, note=subject.note or str(path))


def _check(subject: Subject, info: DatasetInfo, path: str) -> None:
    shape, wanted = tuple(subject.images.shape[1:]), tuple(info.image_shape)
    if shape != wanted:
        raise UserError(
            f"evaluate.distilled={path} holds images of {shape}, the data's are {wanted} "
            "(height, width, channels): set data.resolution to fit"
        )
    if subject.labels.shape != (len(subject.images), info.num_classes):
        raise UserError(
            f"evaluate.distilled={path} holds labels of {subject.labels.shape} for "
            f"{len(subject.images)} images and the data's {info.num_classes} classes"
        )
    if not (np.isfinite(subject.images).all() and np.isfinite(subject.labels).all()):
        raise UserError(f"evaluate.distilled={path} holds numbers that aren't finite")


def _as_normalised(distilled: DistilledSet, info: DatasetInfo, note: str) -> Subject:
    """A set, its inputs made anew from its pixels where it was normalised otherwise."""
    subject = of_distilled(distilled, note)
    if distilled.normalisation == info.normalisation:
        return subject
    inputs = np.asarray(info.normalisation.apply(distilled.pixels), np.float32)
    return dataclasses.replace(subject, images=inputs)


def _logits(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Label logits of logits, probabilities or class numbers."""
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return hard_labels(labels.astype(np.int64), num_classes)
    labels = labels.astype(np.float32)
    sums = labels.sum(axis=1)
    if labels.min() >= 0 and np.allclose(sums, 1, atol=1e-3):
        return np.log(np.maximum(labels, 1e-30)).astype(np.float32)
    return labels


def _read_npz(path: pathlib.Path, info: DatasetInfo) -> Subject:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # A damaged archive makes zipfile and NumPy raise nearly anything.
        raise UserError(f"{path} can't be read: {error}") from error
    if "labels" not in arrays or not {"images", "pixels"} & set(arrays):
        raise UserError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: it needs 'labels', and 'images' "
            "(normalised, or uint8) or 'pixels' (in [0, 1], or uint8)"
        )
    alpha = float(arrays["alpha"]) if "alpha" in arrays else None
    labels = _logits(arrays["labels"], info.num_classes)
    return Subject(_npz_inputs(path, arrays, info.normalisation), labels, alpha)


def _npz_inputs(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], wanted: Normalisation
) -> np.ndarray:
    """The images of a `.npz` file as `wanted` normalises them."""
    images = arrays.get("images")
    if images is None or images.dtype == np.uint8:
        return np.asarray(wanted.apply(arrays["pixels"] if images is None else images), np.float32)
    if "mean" not in arrays or "std" not in arrays:
        return np.asarray(images, np.float32)
    mean, std = (tuple(float(x) for x in arrays[name]) for name in ("mean", "std"))
    whitened = _zca_digest(arrays)
    same = whitened == (wanted.zca and wanted.zca.digest)
    if not same or not np.allclose(mean + std, wanted.mean + wanted.std):
        if "pixels" not in arrays and whitened:
            raise UserError(
                f"evaluate.distilled={path} is whitened by another ZCA matrix than the data's, and "
                "holds no 'pixels'"
            )
        pixels = arrays.get("pixels")
        images = wanted.apply(Normalisation(mean, std).invert(images) if pixels is None else pixels)
    return np.asarray(images, np.float32)


def _zca_digest(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Of the matrix that `edf_jax.export` says a file's images are whitened by."""
    try:
        return json.loads(str(arrays["record"])).get("zca")
    except (KeyError, ValueError, AttributeError):
        return None


def _read_triple(path: pathlib.Path, info: DatasetInfo) -> Subject:

    folder = path if path.is_dir() else path.parent
    name = re.fullmatch(r"images_(.+)\.pt", "images_best.pt" if path.is_dir() else path.name)
    if name is None:
        raise UserError(
            f"evaluate.distilled={path}: of the three files of a set (images_best.pt, "
            "labels_best.pt, lr_best.pt; or of an iteration, images_5000.pt ...) give the images'"
        )
    told = distilled.Description(info.class_names, info.normalisation)
    found = distilled.import_set(folder, distilled.read_record(folder) or told, tag=name[1])
    return _as_normalised(found, info, str(path))


def _read_folder(path: pathlib.Path, info: DatasetInfo) -> Subject:
    """A subfolder per class, or `labels.csv` with `file` and `label` or `probability_<i>`."""
    table = path / "labels.csv"
    files, labels = _from_csv(table) if table.exists() else _from_subfolders(path, info)
    if not files:
        raise UserError(f"{path} holds no images ({', '.join(_IMAGE_SUFFIXES)}) of a class")
    pixels = np.stack([_decode(file, info) for file in files])
    inputs = np.asarray(info.normalisation.apply(pixels), np.float32)
    alpha = _alpha_of(path)
    return Subject(inputs, _logits(np.asarray(labels), info.num_classes), alpha)


def _from_csv(table: pathlib.Path) -> tuple[list[pathlib.Path], list]:
    with open(table, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = list(rows[0]) if rows else []
    soft = [name for name in columns if name.startswith("probability_")]
    if "file" not in columns or not (soft or "label" in columns):
        raise UserError(f"{table} needs columns 'file' and 'label', or 'probability_0' and so on")
    try:
        labels = [[float(row[name]) for name in soft] or int(row["label"]) for row in rows]
    except ValueError as error:
        raise UserError(f"{table}: {error}") from error
    return [table.parent / row["file"] for row in rows], labels


def _from_subfolders(path: pathlib.Path, info: DatasetInfo) -> tuple[list[pathlib.Path], list]:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if len(folders) != info.num_classes:
        raise UserError(
            f"{path} has {len(folders)} subfolders, the data {info.num_classes} classes: give a "
            "subfolder per class, or labels.csv"
        )
    names = [folder.name for folder in folders]
    # By name where the names are the classes', else in order.
    by_name = sorted(names) == sorted(info.class_names)
    files, labels = [], []
    for order, folder in enumerate(folders):
        label = info.class_names.index(folder.name) if by_name else order
        found = sorted(f for f in folder.iterdir() if f.suffix.lower() in _IMAGE_SUFFIXES)
        files += found
        labels += [label] * len(found)
    return files, labels


def _decode(file: pathlib.Path, info: DatasetInfo) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    height, width, channels = info.image_shape
    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(image, np.uint8).reshape(height, width, channels)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{file} can't be read as an image: {error}") from error


def _alpha_of(path: pathlib.Path) -> float | None:
    """The learned rate in the record that an export of ours leaves beside the images."""
    record = path / "distilled_set.json"
    if not record.exists():
        return None
    try:
        return float(json.loads(record.read_text())["alpha"])
    except (ValueError, KeyError, TypeError):
        return None
