"""Arrays on disk: Orbax checkpoints that appear whole or not at all, with a digest of each array.

Orbax loads an array with a flipped byte without a word, so a digest of every array is kept beside
the checkpoint and compared on reading.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

_ARRAYS = "arrays"
_DIGESTS = "digests.json"

# Orbax speaks of each file at length through absl's logger.
for _name in ("absl",):
    logging.getLogger(_name).addFilter(
        lambda record: "orbax" not in record.pathname or record.levelno >= logging.ERROR
    )


class DamagedFile(Exception):
    """A file that a run wrote can't be read back as it was written."""


def digest(array: np.ndarray) -> str:
    """Hex digest of an array's shape, dtype and bytes."""
    array = np.ascontiguousarray(array)
    header = f"{array.dtype.str}{array.shape}".encode()
    hasher = hashlib.blake2b(header, digest_size=16)
    hasher.update(array.data if array.size else b"")
    return hasher.hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a small file so that it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_arrays(
    path: pathlib.Path, arrays: Mapping[str, Any], details: Mapping[str, Any] | None = None
) -> None:
    """Writes named arrays as one checkpoint, replacing what was there.

    Args:
        path: the checkpoint's folder.
        arrays: by name; a name has no `/`.
        details: anything that JSON holds, read back by `load_details`.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            (temporary / _ARRAYS).absolute(), args=ocp.args.PyTreeSave(dict(arrays)), force=True
        )
    digests = {name: digest(array) for name, array in arrays.items()}
    (temporary / _DIGESTS).write_text(
        json.dumps({"digests": digests, "details": dict(details or {})})
    )
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
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
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arrays = checkpointer.restore(
                (path / _ARRAYS).absolute(),
                args=ocp.args.PyTreeRestore(
                    item={name: 0 for name in names}, restore_args=as_numpy, partial_restore=True
                ),
            )
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
        raise DamagedFile(f"{path} can't be read: {_first_line(error)}") from error
    for name in names:
        if digest(arrays[name]) != digests[name]:
            raise DamagedFile(f"{path}: {name} isn't what was written (its digest differs)")
    return arrays


def _record(path: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads((path / _DIGESTS).read_text())
        return {"digests": dict(record["digests"]), "details": record["details"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} can't be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
