"""Decode and resize once, in parallel; keep the result on disk.

A prepared split is three files in the data cache, named by a digest of everything that decides
its content: `<key>.npy` (uint8 images), `<key>.labels.npy`, and `<key>.json` with their digests,
written last. Until then the images are filled in in `<key>.partial`, chunk by chunk, and
`<key>.journal` gets a line with the digest of each finished chunk: from there a killed preparation
continues.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edf_jax.data.dataset import Split
from edf_jax.data.decode import ImageSettings, Unreadable, decode
from edf_jax.data.rows import RowFile, digest
from edf_jax.data.sources import Listing, digest_of
from edf_jax.runtime import devices, storage
from edf_jax.runtime.errors import UserError

VERSION = 1  # part of the key: raise it when the same settings give other pixels
_CHUNK_BYTES = 1 << 25
_CHUNK_IMAGES = 512
_GROUP = 8  # images that a worker decodes before it hands them over
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
        UserError: a class is left without images, images of a native-size set differ in size, or
            the cache cannot be written.
    """
    key = split_key(listing, settings)
    file_name = re.sub(r"[^\w.-]+", "_", name)
    base = cache_dir / f"{file_name}-{key[:16]}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with open(_beside(base, ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the files
            if not _is_intact(base, key):
                _make(base, key, listing, settings, workers, progress)
            elif progress is not None:
                progress(len(listing))
    except (OSError, storage.WriteFailed) as error:
        raise UserError(
            f"The data cache {cache_dir} cannot be written "
            f"({getattr(error, 'strerror', None) or storage.cause(error)}); set "
            "--config.data.cache_dir to a folder with space."
        ) from None
    images = np.load(_beside(base, ".npy"), mmap_mode="r", allow_pickle=False)
    labels = np.load(_beside(base, ".labels.npy"), allow_pickle=False)
    record = json.loads(_beside(base, ".json").read_text())
    lost = np.setdiff1d(listing.labels, labels)
    if len(lost):
        first = int(np.argmax(listing.labels == lost[0]))
        why = dict(record["left_out"])[listing.name(first)]
        raise UserError(
            f"{name}: no image of class {class_names[lost[0]]} can be read, for example "
            f"{listing.name(first)} ({why})."
        )
    _tell(base.name, len(listing), record)
    return Split(images, labels)


def split_key(listing: Listing, settings: ImageSettings) -> str:
    """Digest of everything that decides what a prepared split holds."""
    return digest_of([VERSION, listing.identity, dataclasses.asdict(settings)])


def in_workers(function: Callable, items: Sequence, workers: int = 0) -> Iterator:
    """`function` of each item, in order, on `workers` threads (0: one per core)."""
    import grain

    threads = workers or devices.available_cores()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(grain.MapDataset.source(items).map(function).to_iter_dataset(options))


