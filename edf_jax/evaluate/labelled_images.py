"""Reads labelled images to evaluate from any form: a run, a file of arrays, a folder of images."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from edf_jax import distilled_set
from edf_jax.convert import distilled_set as triples
from edf_jax.data import DatasetInfo, Normalisation
from edf_jax.distilled_set import DistilledSet, LabelledImages
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.runtime.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read(path: str, info: DatasetInfo) -> LabelledImages:
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
        found = _read_npz(place, info)
    elif place.suffix == ".safetensors" or (place / "distilled").is_dir():
        ours = distilled_set.load(place)
        found = _as_normalised(ours, info, f"step {ours.step} of {path}")
    elif place.suffix == ".pt" or (place / "images_best.pt").exists():
        found = _read_triple(place, info)
    elif place.is_dir():
        found = _read_folder(place, info)
    else:
        raise UserError(
            f"evaluate.distilled={path}: give a run, a .safetensors, .npz or images .pt file, or "
            "a folder of images"
        )
    _check(found, info, path)
    return dataclasses.replace(found, note=found.note or str(path))


def _check(found: LabelledImages, info: DatasetInfo, path: str) -> None:
    shape, wanted = tuple(found.images.shape[1:]), tuple(info.image_shape)
    if shape != wanted:
        raise UserError(
            f"evaluate.distilled={path} holds images of {shape}, the data's are {wanted} "
            "(height, width, channels): set data.resolution to fit"
        )
    if found.labels.shape != (len(found.images), info.num_classes):
        raise UserError(
            f"evaluate.distilled={path} holds labels of {found.labels.shape} for "
            f"{len(found.images)} images and the data's {info.num_classes} classes"
        )
    if not (np.isfinite(found.images).all() and np.isfinite(found.labels).all()):
        raise UserError(f"evaluate.distilled={path} holds numbers that aren't finite")


def _as_normalised(distilled: DistilledSet, info: DatasetInfo, note: str) -> DistilledSet:
    """A set, its inputs made anew from its pixels where it was normalised otherwise."""
    if distilled.normalisation == info.normalisation:
        return dataclasses.replace(distilled, note=note)
    wanted = info.normalisation
    inputs = np.asarray(wanted.apply(distilled.pixels), np.float32)
    return dataclasses.replace(distilled, images=inputs, normalisation=wanted, note=note)


def _logits(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Label logits of logits, probabilities or class numbers."""
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return hard_labels(labels.astype(np.int64), num_classes)
    labels = labels.astype(np.float32)
    if labels.min() >= 0 and np.allclose(labels.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(labels, 1e-30)).astype(np.float32)
    return labels


def _read_npz(path: pathlib.Path, info: DatasetInfo) -> LabelledImages:
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
    return LabelledImages(_npz_inputs(path, arrays, info.normalisation), labels, alpha)


def _npz_inputs(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], wanted: Normalisation
) -> np.ndarray:
    """The images of a `.npz` file as `wanted` normalises them."""
    images, pixels = arrays.get("images"), arrays.get("pixels")
    if images is None or images.dtype == np.uint8:
        return np.asarray(wanted.apply(pixels if images is None else images), np.float32)
    if "mean" not in arrays or "std" not in arrays:
        return np.asarray(images, np.float32)
    mean, std = (tuple(float(x) for x in arrays[name]) for name in ("mean", "std"))
    whitened = _zca_digest(arrays)
    same = whitened == (wanted.zca and wanted.zca.digest)
    if not same or not np.allclose(mean + std, wanted.mean + wanted.std):
        if pixels is None and whitened:
            raise UserError(
                f"evaluate.distilled={path} is whitened by another ZCA matrix than the data's, and "
                "holds no 'pixels'"
            )
        images = wanted.apply(Normalisation(mean, std).invert(images) if pixels is None else pixels)
    return np.asarray(images, np.float32)


def _zca_digest(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Of the matrix that `edf_jax.export` says a file's images are whitened by."""
    try:
        return json.loads(str(arrays["record"])).get("zca")
    except (KeyError, ValueError, AttributeError):
        return None


def _read_triple(path: pathlib.Path, info: DatasetInfo) -> DistilledSet:
    folder = path if path.is_dir() else path.parent
    name = re.fullmatch(r"images_(.+)\.pt", "images_best.pt" if path.is_dir() else path.name)
    if name is None:
        raise UserError(
            f"evaluate.distilled={path}: of the three files of a set (images_best.pt, "
            "labels_best.pt, lr_best.pt; or of an iteration, images_5000.pt ...) give the images'"
        )
    told = triples.read_record(folder) or triples.Description(info.class_names, info.normalisation)
    return _as_normalised(triples.import_set(folder, told, tag=name[1]), info, str(path))


def _read_folder(path: pathlib.Path, info: DatasetInfo) -> LabelledImages:
    """A subfolder per class, or `labels.csv` with `file` and `label` or `probability_<i>`."""
    table = path / "labels.csv"
    files, labels = _from_csv(table) if table.exists() else _from_subfolders(path, info)
    if not files:
        raise UserError(f"{path} holds no images ({', '.join(_IMAGE_SUFFIXES)}) of a class")
    pixels = np.stack([_decode(file, info) for file in files])
    inputs = np.asarray(info.normalisation.apply(pixels), np.float32)
    return LabelledImages(inputs, _logits(np.asarray(labels), info.num_classes), _alpha_of(path))


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
    # By name where the names are the classes', else in order.
    by_name = sorted(folder.name for folder in folders) == sorted(info.class_names)
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
    try:
        return float(json.loads((path / "distilled_set.json").read_text())["alpha"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
