"""A distilled set for other tools: PNG images, NumPy, PyTorch, Hugging Face, TFDS.

python -m edf_jax.export --run=runs/demo --to=images         PNG files and a table of soft labels
python -m edf_jax.export --run=runs/demo --to=npz            one NumPy file
python -m edf_jax.export --run=runs/demo --to=torch          the .pt files of the official codes
python -m edf_jax.export --run=runs/demo --to=huggingface    Parquet with a dataset card
python -m edf_jax.export --run=runs/demo --to=tfds           a TFDS folder (array_record)
"""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edf_jax import distilled_set
from edf_jax.distilled_set import DistilledSet
from edf_jax.export import huggingface
from edf_jax.export.formats import (
    CHOSEN,
    FORMAT,
    describe,
    write_images,
    write_npz,
    write_tfds,
    write_torch,
)
from edf_jax.runs.files import RunFiles
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

# Each fills an empty folder from the set and its record.
_WRITERS: dict[str, Callable[[DistilledSet, Mapping[str, Any], pathlib.Path], None]] = {
    "images": write_images,
    "torch": write_torch,
    "huggingface": huggingface.write_huggingface,
    "tfds": write_tfds,
}
FORMATS = ("images", "npz", "torch", "huggingface", "tfds")
_RECORD = "distilled_set.json"


def export(
    distilled: DistilledSet,
    to: str,
    out: str | os.PathLike,
    *,
    result: Mapping[str, Any] | None = None,
    kind: str = "",
) -> pathlib.Path:
    """Writes a distilled set in another form; it appears whole or not at all.

    Args:
        distilled: the set.
        to: one of `FORMATS`.
        out: a folder, or with `npz` a file that ends in `.npz`. An earlier export there is
            replaced.
        result: the run's `result.json`, told in the record and on the dataset card.
        kind: which of the run's sets it is (see `formats.describe`).

    Returns:
        `out`.

    Raises:
        UserError: `out` is something else than an earlier export or can't be written, the format
            can't hold these images, or an optional package is missing.
    """
    if to not in FORMATS:
        raise UserError(f"--to={to}: choose one of {', '.join(FORMATS)}")
    out = pathlib.Path(out)
    record = describe(distilled, result or {}, kind)
    (_check_file if to == "npz" else _check_folder)(out)
    try:
        with storage.appearing(out) as temporary:
            if to == "npz":
                write_npz(distilled, record, temporary)
            else:
                temporary.mkdir()
                _WRITERS[to](distilled, record, temporary)
                record = {**record, "files": _files(temporary)}
                (temporary / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror or error}") from error
    return out


def export_run(run: str | os.PathLike, to: str, out: str | os.PathLike = "") -> pathlib.Path:
    """Exports the set that a run is about, or the set in a `.safetensors` file.

    Args:
        run: a run's folder, one of the files in its `distilled/`, or `zoo:NAME`.
        to: one of `FORMATS`.
        out: where; by default `exported/<to>` in the run's folder (`exported/distilled.npz`). A
            set of the zoo has none.

    Returns:
        What was written.

    Raises:
        UserError: there is no such set, its file is damaged, or see `export`.
    """
    path = distilled_set.located(run)
    distilled = distilled_set.load(path)
    if path.parent == distilled_set.ZOO:
        if not out:
            raise UserError(f"--run={run} has no folder of its own: give --out")
        result = storage.read_record(path.with_suffix(".json"))["result"]
        return export(distilled, to, out, result=result)
    name = distilled_set.selected(path) if path.is_dir() else path.stem
    kind = "distilled" if name == "last" else name if name in CHOSEN else ""
    folder = path if path.is_dir() else path.parent
    if folder.name == "distilled":
        folder = folder.parent
    default = folder / "exported" / ("distilled.npz" if to == "npz" else to)
    return export(distilled, to, out or default, result=RunFiles(folder).result, kind=kind)


def _check_file(out: pathlib.Path) -> None:
    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"--out={out}: give a file that ends in .npz")
    if not out.exists():
        return
    try:
        with np.load(out, allow_pickle=False) as arrays:
            earlier = json.loads(str(arrays["record"]))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        earlier = False
    if not earlier:
        raise UserError(f"--out={out} is no export of ours: give another name")


def _check_folder(out: pathlib.Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out={out} is a file: give a folder")
    try:
        record = json.loads((out / _RECORD).read_text())
        own = set(record["files"]) if record["format"] == FORMAT else set()
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    others = [name for name in _files(out) if name not in own]
    if others:
        raise UserError(
            f"--out={out} holds other files ({others[0]}): give an empty or new folder"
        )


def _files(folder: pathlib.Path) -> list[str]:
    """What a folder holds, but for the record."""
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return sorted(name for name in files if name != _RECORD)

