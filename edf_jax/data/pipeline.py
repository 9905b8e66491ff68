"""Grain pipelines: images that are read, or decoded, while earlier ones are computed on."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edf_jax.runtime import devices
from edf_jax.runtime.errors import UserError

if TYPE_CHECKING:
    import grain


def in_workers(function: Callable, items: Sequence, workers: int = 0) -> Iterator:
    """`function` of each item, in order, on `workers` threads (0: one per core)."""
    return iter(_mapped(function, items, workers))


def stream(
    images: np.ndarray, positions: np.ndarray, *, workers: int = 0, together: int = 1
) -> grain.IterDataset:
    """Images in a given order, a few batches at a time, read ahead of their use.

    The order comes with the positions, not from Grain's own shuffle: a network that trains on
    images held on the device, where Grain isn't, must see the same.

    Args:
        images: `[N, H, W, C]`, in memory or a memory map.
        positions: `[batches, b]`.
        workers: threads that read; 0 for one per core.
        together: how many batches make an element; the last element may have fewer.

    Returns:
        Elements `[together * b, H, W, C]`. As of any Grain iterator, an iterator's state can be
        kept (`get_state`) and gone on from (`set_state`).

    Raises:
        UserError: while iterating: the file of a memory map was cut short or removed.
    """
    read = _Rows(images).read
    return _mapped(read, positions, workers).batch(together, batch_fn=np.concatenate)


def _mapped(function: Callable, items: Sequence | np.ndarray, workers: int) -> grain.IterDataset:
    # Imported where it is used: benchmarks run where there is no Grain.
    import grain

    threads = workers or devices.available_cores()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return grain.MapDataset.source(items).map(function).to_iter_dataset(options)


class _Rows:
    """Rows of an array; those of a file on disk are read from it, not from its memory map.

    A process that touches a map of a file that was cut short dies without a word (SIGBUS).
    """

    def __init__(self, images: np.ndarray):
        self._images = images
        self._file = None
        # Of a part of a map, `offset` is not where the part begins.
        if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap):
            try:
                self._file = open(images.filename, "rb")
            except OSError as error:
                raise UserError(
                    f"{images.filename} can't be read again ({error.strerror}); start again"
                ) from None

    def read(self, positions: np.ndarray) -> np.ndarray:
        if self._file is None:
            return self._images[positions]
        rows = np.empty((len(positions), *self._images.shape[1:]), self._images.dtype)
        for row, position in zip(rows, positions):
            start = self._images.offset + int(position) * row.nbytes
            if os.preadv(self._file.fileno(), [row], start) != row.nbytes:
                raise UserError(
                    f"{self._images.filename} was cut short while it was read; start again: it is "
                    "made anew"
                )
        return rows
