"""What a source of images gives to the preparation: labels, and how to read image number i."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from edf_jax.data.normalisation import Normalisation
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of one split, not yet read.

    Attributes:
        labels: int32 `[N]`.
        read: from a position to the encoded image (bytes), or to its pixels (uint8 `[H, W, C]`).
        name: from a position to what a message calls the image.
        identity: hex digest of what is listed; another digest means other images.
        images: uint8 `[N, H, W, C]` where all pixels are in memory anyway, else None.
    """

    labels: np.ndarray
    read: Callable[[int], bytes | np.ndarray]
    name: Callable[[int], str]
    identity: str
    images: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Source:
    """Training and test listings of a set, and what is known about it before reading.

    Attributes:
        name: of the set, as tables show it.
        class_names: by label.
        channels: 1 or 3.
        imagenet_indices: ILSVRC-2012 class of each label, or None.
        normalisation: its published constants; None where they are to be measured.
        upright: turn photographs as their EXIF data says.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    train: Listing
    test: Listing
    imagenet_indices: tuple[int, ...] | None = None
    normalisation: Normalisation | None = None
    upright: bool = False


class MissingData(UserError):
    """The data is not where it is expected; the message says where that is."""


def digest_of(content) -> str:
    """Hex digest of anything that JSON can say."""
    return storage.fingerprint(json.dumps(content, sort_keys=True).encode())


def existing_folder(path: str, layout: str) -> pathlib.Path:
    """`data.path` as a folder that exists.

    Raises:
        MissingData: it is not set or not there; the message gives the `layout` that is expected.
    """
    if not path:
        raise MissingData(f"data.path is not set; expected is {layout}.")
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise MissingData(f"data.path={path} is not a folder; expected is {layout}.")
    return folder


def class_numbers(labels, num_classes: int, where: str) -> np.ndarray:
    """Labels `[N]` as int32, once they are known to be numbers of classes.

    Args:
        labels: an array of any type, `[N]` or `[N, 1]`.
        num_classes: how many classes there are.
        where: what they are the labels of, for a message.

    Raises:
        UserError: they aren't whole numbers, or one is negative or too large.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"The labels of {where} are {labels.dtype} {list(labels.shape)}; expected are integers "
            "[N]."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(
            f"Label {wrong} in {where} does not fit its {num_classes} classes (0 to "
            f"{num_classes - 1})."
        )
    return labels.astype(np.int32)


def check_labels(labels: np.ndarray, class_names: Sequence[str], split: str, where) -> np.ndarray:
    """Labels of a split as `class_numbers` gives them, with images of every class.

    Raises:
        UserError: names the label or the class, the split and the place.
    """
    labels = class_numbers(labels, len(class_names), f"the {split} split of {where}")
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
        empty = [name for name, count in zip(class_names, counts) if count == 0]
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise UserError(f"No images of class {shown} in the {split} split of {where}.")
    return labels


def distinct(names: Sequence[str], ids: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, with their ids where several are called the same."""
    count = collections.Counter(names)
    return tuple(f"{n} ({i})" if count[n] > 1 else n for n, i in zip(names, ids))
