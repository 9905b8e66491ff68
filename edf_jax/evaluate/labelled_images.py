"""Reads labelled images to evaluate from any form: a run, a file of arrays, a folder of images."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edf_jax import distilled_set
from edf_jax.convert import distilled_set as triples
from edf_jax.data import DatasetInfo, DatasetPlan, Normalisation
from edf_jax.data.catalogue import is_fastai
from edf_jax.data.decode import ImageSettings, Unreadable, decode
from edf_jax.data.normalisation import IMAGENET
from edf_jax.data.sources import class_numbers
from edf_jax.data.subsets import index_by_wnid
from edf_jax.distilled_set import DistilledSet, LabelledImages
from edf_jax.methods.parametrisation.pixels import PIXELS
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.runtime.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Normalised images are smaller, also learned ones.
_LARGEST = 50.0
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Told:
    """What a set says of its labels' columns: names of classes, and what `DatasetInfo.identity`
    said of the real images; nothing where it says nothing."""

    class_names: tuple[str, ...] = ()
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_record(cls, text: str) -> _Told:
        """From the record that `edf_jax.export` leaves."""
        try:
            record = json.loads(text)
            return cls(tuple(record["class_names"]), dict(record.get("origin", {})))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()


def read(path: str, info: DatasetInfo) -> LabelledImages:
    """A distilled set in any form, checked against a dataset.

    Args:
        path: a run's folder or a `.safetensors` file of ours; the official `.pt` triple (its
            folder or its file of images, or the three files anywhere, images, labels and rate
            with commas between them); a `.npz` file with `images` or `pixels` and `labels`;
            a folder of images, a subfolder per class, or with `labels.csv`; or `zoo:NAME`.
        info: the dataset whose test images it will meet.

    Raises:
        UserError: nothing is there, its form is unknown, or its images or classes don't fit.
    """
    place = distilled_set.located(path).expanduser()
    found: LabelledImages
    if path.count(",") == 2 and not place.exists():
        found, told = _read_files([pathlib.Path(p).expanduser() for p in path.split(",")], info)
    elif not place.exists():
        raise UserError(f"evaluate.distilled={path}: there is nothing there")
    elif place.suffix == ".npz":
        found, told = _read_npz(place, info)
    elif place.suffix == ".safetensors" or (place / "distilled").is_dir():
        ours = distilled_set.load(place)
        found, told = _as_normalised(ours, info, f"step {ours.step} of {path}")
    elif place.suffix == ".pt" or (place / "images_best.pt").exists():
        found, told = _read_triple(place, info)
    elif place.is_dir():
        found, told = _read_folder(place, info)
    else:
        raise UserError(
            f"evaluate.distilled={path}: give a run, a .safetensors, .npz or images .pt file, or "
            "a folder of images"
        )
    _check(found, info, path)
    labels = found.labels[:, _columns(told, info, path)]
    return dataclasses.replace(found, labels=labels, note=found.note or str(path))


def check(path: str, info: DatasetInfo | DatasetPlan) -> None:
    """Refuses a set that can't be read or doesn't fit, before any image of the data is prepared.

    Raises:
        UserError: as `read`.
    """
    # Where the real one is measured on the images, any other shows whether the file is good.
    normalised: Any = dataclasses.replace(info, normalisation=info.normalisation or IMAGENET)
    read(path, normalised)


def _columns(told: _Told, info: DatasetInfo, path: str) -> list[int]:
    """For each class of a dataset, the column of a set's labels that is of the same class.

    Raises:
        UserError: the set is of other classes, or of another split of the same images.
    """
    name, ids = told.origin.get("name", ""), told.origin.get("classes", ())
    in_imagenet = info.imagenet_indices is not None
    if name and in_imagenet and is_fastai(name) != is_fastai(info.name):
        raise UserError(
            f"evaluate.distilled={path} was made of {name}, the data is {info.name}: they split "
            "the same images differently, so that some of the test images had a part in the set"
        )
    for theirs, own in ((ids, info.class_ids), (told.class_names, info.class_names)):
        if list(theirs) == list(own):
            return list(range(len(own)))
        if set(theirs) == set(own) and len(set(own)) == len(own):
            return [list(theirs).index(each) for each in own]
    theirs = ids or told.class_names
    if not theirs or any(re.fullmatch(r"class \d+", each) for each in (*theirs, *info.class_names)):
        return list(range(info.num_classes))  # nobody named them
    lacking = sorted(set(info.class_ids if ids else info.class_names) - set(theirs))
    raise UserError(
        f"evaluate.distilled={path} is of other classes{f' ({name})' if name else ''} than the "
        f"data ({info.name}): it has no {', '.join(lacking[:3])}"
    )


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
    if found.images.min() >= 0 and found.images.max() > _LARGEST:
        raise UserError(
            f"evaluate.distilled={path} holds images from {found.images.min():g} to "
            f"{found.images.max():g}, which look like pixels from 0 to 255: give them as uint8, or "
            "normalised"
        )
    if found.alpha is not None and not 0 <= found.alpha < np.inf:
        raise UserError(f"evaluate.distilled={path} has the rate {found.alpha}: no learning rate")


def _as_normalised(
    distilled: DistilledSet, info: DatasetInfo, note: str
) -> tuple[DistilledSet, _Told]:
    """A set, its inputs made anew from its pixels where it was normalised otherwise."""
    wanted, told = info.normalisation, _Told(distilled.class_names, distilled.origin)
    if distilled.normalisation == wanted:
        return dataclasses.replace(distilled, note=note), told
    inputs = np.asarray(wanted.apply(distilled.pixels), np.float32)
    # Of the decoded images: what they were decoded from is of its own normalisation.
    anew = dataclasses.replace(distilled, parameters=inputs, parametrisation=PIXELS)
    return dataclasses.replace(anew, normalisation=wanted, note=note), told


def _logits(labels: np.ndarray, info: DatasetInfo, path: pathlib.Path) -> np.ndarray:
    """Label logits of logits, probabilities or class numbers."""
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return hard_labels(class_numbers(labels, info.num_classes, str(path)), info.num_classes)
    if labels.ndim != 2 or labels.dtype.kind not in "fiu":
        raise UserError(f"The labels of {path} are {labels.dtype} {list(labels.shape)}")
    labels = labels.astype(np.float32)
    if len(labels) and labels.min() >= 0 and np.allclose(labels.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(labels, 1e-30)).astype(np.float32)
    return labels


def _read_npz(path: pathlib.Path, info: DatasetInfo) -> tuple[LabelledImages, _Told]:
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
    alpha = arrays.get("alpha")
    if alpha is not None and (alpha.size != 1 or alpha.dtype.kind != "f"):
        raise UserError(f"{path}: alpha is {alpha.dtype} {list(alpha.shape)}, not one number")
    labels = _logits(arrays["labels"], info, path)
    inputs = _npz_inputs(path, arrays, info.normalisation)
    told = _Told.of_record(str(arrays.get("record", "")))
    if not told.class_names and "class_names" in arrays:
        told = dataclasses.replace(told, class_names=tuple(map(str, arrays["class_names"])))
    return LabelledImages(inputs, labels, None if alpha is None else float(alpha.item())), told


def _npz_inputs(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], wanted: Normalisation
) -> np.ndarray:
    """The images of a `.npz` file as `wanted` normalises them."""
    images, pixels = arrays.get("images"), arrays.get("pixels")
    for name, array in (("images", images), ("pixels", pixels)):
        if array is None or array.dtype == np.uint8:
            continue
        if array.ndim != 4 or array.dtype.kind != "f":
            raise UserError(
                f"{path}: {name} are {array.dtype} {list(array.shape)}; expected are uint8 or "
                "floating-point [n, H, W, C]"
            )
        if array is pixels and not (array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
            raise UserError(f"{path}: pixels are {array.dtype} and not in [0, 1]")
    if images is None or images.dtype == np.uint8:
        return np.asarray(wanted.apply(pixels if images is None else images), np.float32)
    if "mean" not in arrays or "std" not in arrays:
        if 0 <= images.min(initial=0) and images.max(initial=0) <= 1:
            _log.warning("%s: images are taken for normalised; if not, call them pixels", path)
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


def _read_triple(path: pathlib.Path, info: DatasetInfo) -> tuple[DistilledSet, _Told]:
    folder = path if path.is_dir() else path.parent
    name = re.fullmatch(r"images_(.+)\.pt", "images_best.pt" if path.is_dir() else path.name)
    if name is None:
        raise UserError(
            f"evaluate.distilled={path}: of the three files of a set (images_best.pt, "
            "labels_best.pt, lr_best.pt; or of an iteration, images_5000.pt ...) give the images'"
        )
    paths = [folder / f"{each}_{name[1]}.pt" for each in ("images", "labels", "lr")]
    return _read_files(paths, info, str(path))


def _read_files(
    paths: list[pathlib.Path], info: DatasetInfo, note: str = ""
) -> tuple[DistilledSet, _Told]:
    """The official three files: images, labels and rate."""
    told = triples.read_record(paths[0].parent)
    told = told or triples.Description(info.class_names, info.normalisation)
    return _as_normalised(triples.import_files(paths, told), info, note or str(paths[0]))


def _read_folder(path: pathlib.Path, info: DatasetInfo) -> tuple[LabelledImages, _Told]:
    """A subfolder per class, or `labels.csv` with `file` and `label` or `probability_<i>`."""
    table = path / "labels.csv"
    files, labels = _from_csv(table) if table.exists() else _from_subfolders(path, info)
    if not files:
        raise UserError(f"{path} holds no images ({', '.join(_IMAGE_SUFFIXES)}) of a class")
    logits = _logits(np.asarray(labels), info, path)
    pixels = np.stack([_decode(file, info) for file in files])
    inputs = np.asarray(info.normalisation.apply(pixels), np.float32)
    try:
        record = (path / "distilled_set.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        record = ""
    told = _Told.of_record(record) if table.exists() else _Told()
    return LabelledImages(inputs, logits, _alpha_of(record, path)), told


def _from_csv(table: pathlib.Path) -> tuple[list[pathlib.Path], list]:
    try:
        with open(table, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        columns = list(rows[0]) if rows else []
        soft = [name for name in columns if (name or "").startswith("probability_")]
        if "file" not in columns or not (soft or "label" in columns):
            raise UserError(
                f"{table} needs columns 'file' and 'label', or 'probability_0' and so on"
            )
        labels = [[float(row[name]) for name in soft] or int(row["label"]) for row in rows]
        return [table.parent / row["file"] for row in rows], labels
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{table} can't be used: {error}") from error


def _from_subfolders(path: pathlib.Path, info: DatasetInfo) -> tuple[list[pathlib.Path], list]:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if len(folders) != info.num_classes:
        raise UserError(
            f"{path} has {len(folders)} subfolders, the data {info.num_classes} classes: give a "
            "subfolder per class, or labels.csv"
        )
    names = [folder.name for folder in folders]
    order = list(range(len(names)))
    for known in (info.class_names, info.class_ids):
        if sorted(names) == sorted(known):
            order = [known.index(name) for name in names]
            break
    else:
        if all(name in index_by_wnid() for name in names):
            raise UserError(f"{path}: its subfolders are other classes of ImageNet than the data's")
        _log.warning("%s: its subfolders aren't called as the classes; taken in order", path)
    files, labels = [], []
    for label, folder in zip(order, folders):
        found = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in _IMAGE_SUFFIXES and not file.is_fifo()
        )
        files += found
        labels += [label] * len(found)
    return files, labels


def _decode(file: pathlib.Path, info: DatasetInfo) -> np.ndarray:
    from PIL import Image

    height, width, channels = info.image_shape
    settings = ImageSettings(0, "squash", True, channels, False)
    try:
        pixels, _ = decode(file.read_bytes(), settings)
    except (OSError, Unreadable) as error:
        raise UserError(f"{file} can't be read as an image: {error}") from error
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, channels)


def _alpha_of(record: str, path: pathlib.Path) -> float | None:
    """The learned rate in the record that an export of ours leaves beside the images."""
    try:
        alpha = json.loads(record)["alpha"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float)):
        raise UserError(f"{path / 'distilled_set.json'}: alpha is no number")
    return alpha
