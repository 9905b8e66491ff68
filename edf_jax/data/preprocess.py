"""Decode and resize once, in parallel; keep the result on disk.

A prepared split is three files in the data cache, named by a digest of everything that decides
its content: `<key>.npy` (uint8 images), `<key>.labels.npy`, and `<key>.json` with their digests,
written last. Until then finished chunks lie in `<key>.partial/`, from which a killed preparation
continues.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

import numpy as np

from edf_jax.data.dataset import Split
from edf_jax.data.decode import ImageSettings, Unreadable, decode
from edf_jax.data.sources import Listing, digest_of
from edf_jax.errors import UserError

VERSION = 1  # part of the key: raise it when the same settings give other pixels
_CHUNK_BYTES = 1 << 25
_CHUNK_IMAGES = 512
_SHOWN = 3


def prepare(
    listing: Listing,
    settings: ImageSettings,
    *,
    name: str,
    class_names: Sequence[str],
    cache_dir: pathlib.Path,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Split:
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
        Images (a read-only memory map) and labels.

    Raises:
        UserError: a class is left without images, or images of a native-size set differ in size.
    """
    key = split_key(listing, settings)
    file_name = re.sub(r"[^\w.-]+", "_", name)
    base = cache_dir / f"{file_name}-{key[:16]}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with open(_beside(base, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the files
        split = _read(base, key)
        if split is None:
            _make(base, key, listing, settings, workers, progress)
            split = _read(base, key)
        elif progress is not None:
            progress(len(listing))
    if split is None:
        raise UserError(f"{base}.npy changed right after it was written; is the disk failing?")
    lost = np.setdiff1d(listing.labels, split.labels)
    if len(lost):
        unreadable = json.loads(_beside(base, ".json").read_text())["left_out"]
        first = next(i for i, label in enumerate(listing.labels) if label == lost[0])
        why = dict(unreadable).get(listing.name(first), "unreadable")
        raise UserError(
            f"{name}: no image of class {class_names[lost[0]]} can be read, for example "
            f"{listing.name(first)} ({why})."
        )
    return split


def split_key(listing: Listing, settings: ImageSettings) -> str:
    """Digest of everything that decides what a prepared split holds."""
    return digest_of([VERSION, listing.identity, dataclasses.asdict(settings)])


def in_workers(function: Callable, items: Sequence, workers: int = 0) -> Iterator:
    """`function` of each item, in order, on `workers` threads (0: one per core)."""
    import grain

    threads = workers or len(os.sched_getaffinity(0))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads)
    return iter(grain.MapDataset.source(items).map(function).to_iter_dataset(options))


