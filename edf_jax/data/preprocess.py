"""Decode and resize once, in parallel; keep the result on disk.

A prepared split is two files in the data cache, named by a digest of everything that decides its
content: `<key>.npy`, uint8 images, and `<key>.jsonl`, its record. The record has a line for each
chunk of images that is done, with a digest that seals the line and the chunk's pixels; only what
a line says and its digest proves counts. So a killed preparation goes on after its last chunk, and
damage is mended from where it is.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import math
import os
import pathlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import numpy as np

from edf_jax.data.dataset import Split
from edf_jax.data.decode import ImageSettings, Unreadable, decode
from edf_jax.data.pipeline import in_workers
from edf_jax.data.sources import Listing, digest_of
from edf_jax.runtime import preemption, storage
from edf_jax.runtime.errors import UserError

VERSION = 2  # part of the key: raise it when the same settings give other pixels
_CHUNK_BYTES = 1 << 25
_CHUNK_IMAGES = 512
_GROUP = 8  # images that a worker decodes before it hands them over
_SHOWN = 3
_SECONDS_BETWEEN_LOOKS = 0.2


def prepare(
    listing: Listing,
    settings: ImageSettings,
    *,
    name: str,
    class_names: Sequence[str],
    cache_dir: pathlib.Path,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[Split, str]:
    """The decoded images of a listing, from the cache or into it.

    Images that cannot be read are left out, with a warning that names them.

    Args:
        listing: what to read.
        settings: what the images become.
        name: of the set and split, for the cache and for messages.
        class_names: by label.
        cache_dir: the data cache.
        workers: decoding threads; 0 for one per core.
        progress: called with the number of images just done.

    Returns:
        Images (a read-only memory map) and labels; and a digest of both, whatever the files that
        they came from are called.

    Raises:
        UserError: a class is left without images, images of a native-size set differ in size, or
            the cache cannot be written.
    """
    key = digest_of([VERSION, listing.identity, dataclasses.asdict(settings)])
    safe_name = re.sub(r"[^\w.-]+", "_", name)
    cache = _Cache(cache_dir / f"{safe_name}-{key[:16]}", key, len(listing))
    progress = progress or (lambda count: None)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with open(cache.beside(".lock"), "w") as lock:
            _wait_for(lock)  # a second process finds the files
            chunks = cache.finished()
            if chunks:
                progress(chunks[-1].stop)
            _fill(cache, chunks, listing, settings, workers, progress)
    except OSError as error:
        raise UserError(
            f"The data cache {cache_dir} cannot be written ({error.strerror or error}); set "
            "--config.data.cache_dir to a folder with space."
        ) from None
    left_out = [entry for chunk in chunks for entry in chunk.left_out]
    labels = np.delete(listing.labels, [i for i, _ in left_out])
    lost = np.setdiff1d(listing.labels, labels)
    if len(lost):
        i, why = next((i, why) for i, why in left_out if listing.labels[i] == lost[0])
        raise UserError(
            f"{name}: no image of class {class_names[lost[0]]} can be read, for example "
            f"{listing.name(i)} ({why})."
        )
    _tell(cache.base.name, listing, left_out, "cannot be read and are left out")
    remarks = [entry for chunk in chunks for entry in chunk.remarks]
    _tell(cache.base.name, listing, remarks, "are used in part")
    digest = digest_of([[chunk.pixels for chunk in chunks], labels.tolist()])
    return Split(np.load(cache.path, mmap_mode="r", allow_pickle=False), labels), digest


def _wait_for(lock: IO[str]) -> None:
    """Takes a lock once it is free, and meanwhile hears signals."""
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            preemption.stop_if_asked()
            time.sleep(_SECONDS_BETWEEN_LOOKS)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A line of the record: images `start` to `stop` of the listing are filled in.

    Attributes:
        pixels: digest of those that are kept.
        left_out: positions of images that could not be read, each with the reason.
        remarks: positions of images that are used in part, each with what was used.
    """

    start: int
    stop: int
    pixels: str
    left_out: list
    remarks: list

    @property
    def kept(self) -> int:
        return self.stop - self.start - len(self.left_out)


