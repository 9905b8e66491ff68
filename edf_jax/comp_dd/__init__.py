"""Comp-DD: the Complex Dataset Distillation benchmark.

Eight categories of ImageNet classes (bird, car, dog, fish, snake, insect, round, music), each with
an easy and a hard subset of ten classes by the complexity of their images.

References:
    Wang et al., Emphasizing Discriminative Features for Dataset Distillation in Complex Scenarios,
    2410.17193, section 3.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np

from edf_jax.data import Split, load_dataset
from edf_jax.data.normalisation import Normalisation
from edf_jax.data.subsets import comp_dd_categories, find_comp_dd
from edf_jax.runtime.errors import UserError

__all__ = ["SUBSETS", "CompDDSplit", "comp_dd_categories", "find_comp_dd", "load_comp_dd"]

SUBSETS = ("easy", "hard")


LAYOUTS = ("NHWC", "NCHW")


class CompDDSplit:
    """A split of normalised images: `split[i] -> (image, label)`.

    Attributes:
        images: uint8 `[N, H, W, 3]`, as prepared.
        labels: int32 `[N]`.
        normalisation: what `split[i]` and `batches` apply.
        batch_size: of `batches`.
        layout: of normalised images, `NHWC` or PyTorch's `NCHW`.
    """

    def __init__(
        self, split: Split, normalisation: Normalisation, batch_size: int, layout: str = "NHWC"
    ):
        self.images = split.images
        self.labels = split.labels
        self.normalisation = normalisation
        self.batch_size = batch_size
        self.layout = layout

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Normalised image, float32 `[H, W, 3]` or `[3, H, W]`, and its label."""
        return self._inputs(self.images[index]), int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return (self[i] for i in range(len(self)))

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Normalised images, `[b, H, W, 3]` or `[b, 3, H, W]`, and labels `[b]`, in order.

        The last batch may be smaller.
        """
        for start in range(0, len(self), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self._inputs(self.images[rows]), self.labels[rows]

    def _inputs(self, images: np.ndarray) -> np.ndarray:
        inputs = self.normalisation.apply(np.asarray(images))
        if self.layout == "NCHW":
            inputs = np.ascontiguousarray(np.moveaxis(inputs, -1, -3))
        return inputs


def load_comp_dd(
    data_path: str | os.PathLike,
    category: str,
    subset: str,
    im_size: int | tuple[int, int] = (128, 128),
    batch_size: int = 256,
    *,
    cache_dir: str = "",
    workers: int = 0,
    layout: str = "NHWC",
) -> tuple[int, tuple[int, int], int, CompDDSplit, CompDDSplit, dict[int, int], dict[int, int]]:
    """A Comp-DD subset from a folder with ImageNet's images.

    Args:
        data_path: a folder with `train/<WordNet id>/*` and `val/<WordNet id>/*`.
        category: 'bird', 'car', 'dog', 'fish', 'snake', 'insect', 'round' or 'music'; plurals too.
        subset: 'easy' or 'hard'.
        im_size: height and width, equal.
        batch_size: of the splits' `batches()`.
        cache_dir: where prepared images are kept; default is the data cache.
        workers: decoding threads; 0 for one per core.
        layout: of the images that the splits give: `NHWC`, or `NCHW` for PyTorch.

    Returns:
        channel: 3.
        im_size: `(height, width)`.
        num_classes: 10; 9 for music hard, whose published list names class 420 twice.
        dst_train: training split; `dst_train[0]` is `(image, label)`.
        dst_test: test split (ImageNet's validation images).
        class_map: from ImageNet class index to label.
        class_map_inv: from position in the published list (0 to 9) to ImageNet class index. The
          positions are the labels, except for music hard, whose labels have no gap.

    Raises:
        UserError: no such subset, or its images are not there or not usable.
    """
    chosen = find_comp_dd(category, subset)
    height, width = (im_size, im_size) if isinstance(im_size, int) else im_size
    if height != width or height < 1:
        raise UserError(f"im_size={im_size} is not a square, for example (128, 128).")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: 1 or more.")
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout!r} is unknown; one of {', '.join(LAYOUTS)}.")
    dataset = load_dataset(
        SimpleNamespace(
            source="folder",
            name="",
            path=os.fspath(data_path),
            subset=chosen.name,
            class_list="",
            resolution=height,
            zca=False,
            resize="squash",
            antialias=True,
            cache_dir=cache_dir,
            workers=workers,
            held_out=0.0,
        )
    )
    train, test = (
        CompDDSplit(split, dataset.info.normalisation, batch_size, layout)
        for split in (dataset.train, dataset.test)
    )
    class_map = {index: label for label, index in enumerate(chosen.indices)}
    class_map_inv = dict(enumerate(chosen.positions))
    return 3, (height, width), dataset.info.num_classes, train, test, class_map, class_map_inv
