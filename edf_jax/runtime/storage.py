"""Files that a run writes: they appear whole or not at all, and are checked on reading.

Arrays are Orbax checkpoints. Orbax loads an array with a flipped byte without a word, so a digest
of every array is kept beside the checkpoint and compared on reading. Small records are JSON with
a digest of themselves. Of processes that run together only the first writes, removes and locks; in
the others that does nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
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
# What a killed process can leave of a file or folder on its way in or out.
_LEFTOVERS = ("*.tmp", ".*.old")

# Orbax speaks of each file at length through absl's logger, and of its failures in pages; those
# are raised as well.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class DamagedFile(UserError):
    """A file that a run wrote can't be read back as it was written."""


class Busy(UserError):
    """Another process has a folder's lock."""


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


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Tells of a failure to write `path`, by whatever library, in one line.

    Raises:
        WriteFailed: anything was raised within.
    """
    try:
        yield
    except Exception as error:  # Orbax, TensorStore and safetensors have kinds of their own.
        raise WriteFailed(path, _cause(error)) from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a small file so that it appears whole or not at all."""
    if not processes.is_first():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path), _removed_on_failure(temporary):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_record(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON object with a digest of itself under `digest`."""
    sealed = {**record, "digest": digest_of_record(dict(record))}
    write_text(path, json.dumps(sealed, indent=1))


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        DamagedFile: it is missing, or isn't what was written.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        expected = record.pop("digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{path} can't be read: {_cause(error)}") from error
    if digest_of_record(record) != expected:
        raise DamagedFile(f"{path} isn't what was written (its digest differs)")
    return record


def save_arrays(
    path: pathlib.Path, arrays: Mapping[str, Any], details: Mapping[str, Any] | None = None
) -> None:
    """Writes named arrays as one checkpoint, replacing what was there.

    Args:
        path: the checkpoint's folder.
        arrays: by name; a name has no `/`.
        details: anything that JSON holds, read back by `load_details`.

    Raises:
        WriteFailed: nothing is there that wasn't before.
    """
    if not processes.is_first():
        return
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path), _removed_on_failure(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete(temporary)
        with _checkpointer() as checkpointer:
            checkpointer.save(
                (temporary / _ARRAYS).absolute(), args=ocp.args.PyTreeSave(dict(arrays)), force=True
            )
        digests = {name: digest(array) for name, array in arrays.items()}
        write_record(temporary / _DIGESTS, {"digests": digests, "details": dict(details or {})})
        _to_disk(temporary)
        remove(path)
        temporary.rename(path)


def load_details(path: pathlib.Path) -> dict[str, Any]:
    """What was saved as `details`.

    Raises:
        DamagedFile: the checkpoint is missing or its record unreadable.
    """
    return _record(path)["details"]


def load_arrays(path: pathlib.Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Reads named arrays, all where `names` is None, and only their bytes.

    Raises:
        DamagedFile: the checkpoint is missing, truncated, or an array isn't what was written.
    """
    digests = _record(path)["digests"]
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
        raise DamagedFile(f"{path} can't be read: {_cause(error)}") from error
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path), _removed_on_failure(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, sealed)
        _file_to_disk(temporary)
        temporary.replace(path)


def load_tensors(path: pathlib.Path, format: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata that `save_tensors` wrote.

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
        raise DamagedFile(f"{path} can't be read: {_cause(error)}") from error
    if metadata.get("format") != format:
        raise UserError(f"{path} is a .safetensors file, but no {format}")
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
    if not processes.is_first() or not os.path.lexists(path):
        return
    old = path.with_name(f".{path.name}.old")
    _delete(old)
    path.rename(old)
    _delete(old)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what a killed process left half-written, or half-removed, in a folder."""
    if not processes.is_first():
        return
    for pattern in _LEFTOVERS:
        for path in folder.glob(pattern):
            _delete(path)


@contextlib.contextmanager
def locked(folder: pathlib.Path, busy: str, *, beside: bool = False) -> Iterator[None]:
    """Keeps other processes from `folder`; a kill leaves no lock behind.

    Args:
        folder: made if missing.
        busy: said where another process has it.
        beside: keep only those out that don't lock it so, too.

    Raises:
        Busy: another process has it; says `busy`.
        WriteFailed: the folder can't be made or written.
    """
    if not processes.is_first():
        yield
        return
    with contextlib.ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "a+"))
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if beside else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # The one before may have removed its folder, and with it this very lock.
            current = os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / ".lock"))
        except BlockingIOError:
            raise Busy(busy) from None
        except FileNotFoundError:
            current = False
        except OSError as error:
            raise UserError(f"{folder} can't be locked: {_cause(error)}") from error
        if not current:
            raise Busy(busy)
        yield


def _checkpointer() -> ocp.Checkpointer:
    """Orbax's, for this process alone: by default all processes would have to save together."""
    if processes.count() == 1:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _record(path: pathlib.Path) -> dict[str, Any]:
    record = read_record(path / _DIGESTS)
    if not isinstance(record.get("digests"), dict) or not isinstance(record.get("details"), dict):
        raise DamagedFile(f"{path / _DIGESTS} is no record of a checkpoint")
    return record


def _delete(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _removed_on_failure(temporary: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception:
        # Orbax's threads may still be writing: what they make after us is removed too.
        for _ in range(_REMOVALS):
            with contextlib.suppress(OSError):
                _delete(temporary)
            time.sleep(_REMOVAL_SECONDS)
            if not temporary.exists():
                break
        raise


def _to_disk(folder: pathlib.Path) -> None:
    """Returns when a new folder's files are on the disk itself, not only on their way."""
    for file in folder.rglob("*"):
        if file.is_file():
            _file_to_disk(file)


def _file_to_disk(file: pathlib.Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: BaseException) -> str:
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
