"""What every source of real images becomes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from edf_jax.data.normalisation import Normalisation
from edf_jax.data.subsets import imagenet_classes


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 `[N, H, W, C]` (an array or a memory map) and labels int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Classes:
    """The classes of whatever has `class_names` and `imagenet_indices`."""

    class_names: tuple[str, ...]
    imagenet_indices: tuple[int, ...] | None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_ids(self) -> tuple[str, ...]:
        """By label: WordNet ids where the classes are ImageNet's, else names."""
        if self.imagenet_indices is None:
            return self.class_names
        return tuple(imagenet_classes()[index].wnid for index in self.imagenet_indices)


@dataclasses.dataclass(frozen=True)
class DatasetInfo(Classes):
    """What a dataset is, apart from its pixels.

    Attributes:
        name: as tables show it.
        class_names: human-readable, by label.
        image_shape: `(H, W, C)`.
        normalisation: from pixels to network inputs.
        imagenet_indices: ILSVRC-2012 class of each label, or None.
        fingerprint: hex digest of the images, their labels and classes, and how they are whitened.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalisation: Normalisation
    imagenet_indices: tuple[int, ...] | None
    fingerprint: str

    @property
    def identity(self) -> dict[str, Any]:
        """What a set that is distilled from the data keeps of it, as JSON can say it."""
        return {
            "name": self.name,
            "classes": list(self.class_ids),
            "resolution": list(self.image_shape[:2]),
            "digest": self.fingerprint,
        }


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Real images, split into training and test.

    Attributes:
        train: what experts and sets are made of.
        test: what results are measured on.
        info: what it is.
        held_out: training images that nothing is trained on (`data.held_out`); None where none
            are set aside.
    """

    train: Split
    test: Split
    info: DatasetInfo
    held_out: Split | None = None
