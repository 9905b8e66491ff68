"""Data and sets that aren't what they seem, made in a folder by name, as `badfiles` does."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from edf_jax.data.subsets import find_subset
from tests import badfiles, data_layouts

# Of the demo's data at the resolution that `badinput` gives it.
_SIDE = 16
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE)).save(content, "PNG")
    return content.getvalue()


def _fastai_beside_ilsvrc(folder: Path) -> None:
    """fast.ai's train/, which holds images of ILSVRC's val/, beside that."""
    for wnid in find_subset("imagenette").wnids:
        for split, names in (("train", ("0", "val_0")), ("val", ("val_0", "val_1"))):
            place = folder / "data" / split / wnid
            place.mkdir(parents=True)
            for name in names:
                name = name.replace("val", f"ILSVRC2012_val_{wnid}")
                (place / f"{name}.png").write_bytes(_png())


def _named(name: bytes) -> Callable[[Path], None]:
    """A folder of images with a class of that name."""

    def make(folder: Path) -> None:
        data_layouts.write_folder(folder / "data", ["a", "b"])
        for split in ("train", "val"):
            place = os.fsencode(folder / "data" / split)
            os.rename(place + b"/b", place + b"/" + name)

    return make


def _pipes(folder: Path) -> None:
    """A folder of images with a class of pipes."""
    data_layouts.write_folder(folder / "data", ["a", "b"])
    for path in (folder / "data" / "train" / "b").iterdir():
        path.unlink()
        os.mkfifo(path)


def _npz(**changed: np.ndarray) -> Callable[[Path], None]:
    """A `.npz` file of twenty images of two classes."""

    def make(folder: Path) -> None:
        images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
        arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
        np.savez(folder / "data.npz", **{**arrays, **changed})

    return make


def _set(**changed: object) -> Callable[[Path], None]:
    """A `.npz` set of the demo's ten classes."""

    def make(folder: Path) -> None:
        arrays = {
            "pixels": np.zeros((10, _SIDE, _SIDE, 3), np.uint8),
            "labels": np.arange(10),
            "alpha": np.float32(0.1),
            "class_names": np.array(_DIGITS),
        }
        arrays |= changed
        np.savez(folder / "s.npz", **{k: np.asarray(v) for k, v in arrays.items() if v is not None})

    return make


def _images(table: str, alpha: object = 0.1) -> Callable[[Path], None]:
    """A folder `s` of images with a table, and the record of an export."""

    def make(folder: Path) -> None:
        (folder / "s").mkdir()
        (folder / "s" / "a.png").write_bytes(_png())
        (folder / "s" / "labels.csv").write_text(table)
        record = {"alpha": alpha, "class_names": list(_DIGITS)}
        (folder / "s" / "distilled_set.json").write_text(json.dumps(record))

    return make


def _label(label: object) -> np.ndarray:
    return np.r_[np.arange(9), np.asarray(label)]


def _labels(last: int) -> np.ndarray:
    """Of two classes, but for the last."""
    dtype = np.uint64 if last >= 2**63 else np.int64
    return np.array([*(i % 2 for i in range(19)), last], dtype)


_PIXELS = np.zeros((10, _SIDE, _SIDE, 3))
_ONE = "file,label\na.png,"

MAKERS: dict[str, Callable[[Path], object]] = {
    "folder: fast.ai's train beside ILSVRC's val": _fastai_beside_ilsvrc,
    "folder: a class not in UTF-8": _named(b"caf\xe9"),
    "folder: a class of two lines": _named(b"two\nlines"),
    "folder: a class of control characters": _named(b"\x1b[31mred"),
    "folder: a class of pipes": _pipes,
    "npz: a label beyond int32": _npz(y_train=_labels(2**32 + 1)),
    "npz: a label of 2**31 - 1": _npz(y_train=_labels(2**31 - 1)),
    "npz: unsigned labels": _npz(y_test=_labels(2**64 - 1)),
    "npz: labels true and false": _npz(y_test=np.arange(20) > 9),
    "npz: images of int64": _npz(x_test=np.zeros((20, 8, 8, 3), int)),
    "npz: images true and false": _npz(x_test=np.zeros((20, 8, 8, 3), bool)),
    "npz: a class of two lines": _npz(class_names=np.array(["one", "two\nlines"])),
    "set: of other classes in s.npz": _set(class_names=[f"dog {i}" for i in range(10)]),
    "set: of one other class in s.npz": _set(class_names=[*_DIGITS[:9], "ten"]),
    "set: no rate in s.npz": _set(alpha=np.float32(np.nan)),
    "set: an endless rate in s.npz": _set(alpha=np.float32(np.inf)),
    "set: a negative rate in s.npz": _set(alpha=np.float32(-1)),
    "set: several rates in s.npz": _set(alpha=np.ones(3)),
    "set: a word for a rate in s.npz": _set(alpha="fast"),
    "set: a label beyond in s.npz": _set(labels=_label(10)),
    "set: a negative label in s.npz": _set(labels=_label(-1)),
    "set: a label beyond int32 in s.npz": _set(labels=_label(2**32)),
    "set: half a label in s.npz": _set(labels=_label(0.5)),
    "set: labels true and false in s.npz": _set(labels=np.arange(10) > 4),
    "set: labels that are no numbers in s.npz": _set(labels=np.full((10, 10), np.nan)),
    "set: pixels over one in s.npz": _set(pixels=_PIXELS + 2),
    "set: pixels under zero in s.npz": _set(pixels=_PIXELS - 1),
    "set: pixels of int64 in s.npz": _set(pixels=_PIXELS.astype(np.int64)),
    "set: pixels true and false in s.npz": _set(pixels=_PIXELS > 0),
    "set: images from 0 to 255 in s.npz": _set(pixels=None, images=_PIXELS + 255.0),
    "set: images of int32 in s.npz": _set(pixels=None, images=_PIXELS.astype(np.int32)),
    "set: images of another size in s.npz": _set(pixels=np.zeros((10, 8, 8, 3), np.uint8)),
    "set: a negative label of a table in s": _images(f"{_ONE}-1\n"),
    "set: a label beyond of a table in s": _images(f"{_ONE}10\n"),
    "set: a label beyond int64 of a table in s": _images(f"{_ONE}{10**30}\n"),
    "set: half a label of a table in s": _images(f"{_ONE}1.5\n"),
    "set: a short row of a table in s": _images("file,label\na.png\n"),
    "set: a table without files in s": _images("file,label\nb.png,1\n"),
    "set: a negative rate of a record in s": _images(f"{_ONE}1\n", alpha=-1),
    "set: a word for a rate of a record in s": _images(f"{_ONE}1\n", alpha="fast"),
}


badfiles.MAKERS.update(MAKERS)