@dataclasses.dataclass(frozen=True)
class _Cache:
    """The files of a prepared split of `count` images."""

    base: pathlib.Path
    key: str
    count: int

    @property
    def path(self) -> pathlib.Path:
        return self.beside(".npy")

    def beside(self, suffix: str) -> pathlib.Path:
        return self.base.with_name(self.base.name + suffix)

    def finished(self) -> list[_Chunk]:
        """The first chunks that the record names and whose pixels are as it says."""
        chunks: list[_Chunk] = []
        row, whole = 0, False
        images = self.images()
        for chunk in self._recorded():
            whole |= chunk.stop == self.count
            rows = slice(row, row + chunk.kept)
            follows = chunk.start == (chunks[-1].stop if chunks else 0)
            if follows and images is not None and chunk.pixels == _digest(images[rows]):
                chunks.append(chunk)
                row = rows.stop
        if whole and (not chunks or chunks[-1].stop < self.count):
            warnings.warn(f"{self.path} is damaged; it is made again.", stacklevel=4)
        return chunks

    def open(self, shape: tuple[int, ...]) -> np.memmap:
        """The images, to be written; what was there before still is.

        Raises:
            OSError: there is no space for all of them.
        """
        self.path.touch()
        with open(self.path, "r+b") as file:
            # NumPy leaves room in the header for any count, so that it always ends at one place.
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            size = file.tell() + math.prod(shape)
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # A full disk is an error here, and a dead process where a hole is written to.
                os.posix_fallocate(file.fileno(), 0, size)
        return np.lib.format.open_memmap(self.path, mode="r+")

    def record(self, chunk: _Chunk) -> None:
        fields = dataclasses.asdict(chunk)
        # A killed process may have left half a line.
        with open(self.beside(".jsonl"), "a") as file:
            file.write("\n" + json.dumps({**fields, "digest": digest_of([self.key, fields])}))

    def _recorded(self) -> Iterator[_Chunk]:
        try:
            lines = self.beside(".jsonl").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                fields = json.loads(line)
                if fields.pop("digest") == digest_of([self.key, fields]):
                    yield _Chunk(**fields)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def images(self) -> np.memmap | None:
        """What is there of the images, to be read."""
        try:
            return np.lib.format.open_memmap(self.path, mode="r")
        except (OSError, ValueError, EOFError):
            return None


def _digest(array: np.ndarray) -> str:
    return storage.fingerprint(np.ascontiguousarray(array).data)


def _fill(cache: _Cache, chunks: list[_Chunk], listing, settings, workers: int, progress) -> None:
    """Decodes what `chunks` lack, and adds to them."""
    start = chunks[-1].stop if chunks else 0
    row = sum(chunk.kept for chunk in chunks)
    there = cache.images()
    if there is not None and start == len(listing):
        images, shape = there, there.shape[1:]
    else:
        shape = _image_shape(listing, settings)
        images = cache.open((len(listing), *shape))
        decoded = _decode_from(start, listing, settings, workers)
    rows = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // math.prod(shape)))
    while start < len(listing):
        first, stop = row, min(start + rows, len(listing))
        left_out, remarks = [], []
        for i, (pixels, remark) in zip(range(start, stop), decoded):
            if pixels is None:
                left_out.append([i, remark])
            elif pixels.shape != shape:
                raise UserError(
                    f"Images differ in size: {listing.name(i)} is {list(pixels.shape)}, the first "
                    f"{list(shape)}; set data.resolution."
                )
            else:
                images[row] = pixels
                row += 1
                if remark:
                    remarks.append([i, remark])
            progress(1)
        chunks.append(_Chunk(start, stop, _digest(images[first:row]), left_out, remarks))
        cache.record(chunks[-1])
        start = stop
    if len(images) != row:
        cache.open((row, *shape))


def _decode_from(start: int, listing: Listing, settings: ImageSettings, workers: int) -> Iterator:
    groups = range(start, len(listing), _GROUP)

    def decode_group(first: int) -> list[tuple[np.ndarray | None, str]]:
        group = range(first, min(first + _GROUP, len(listing)))
        return [_decode_one(listing, i, settings) for i in group]

    return itertools.chain.from_iterable(in_workers(decode_group, groups, workers))


def _decode_one(listing: Listing, i: int, settings: ImageSettings):
    try:
        return decode(listing.read(i), settings)
    except Unreadable as error:
        return None, str(error)
    except OSError as error:
        return None, error.strerror or str(error)


def _image_shape(listing: Listing, settings: ImageSettings) -> tuple[int, int, int]:
    if settings.resolution:
        return settings.resolution, settings.resolution, settings.channels
    for i in range(len(listing)):
        pixels, _ = _decode_one(listing, i, settings)
        if pixels is not None:
            return pixels.shape
    return 1, 1, settings.channels


def _tell(name: str, listing: Listing, entries: list, what: str) -> None:
    if entries:
        shown = "; ".join(f"{listing.name(i)} ({why})" for i, why in entries[:_SHOWN])
        more = f"; and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
        told = f"{name}: {len(entries)} of {len(listing)} images {what}: {shown}{more}."
        warnings.warn(told, stacklevel=3)
