"""Files that a run writes: they appear whole or not at all, and are checked on reading.

Arrays are Orbax checkpoints. Orbax loads an array with a flipped byte without a word, so a digest
of every array is kept beside the checkpoint and compared on reading, and so is the place that the
checkpoint is for: a digest says that a file is whole, not whose it is. Small records are JSON with
a digest of themselves. Of processes that run together only the first writes, removes and locks; in
the others that does nothing.

`ocp.CheckpointManager` (0.12) reads a snapshot as fast, but would cost promises, so names, renaming
and pruning are our own. It renames what isn't on the disk yet (no `fsync`), so that a power cut may
leave several named checkpoints empty; a full disk gives pages of traceback and leaves the half
checkpoint there; a step before the newest, which is how a damaged epoch of experts is made good, is
passed over without a word, and one that is there can't be replaced; and its pruning knows no "last
two that every uninterrupted run writes".
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from edf_jax.runtime import processes
from edf_jax.runtime.errors import UserError

_ARRAYS = "arrays"
_DIGESTS = "digests.json"
_REMOVALS, _REMOVAL_SECONDS = 20, 0.1
# Ends the names of what is on its way in or out, which a killed process can leave behind.
_PASSING = ".edf_jax_tmp"

# Orbax speaks of each file at length through absl's logger, and of its failures in pages; those
# are raised as well.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class DamagedFile(UserError):
    """A file that a run wrote can't be read back as it was written."""


class WriteFailed(UserError):
    """A file can't be written: the disk is full, say, or the folder read-only.

    Attributes:
        cause: why, in a few words.
    """

    def __init__(self, path: pathlib.Path, cause: str):
        super().__init__(
            f"{path} can't be written: {cause}; mend that, and the same command continues"
        )
        self.cause = cause


def digest(array: np.ndarray) -> str:
    """Hex digest of an array's shape, dtype and bytes."""
    array = np.ascontiguousarray(array)
    header = f"{array.dtype.str}{array.shape}".encode()
    hasher = hashlib.blake2b(header, digest_size=16)
    hasher.update(array.data if array.size else b"")
    return hasher.hexdigest()