def write_atomically(path: pathlib.Path, write: Callable[[IO[bytes]], None]) -> None:
    """Writes under a temporary name, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


def _read(base: pathlib.Path, key: str) -> Split | None:
    """The prepared split, or None where it is not there or damaged (with a warning)."""
    record = _beside(base, ".json")
    if not record.exists():
        return None
    try:
        content = json.loads(record.read_text())
        images = np.load(_beside(base, ".npy"), mmap_mode="r", allow_pickle=False)
        labels = np.load(_beside(base, ".labels.npy"), allow_pickle=False)
        intact = (
            content["key"] == key
            and len(images) == len(labels)
            and content["images"] == _digest(images)
            and content["labels"] == _digest(labels)
        )
    except (OSError, ValueError, KeyError, EOFError):
        intact = False
    if not intact:
        warnings.warn(f"{base}.npy is damaged; it is made again.", stacklevel=2)
        record.unlink()
        return None
    _tell(base.name, len(labels) + len(content["left_out"]), content)
    return Split(images, labels)


def _beside(base: pathlib.Path, suffix: str) -> pathlib.Path:
    return base.with_name(base.name + suffix)


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256()
    rows = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows]))
    return digest.hexdigest()


def _tell(name: str, total: int, content: dict) -> None:
    for entries, what in (
        (content["left_out"], "cannot be read and are left out"),
        (content["remarks"], "are used in part"),
    ):
        if entries:
            shown = "; ".join(f"{image} ({why})" for image, why in entries[:_SHOWN])
            more = f"; and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
            told = f"{name}: {len(entries)} of {total} images {what}: {shown}{more}."
            warnings.warn(told, stacklevel=2)


def _make(base, key, listing: Listing, settings: ImageSettings, workers, progress) -> None:
    partial = _beside(base, ".partial")
    partial.mkdir(exist_ok=True)
    for stale in base.parent.glob(f"{base.name}.*.tmp"):  # of a process killed while writing
        stale.unlink()
    shape = _image_shape(listing, settings)
    rows = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // int(np.prod(shape))))
    starts = range(0, len(listing), rows)
    missing = []
    for start in starts:
        if _read_chunk(partial, key, start) is None:
            missing.append(start)
        elif progress is not None:
            progress(min(rows, len(listing) - start))
    wanted = [i for start in missing for i in range(start, min(start + rows, len(listing)))]
    decoded = in_workers(lambda i: _decode_one(listing, i, settings), wanted, workers)
    for start in missing:
        stop = min(start + rows, len(listing))
        _make_chunk(partial, key, start, stop, shape, decoded, listing, progress)
    _assemble(base, key, listing, shape, (_read_chunk(partial, key, s) for s in starts))
    shutil.rmtree(partial)


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


def _make_chunk(partial, key, start, stop, shape, decoded, listing: Listing, progress) -> None:
    images = np.empty((stop - start, *shape), np.uint8)
    kept, left_out, remarks = [], [], []
    for i in range(start, stop):
        pixels, remark = next(decoded)
        if pixels is None:
            left_out.append((listing.name(i), remark))
        elif pixels.shape != shape:
            raise UserError(
                f"Images differ in size: {listing.name(i)} is {list(pixels.shape)}, the first "
                f"{list(shape)}; set data.resolution."
            )
        else:
            images[len(kept)] = pixels
            kept.append(i)
            if remark:
                remarks.append((listing.name(i), remark))
        if progress is not None:
            progress(1)
    notes = json.dumps({"key": key, "left_out": left_out, "remarks": remarks})
    write_atomically(
        _chunk_path(partial, start),
        lambda file: np.savez(
            file, images=images[: len(kept)], kept=np.array(kept, np.int64), notes=notes
        ),
    )


def _chunk_path(partial: pathlib.Path, start: int) -> pathlib.Path:
    return partial / f"{start:09d}.npz"


def _read_chunk(partial: pathlib.Path, key: str, start: int):
    """(images, kept positions, notes) of a finished chunk; None where it is missing or damaged.

    Zip archives carry a checksum of each array, which reading verifies.
    """
    try:
        with np.load(_chunk_path(partial, start), allow_pickle=False) as archive:
            notes = json.loads(str(archive["notes"]))
            if notes["key"] == key:
                return archive["images"], archive["kept"], notes
    except FileNotFoundError:
        pass
    # A damaged archive makes zipfile and NumPy raise nearly anything.
    except Exception:
        pass
    return None


def _assemble(base, key: str, listing: Listing, shape, chunks: Iterable) -> None:
    digest = hashlib.sha256()
    kept, left_out, remarks = [], [], []

    def write(file) -> None:
        _write_header(file, len(listing), shape)
        for images, positions, notes in chunks:
            file.write(np.ascontiguousarray(images))
            digest.update(images)
            kept.append(positions)
            left_out.extend(notes["left_out"])
            remarks.extend(notes["remarks"])
        file.seek(0)
        _write_header(file, sum(map(len, kept)), shape)

    write_atomically(_beside(base, ".npy"), write)
    labels = listing.labels[np.concatenate(kept)] if kept else listing.labels
    write_atomically(_beside(base, ".labels.npy"), lambda file: np.save(file, labels))
    content = {
        "key": key,
        "images": digest.hexdigest(),
        "labels": _digest(labels),
        "left_out": left_out,
        "remarks": remarks,
    }
    text = json.dumps(content).encode()
    write_atomically(_beside(base, ".json"), lambda file: file.write(text))


def _write_header(file, count: int, shape) -> None:
    """The .npy header; as long for any count, since NumPy leaves it room to grow."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