def _is_intact(base: pathlib.Path, key: str) -> bool:
    """Whether the prepared split is there; damaged, it loses its record, with a warning."""
    record = _beside(base, ".json")
    if not record.exists():
        return False
    try:
        content = json.loads(record.read_text())
        labels = np.load(_beside(base, ".labels.npy"), allow_pickle=False)
        with RowFile(_beside(base, ".npy")) as images:
            intact = (
                content["key"] == key
                and len(images) == len(labels)
                and content["images"] == images.digests(content["rows"])
                and content["labels"] == digest(labels)
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        intact = False
    if not intact:
        warnings.warn(f"{base}.npy is damaged; it is made again.", stacklevel=2)
        record.unlink()
    return intact


def _beside(base: pathlib.Path, suffix: str) -> pathlib.Path:
    return base.with_name(base.name + suffix)


def _tell(name: str, total: int, record: dict) -> None:
    for entries, what in (
        (record["left_out"], "cannot be read and are left out"),
        (record["remarks"], "are used in part"),
    ):
        if entries:
            shown = "; ".join(f"{image} ({why})" for image, why in entries[:_SHOWN])
            more = f"; and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
            told = f"{name}: {len(entries)} of {total} images {what}: {shown}{more}."
            warnings.warn(told, stacklevel=2)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A line of the journal: images from `start` on are filled in.

    Attributes:
        start: position of its first image.
        digest: of its rows in the partial file.
        left_out: positions of images that could not be read, each with the reason.
        remarks: positions of images that are used in part, each with what was used.
    """

    start: int
    digest: str
    left_out: list
    remarks: list


def _make(base, key, listing: Listing, settings: ImageSettings, workers, progress) -> None:
    storage.remove_leftovers(base.parent, of=base.name)
    shape = _image_shape(listing, settings)
    rows = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // int(np.prod(shape))))
    with _open_partial(base, (len(listing), *shape)) as images:
        chunks = _finished_chunks(base, key, images, rows)
        if chunks and progress is not None:
            progress(sum(min(rows, len(listing) - start) for start in chunks))
        missing = [start for start in range(0, len(listing), rows) if start not in chunks]
        decoded = _decode_all(
            listing,
            [i for start in missing for i in range(start, min(start + rows, len(listing)))],
            settings,
            workers,
        )
        buffer = np.empty((rows, *shape), np.uint8)
        with open(_beside(base, ".journal"), "a") as journal:
            for start in missing:
                stop = min(start + rows, len(listing))
                filled = buffer[: stop - start]
                left_out, remarks = _fill(filled, decoded, start, listing, progress)
                images.write(start, filled)
                chunk = _Chunk(start, digest(filled), left_out, remarks)
                # A killed process may have left half a line.
                journal.write("\n" + json.dumps({"key": key, **dataclasses.asdict(chunk)}))
                journal.flush()
                chunks[start] = chunk
        _finish(base, key, listing, images, rows, [chunks[start] for start in sorted(chunks)])


def _open_partial(base: pathlib.Path, shape) -> RowFile:
    """The images to fill in, image i in row i; what a killed process filled in is still there."""
    path, final = _beside(base, ".partial"), _beside(base, ".npy")
    if final.exists() and not path.exists():
        os.replace(final, path)  # killed just before the record was written
    try:
        images = RowFile(path)
        if images.shape == shape:
            return images
    except (OSError, ValueError, KeyError, EOFError):
        pass
    return RowFile.create(path, shape)


def _finished_chunks(base: pathlib.Path, key: str, images: RowFile, rows: int) -> dict[int, _Chunk]:
    """The chunks that the journal names and whose digests are right."""
    finished: dict[int, _Chunk] = {}
    try:
        lines = _beside(base, ".journal").read_text().splitlines()
    except FileNotFoundError:
        return finished
    for line in lines:
        try:
            fields = json.loads(line)
            if fields.pop("key") != key:
                continue
            chunk = _Chunk(**fields)
            written = images.read(chunk.start, chunk.start + rows)
            if chunk.start % rows == 0 and chunk.digest == digest(written):
                finished[chunk.start] = chunk
        except (ValueError, KeyError, TypeError):
            continue  # the line that was being written when the process was killed
    return finished


def _decode_all(listing: Listing, wanted: list[int], settings: ImageSettings, workers) -> Iterator:
    groups = [wanted[first : first + _GROUP] for first in range(0, len(wanted), _GROUP)]

    def decode_group(group: list[int]):
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


def _fill(images: np.ndarray, decoded: Iterator, start: int, listing: Listing, progress):
    """Fills `[k, H, W, C]`, with zeros where one is unreadable; returns left out, remarks."""
    left_out, remarks = [], []
    for row in range(len(images)):
        i = start + row
        pixels, remark = next(decoded)
        if pixels is None:
            images[row] = 0
            left_out.append((i, remark))
        elif pixels.shape != images.shape[1:]:
            raise UserError(
                f"Images differ in size: {listing.name(i)} is {list(pixels.shape)}, the first "
                f"{list(images.shape[1:])}; set data.resolution."
            )
        else:
            images[row] = pixels
            if remark:
                remarks.append((i, remark))
        if progress is not None:
            progress(1)
    return left_out, remarks


def _finish(base, key: str, listing: Listing, images, rows: int, chunks: list[_Chunk]) -> None:
    """Gives the filled-in images their name, without the rows that are left out."""
    left_out = [entry for chunk in chunks for entry in chunk.left_out]
    remarks = [entry for chunk in chunks for entry in chunk.remarks]
    partial, labels = _beside(base, ".partial"), listing.labels
    if left_out:
        kept = np.delete(np.arange(len(listing)), [i for i, _ in left_out])
        with (
            storage.appearing(_beside(base, ".npy")) as temporary,
            RowFile.create(temporary, (len(kept), *images.shape[1:])) as compact,
        ):
            done = 0
            for chunk in chunks:
                lost = [i - chunk.start for i, _ in chunk.left_out]
                rest = np.delete(images.read(chunk.start, chunk.start + rows), lost, axis=0)
                compact.write(done, rest)
                done += len(rest)
            digests = compact.digests(rows)
        labels = labels[kept]
    else:
        digests = [chunk.digest for chunk in chunks]
        os.replace(partial, _beside(base, ".npy"))
    with storage.appearing(_beside(base, ".labels.npy")) as made, open(made, "wb") as file:
        np.save(file, labels)
    content = {
        "key": key,
        "rows": rows,
        "images": digests,
        "labels": digest(labels),
        "left_out": [(listing.name(i), why) for i, why in left_out],
        "remarks": [(listing.name(i), remark) for i, remark in remarks],
    }
    with storage.appearing(_beside(base, ".json")) as made:
        made.write_text(json.dumps(content))
    partial.unlink(missing_ok=True)
    _beside(base, ".journal").unlink()