def digest_of_record(record: Any) -> str:
    """Hex digest of anything that JSON can say."""
    content = json.dumps(record, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint(*contents: bytes | memoryview) -> str:
    """Hex digest that names data, teachers and folders; earlier versions' names stay good."""
    hasher = hashlib.sha256()
    for content in contents:
        hasher.update(content)
    return hasher.hexdigest()


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Tells of a failure to write `path`, by whatever library, in one line.

    Raises:
        WriteFailed: anything was raised within.
    """
    try:
        yield
    except Exception as error:  # Orbax, TensorStore and safetensors have kinds of their own.
        raise WriteFailed(path, cause(error)) from error


@contextlib.contextmanager
def appearing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`: what is made there takes its place, once it is on the disk.

    Nothing is left of it where anything is raised within.

    Args:
        path: a file or folder, replaced if it is there.

    Raises:
        WriteFailed: it can't be put in its place.
    """
    temporary = _passing(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with writing(path):
            files = temporary.rglob("*") if temporary.is_dir() else [temporary]
            for file in files:
                if file.is_file() and not file.is_symlink():
                    _to_disk(file)
            if temporary.is_dir():
                remove(path)
            temporary.replace(path)
    except BaseException:
        # Orbax's threads may still be writing: what they make after us is removed too.
        for _ in range(_REMOVALS):
            with contextlib.suppress(OSError):
                _delete(temporary)
            if not os.path.lexists(temporary):
                time.sleep(_REMOVAL_SECONDS)
                if not os.path.lexists(temporary):
                    break
        raise


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a small file so that it appears whole or not at all."""
    if processes.is_first():
        with appearing(path) as temporary, writing(path):
            temporary.write_bytes(content)


def write_text(path: pathlib.Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_record(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON object with a digest of itself under `digest`."""
    sealed = {**record, "digest": digest_of_record(dict(record))}
    write_text(path, json.dumps(sealed, indent=1))


def read_record(path: pathlib.Path, *, sealed: bool = True) -> dict[str, Any]:
    """What `write_record` wrote.

    Args:
        path: the file.
        sealed: False also takes one without a digest, as earlier versions and people write them.

    Raises:
        DamagedFile: it is missing, or isn't what was written.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        expected = record.pop("digest") if sealed or "digest" in record else None
        if not isinstance(record, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path} can't be read: {cause(error)}") from error
    if expected is not None and digest_of_record(record) != expected:
        raise DamagedFile(f"{path} isn't what was written (its digest differs)")
    return record


def check_place(path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses what was made for another place.

    Args:
        path: the file, for the message.
        found: the place it says it is for; a key that it doesn't know, as an earlier version may
            not, passes.
        wanted: the place where it is read.

    Raises:
        DamagedFile: it is another file, copied or moved there.
    """
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise DamagedFile(
                f"{path} was put there from elsewhere: it is of {name} {found[name]}, not {value}"
            )


def save_arrays(
    path: pathlib.Path,
    arrays: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
    place: Mapping[str, Any] | None = None,
) -> None:
    """Writes named arrays as one checkpoint, replacing what was there.

    Args:
        path: the checkpoint's folder.
        arrays: by name; a name has no `/`.
        details: anything that JSON holds, read back by `load_details`.
        place: what the checkpoint is of, compared on reading.

    Raises:
        WriteFailed: nothing is there that wasn't before.
    """
    if not processes.is_first():
        return
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    with appearing(path) as temporary, writing(path):
        with _checkpointer() as checkpointer:
            checkpointer.save(
                (temporary / _ARRAYS).absolute(), args=ocp.args.PyTreeSave(dict(arrays))
            )
        digests = {name: digest(array) for name, array in arrays.items()}
        record = {"digests": digests, "details": dict(details or {}), "place": dict(place or {})}
        write_record(temporary / _DIGESTS, record)


def load_details(
    path: pathlib.Path, place: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What was saved as `details`.

    Raises:
        DamagedFile: the checkpoint is missing, its record unreadable, or of another place.
    """
    return _record(path, place)["details"]


def load_arrays(
    path: pathlib.Path,
    names: Iterable[str] | None = None,
    place: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Reads named arrays, all where `names` is None, and only their bytes.

    Raises:
        DamagedFile: the checkpoint is missing, truncated, of another place, or an array isn't what
            was written.
    """
    digests = _record(path, place)["digests"]
    names = tuple(digests) if names is None else tuple(names)
    missing = set(names) - set(digests)
    if missing:
        raise DamagedFile(f"{path} holds no {', '.join(sorted(missing))}")
    if not names:
        return {}
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    try:
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore(
                (path / _ARRAYS).absolute(),
                args=ocp.args.PyTreeRestore(
                    item={name: 0 for name in names}, restore_args=as_numpy, partial_restore=True
                ),
            )
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
        raise DamagedFile(f"{path} can't be read: {cause(error)}") from error
    for name in names:
        if not isinstance(arrays.get(name), np.ndarray) or digest(arrays[name]) != digests[name]:
            raise DamagedFile(f"{path}: {name} isn't what was written (its digest differs)")
    return arrays


def save_tensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a `.safetensors` file, whole or not at all, with digests of all that it holds.

    Args:
        path: the file.
        tensors: by name.
        metadata: words, with the kind of file under `format`.
    """
    from safetensors.numpy import save_file

    if not processes.is_first():
        return
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    digests = json.dumps({name: digest(tensor) for name, tensor in tensors.items()})
    sealed = {**metadata, "digests": digests}
    sealed["digest"] = digest_of_record(sealed)
    with appearing(path) as temporary, writing(path):
        temporary.touch()
        rights = temporary.stat().st_mode  # The umask's; safetensors would give the owner's alone.
        save_file(tensors, temporary, sealed)
        temporary.chmod(rights)


def load_tensors(
    path: pathlib.Path, *formats: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata that `save_tensors` wrote, in one of some formats.

    Raises:
        DamagedFile: it is missing, or isn't what was written.
        UserError: it is another kind of file.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # A damaged header makes it raise many kinds.
        raise DamagedFile(f"{path} can't be read: {cause(error)}") from error
    if metadata.get("format") not in formats:
        raise UserError(f"{path} is a .safetensors file, but no {formats[0]}")
    check_tensors(path, tensors, metadata)
    return tensors, metadata


def check_tensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Compares what was read from a file with the digests that `save_tensors` put there.

    Raises:
        DamagedFile: it isn't what was written.
    """
    content = {name: value for name, value in metadata.items() if name != "digest"}
    if digest_of_record(content) != metadata.get("digest"):
        raise DamagedFile(f"{path}: its metadata isn't what was written (the digest differs)")
    for name, expected in json.loads(content.get("digests", "{}")).items():
        if name not in tensors or digest(tensors[name]) != expected:
            raise DamagedFile(f"{path}: {name} isn't what was written (its digest differs)")


def remove(path: pathlib.Path) -> None:
    """Removes a file or folder if it is there; a kill leaves all of it or nothing."""
    if processes.is_first() and os.path.lexists(path):
        old = _passing(path)
        path.rename(old)
        _delete(old)


def remove_leftovers(folder: pathlib.Path, of: str = "") -> None:
    """Removes what killed processes left in a folder on its way in or out, and nothing else.

    Args:
        folder: where no other process writes.
        of: of names that begin so alone.
    """
    if processes.is_first():
        for path in folder.glob(f".{glob.escape(of)}*{_PASSING}"):
            _delete(path)


def is_passing(path: pathlib.Path) -> bool:
    """Whether a name is one that a killed process leaves, of something on its way in or out."""
    return path.name.startswith(".") and path.name.endswith(_PASSING)


def _passing(path: pathlib.Path) -> pathlib.Path:
    """A name beside `path` that no other process gives."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PASSING}")


def _checkpointer() -> ocp.Checkpointer:
    """Orbax's, for this process alone: by default all processes would have to save together."""
    if processes.count() == 1:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _record(path: pathlib.Path, place: Mapping[str, Any] | None) -> dict[str, Any]:
    record = read_record(path / _DIGESTS)
    if not isinstance(record.get("digests"), dict) or not isinstance(record.get("details"), dict):
        raise DamagedFile(f"{path / _DIGESTS} is no record of a checkpoint")
    check_place(path, record.get("place", {}), place or {})
    return record


def _delete(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _to_disk(file: pathlib.Path) -> None:
    """Returns when a file is on the disk itself, not only on its way."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cause(error: BaseException) -> str:
    """Why, in a few words: the system's own where an error says so."""
    if isinstance(error, WriteFailed):
        return error.cause
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).strip() or type(error).__name__
    for known in ("No space left on device", "Disk quota exceeded", "Read-only file system",
                  "Permission denied", "File too large"):
        if known.lower() in text.lower():
            return known.lower()
    return text.splitlines()[0][:200]
