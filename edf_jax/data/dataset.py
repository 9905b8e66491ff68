"""What every source of real images becomes."""

from __future__ import annotations

import dataclasses

import numpy as np

from edf_jax.data.normalisation import Normalisation


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 `[N, H, W, C]` (an array or a memory map) and labels int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is, apart from its pixels.

    Attributes:
        name: as tables show it.
        class_names: human-readable, by label.
        image_shape: `(H, W, C)`.
        normalisation: from pixels to network inputs.
        imagenet_indices: ILSVRC-2012 class of each label, or None.
        fingerprint: hex digest of the settings and sources that the images come from.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalisation: Normalisation
    imagenet_indices: tuple[int, ...] | None
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


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
