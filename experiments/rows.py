"""The runs of experiments as rows of a CSV file: what a repository can carry of them.

A row is a run: what it was compared in, its settings, and what came of it. An experiment that asks
`is_kept` before each run, and calls `append` after it, goes on from the file alone, on any machine.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edf_jax.config.resolve import flatten
from edf_jax.config.schema import SCHEMA
from edf_jax.report.tables import NOT_SETTINGS
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

Line = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Row:
    """One run, or one of several sets that a run measured.

    Attributes:
        experiment: what it was compared in; a table of docs/results.md has this name.
        method: the label of its row there.
        data: the data set.
        resolution: the side of its images, in pixels.
        ipc: images per class.
        seed: the run's.
        accuracies: on test images, in percent, of each network trained on the set; none of a trial
            that asks held-out images alone.
        best_on_test: those of the set that was best on test images, where there is one.
        average: those of FTD's moving average, where there is one.
        held_out: mean accuracy on held-out training images, in percent, where they were asked.
        seconds: of the whole run.
        own_seconds: of them without what other runs share: distilling and evaluating.
        skipped: iterations that were skipped; None where unknown.
        memory_mb: the largest resident size, in MiB.
        device_memory_mb: the most that an accelerator held, in MiB.
        image_bytes: of the set's images as they are stored; None where unknown.
        label_bytes: of its labels.
        epochs: that each network was trained on the set; None where unknown.
        steps: of an epoch.
        experts: the method of the row that trained its experts; "" where it did so itself.
        made_with: hardware and versions.
        command: what was typed.
        settings: what identifies the run, as `settings_of` says.
    """

    experiment: str
    method: str
    data: str
    resolution: int
    ipc: int
    seed: int
    accuracies: tuple[float, ...]
    best_on_test: tuple[float, ...] = ()
    average: tuple[float, ...] = ()
    held_out: float | None = None
    seconds: float = 0.0
    own_seconds: float = 0.0
    skipped: int | None = None
    memory_mb: int | None = None
    device_memory_mb: int | None = None
    image_bytes: int | None = None
    label_bytes: int | None = None
    epochs: int | None = None
    steps: int | None = None
    experts: str = ""
    made_with: str = ""
    command: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies)) if self.accuracies else math.nan

    @property
    def std(self) -> float:
        """Over networks, ddof 0."""
        return float(np.std(self.accuracies)) if self.accuracies else math.nan

    @property
    def digest(self) -> str:
        """The settings', which is the run's identity."""
        return storage.digest_of_record(dict(self.settings))

    def line(self) -> Line:
        """The row as the file holds it; mean, deviation and digest stand there for readers."""
        told = {name: _told(getattr(self, name)) for name in _FIELDS}
        derived = {"mean": self.mean, "std": self.std} if self.accuracies else {}
        told |= {name: f"{value:.2f}" for name, value in derived.items()}
        told["digest"] = self.digest
        return {name: told.get(name, "") for name in _COLUMNS}


_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Row)}
_REQUIRED = ("experiment", "method", "data", "resolution", "ipc", "seed", "accuracies")
_COLUMNS = (*_REQUIRED[:-1], "mean", "std", *list(_FIELDS)[6:-1], "digest", "settings")
_READ: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "int | None": int,
    "float | None": float,
    "tuple[float, ...]": lambda text: tuple(map(float, text.split())),
    "Mapping[str, Any]": json.loads,
}


def settings_of(config, made: str = "") -> dict[str, Any]:
    """What identifies a run: all that can change its result and isn't at its default.

    Where data, experts and teachers lie plays no part, nor do logs and devices. A key that comes
    into being later, and is at its default, leaves the identity of earlier runs as it is.

    Args:
        config: resolved; a config, or what `config.json` holds.
        made: what was made by it, if not a distilled set: `experts`, or the name of a baseline.
    """
    changed = {
        name: value
        for name, value in flatten(config).items()
        if not name.startswith(NOT_SETTINGS)
        and (name not in SCHEMA or value != SCHEMA[name].default)
    }
    return {**changed, "made": made} if made else changed


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a file, in its order; none where there is no file.

    Raises:
        UserError: it holds something else.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            told = {name: text for name, text in line.items() if text or name in _REQUIRED}
            rows.append(
                Row(**{n: _READ[kind](told[n]) for n, kind in _FIELDS.items() if n in told})
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, row {number}, isn't a run's ({error}): mend it") from error
    return rows


def is_kept(path: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """Whether a file has the run of these settings (see `settings_of`)."""
    digest = storage.digest_of_record(dict(settings))
    return any(row.digest == digest for row in read(path))


def append(path: pathlib.Path, row: Row) -> None:
    """Adds a run to a file, which appears whole or not at all; several processes may do so at once.

    The same run in the same experiment takes its earlier row's place.
    """
    new = row.line()
    same = ("experiment", "method", "digest")
    _edit(path, lambda old: [r for r in old if any(r[k] != new[k] for k in same)] + [new])


def replace(path: pathlib.Path, experiment: str, lines: list[Line]) -> None:
    """Puts lines in the place of all that a CSV file has of an experiment."""
    _edit(path, lambda old: [r for r in old if r["experiment"] != experiment] + lines)


def read_lines(path: pathlib.Path) -> list[Line]:
    """A CSV file's lines by column; none where there is no file.

    Raises:
        UserError: a line has fewer or more columns than the first, as a merge can leave them.
    """
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for number, line in enumerate(lines, start=1):
        if None in line or None in line.values():
            raise UserError(f"{path}, row {number}, has not as many columns as the first: mend it")
    return lines


def _edit(path: pathlib.Path, change: Callable[[list[Line]], list[Line]]) -> None:
    """Changes a CSV file's lines, beside other processes that do; it is made if missing."""
    with _alone_in(path.parent):
        lines = change(read_lines(path))
        buffer = io.StringIO()
        columns = list(dict.fromkeys(name for line in lines for name in line))
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        storage.write_text(path, buffer.getvalue())


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process edits a file of a folder; a kill leaves no lock behind."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        # As few digits as tell a float32 from its neighbours.
        return " ".join(str(np.float32(number)) for number in value)
    if isinstance(value, Mapping):
        return json.dumps(dict(value), sort_keys=True)
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)
