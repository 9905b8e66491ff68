"""What a run measures: `metrics.jsonl`, TensorBoard events and, if asked for, Weights & Biases.

A row of metrics.jsonl is one event: `{"stage", "step", "time", ...scalars, "check"}`, where `check`
is a checksum of all but the time. `metrics.jsonl` is the record, which figures and the report are
drawn from; the others are copies for watching. Of processes that run together the first writes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edf_jax.runtime import processes
from edf_jax.runtime.errors import UserError

_FILE = "metrics.jsonl"
_log = logging.getLogger(__name__)
# A killed run's events of the last seconds are missing from TensorBoard, not from metrics.jsonl.
_TENSORBOARD_FLUSH_SECONDS = 10


class MetricsWriter:
    """Writes the measurements of a run, and takes back those that a resumed run makes again.

    Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        workdir: str | Path,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        config: dict[str, Any] | None = None,
    ):
        """Opens the run's metrics.

        A last line torn by a kill is dropped, other damaged lines with a warning.

        Args:
          workdir: the run's folder; made if missing.
          tensorboard: whether to write events to `workdir/tensorboard/<stage>`.
          wandb_project: Weights & Biases project, None or "" for none. The run's id is kept in
            the workdir, so that a resumed run continues the same charts.
          config: what Weights & Biases shows as the run's settings.

        Raises:
          UserError: `wandb_project` is given and wandb is not installed.
        """
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._path = self._workdir / _FILE
        _drop_damaged_lines(self._path)
        self._file = open(self._path, "a", buffering=1, encoding="utf-8")
        self._tensorboard = tensorboard
        self._events: dict[str, Any] = {}
        self._wandb = _start_wandb(self._workdir, wandb_project, config) if wandb_project else None
        self._wandb_sent: dict[str, int] = {}

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def write(self, step: int, stage: str, **scalars: Any) -> None:
        """Appends one row, and sends its numbers on.

        Args:
          step: the stage's own count (iteration, epoch).
          stage: "experts", "distill", "evaluate" or another stage's name.
          **scalars: numbers, booleans, words, or arrays of one number. Not-a-number and infinity
            become null, for JSON has no such numbers.
        """
        values = {name: _plain(value) for name, value in scalars.items()}
        row = {"stage": stage, "step": int(step), "time": round(time.time(), 3), **values}
        self._file.write(json.dumps({**row, "check": _check(row)}, allow_nan=False) + "\n")
        numbers = {k: v for k, v in values.items() if isinstance(v, (bool, int, float))}
        for name, value in numbers.items():
            self._show(stage, "add_scalar", f"{stage}/{name}", value, int(step))
        if self._wandb is not None and step > self._wandb_sent.get(stage, -1):
            charts = {f"{stage}/{name}": value for name, value in numbers.items()}
            self._wandb.log({**charts, f"{stage}/step": int(step)})

    def images(self, step: int, stage: str, name: str, images) -> None:
        """Sends pictures to TensorBoard: `[H, W, 3]` or `[n, H, W, C]`, in [0, 1] or uint8."""
        if not self._tensorboard:
            return
        pixels = np.asarray(images)
        if pixels.shape[-1] == 1:
            pixels = np.repeat(pixels, 3, axis=-1)
        add, form = ("add_images", "NHWC") if pixels.ndim == 4 else ("add_image", "HWC")
        self._show(stage, add, f"{stage}/{name}", pixels, step, dataformats=form)

    def histogram(self, step: int, stage: str, name: str, values) -> None:
        """Sends the distribution of the finite `values` (any shape) to TensorBoard."""
        if not self._tensorboard:
            return
        flat = np.asarray(values, np.float64).ravel()
        flat = flat[np.isfinite(flat)]
        if flat.size:
            self._show(stage, "add_histogram", f"{stage}/{name}", flat, step)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The stage's rows so far, as `read_metrics` reads them."""
        return read_metrics(self._workdir, stage)

    def sync(self) -> None:
        """Returns when all rows are on the disk itself."""
        os.fsync(self._file.fileno())

    def truncate_after(self, stage: str, step: int) -> None:
        """Takes back `stage`'s rows of later steps: a run resumed there makes them again."""
        self._file.close()
        kept, last = [], -1
        for line, row in _read(self._path)[0]:
            if row["stage"] == stage:
                last = max(last, row["step"])
            if row["stage"] != stage or row["step"] <= step:
                kept.append(line)
        _replace(self._path, kept)
        self._file = open(self._path, "a", buffering=1, encoding="utf-8")
        # W&B cannot take rows back: those it has are not sent a second time.
        self._wandb_sent[stage] = last
        if self._tensorboard and last > step:
            with self._without_tensorboard_on_failure():
                self._close_writer(stage)
                self._writer(stage, purge_step=step + 1)

    def sort(self, stage: str, before: tuple[str, ...]) -> None:
        """Puts `stage`'s rows in the order of their steps, and before those of other stages."""
        rows = _read(self._path)[0]
        own = sorted((row for row in rows if row[1]["stage"] == stage), key=lambda r: r[1]["step"])
        others = [row for row in rows if row[1]["stage"] != stage]
        at = [i for i, (_, row) in enumerate(others) if row["stage"] in before]
        place = at[0] if at else len(others)
        ordered = [*others[:place], *own, *others[place:]]
        if ordered != rows:
            self._file.close()
            _replace(self._path, [line for line, _ in ordered])
            self._file = open(self._path, "a", buffering=1, encoding="utf-8")

    def close(self) -> None:
        """Writes what is left; the writer is of no use after that."""
        with self._without_tensorboard_on_failure():
            for stage in list(self._events):
                self._close_writer(stage)
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _show(self, stage: str, method: str, *arguments, **options) -> None:
        if self._tensorboard:
            with self._without_tensorboard_on_failure():
                getattr(self._writer(stage), method)(*arguments, **options)

    @contextlib.contextmanager
    def _without_tensorboard_on_failure(self) -> Iterator[None]:
        """Goes on without the events if they can't be written: they are only copies."""
        try:
            yield
        except OSError as error:
            self._tensorboard = False
            self._events.clear()
            _log.warning("TensorBoard events can't be written, and end here: %s", error)

    def _writer(self, stage: str, purge_step: int | None = None):
        # A folder for each stage: TensorBoard forgets purged steps of a whole folder.
        if stage not in self._events:
            from tensorboardX import SummaryWriter

            writer = SummaryWriter(
                str(self._workdir / "tensorboard" / stage), purge_step=purge_step
            )
            writer.file_writer.event_writer = _DirectEvents(writer.file_writer.event_writer)
            self._events[stage] = writer
        return self._events[stage]

    def _close_writer(self, stage: str) -> None:
        if stage in self._events:
            self._events.pop(stage).close()


class _NoMetrics(MetricsWriter):
    def __init__(self) -> None:
        pass

    def _nothing(self, *arguments: Any, **options: Any) -> None:
        pass

    write = images = histogram = sync = truncate_after = sort = close = _nothing

    def rows(self, stage: str) -> list[dict[str, Any]]:
        return []


def open_metrics(workdir: str | Path, **options: Any) -> MetricsWriter:
    """A `MetricsWriter` in the first of processes that run together, in the others nothing's."""
    return MetricsWriter(workdir, **options) if processes.is_first() else _NoMetrics()


class _DirectEvents:
    """Writes TensorBoard's events where they arise.

    tensorboardX has a thread for that, behind a queue of ten events: the thread dies of a full
    disk, and the queue then blocks for ever.
    """

    def __init__(self, threaded):
        threaded._worker.stop()
        self._file = threaded._ev_writer
        self._open = True
        self._flushed = time.monotonic()

    def add_event(self, event) -> None:
        self._try(self._file.write_event, event)
        if time.monotonic() - self._flushed > _TENSORBOARD_FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._try(self._file.flush)

    def close(self) -> None:
        self._try(self._file.close)
        self._open = False

    def _try(self, act, *arguments) -> None:
        # After a failure no more: tensorboardX closes again as the process ends, and fails again.
        if self._open:
            self._open = False
            act(*arguments)
            self._open = True


def read_metrics(workdir: str | Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, all or one stage's, in the order they were written.

    Returns:
      A list of dicts without `check`; empty where there is no file. A torn last line is left out,
      and so are damaged ones, with a warning.
    """
    rows, damaged = _read(Path(workdir) / _FILE)
    if damaged:
        _log.warning("%s", _about_damage(Path(workdir) / _FILE, damaged))
    return [row for _, row in rows if stage in (None, row["stage"])]


def _read(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    """Whole lines with their rows, and the numbers (from 1) of lines that are damaged."""
    if not path.exists():
        return [], []
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        row = _parse(line)
        if row is None:
            damaged.append(number)
        else:
            rows.append((line, row))
    return rows, damaged


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        check = row.pop("check", None)
        intact = {"stage", "step"} <= row.keys() and check in (None, _check(row))
    except (ValueError, AttributeError, TypeError):
        return None
    return row if intact else None


def _check(row: dict[str, Any]) -> str:
    """Checksum of a row without its time, which differs where everything else is the same."""
    content = {name: value for name, value in row.items() if name != "time"}
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _about_damage(path: Path, damaged: list[int]) -> str:
    lines = ", ".join(map(str, damaged[:5])) + (" ..." if len(damaged) > 5 else "")
    return f"{path}: {len(damaged)} damaged rows are left out (line {lines})"


def _drop_damaged_lines(path: Path) -> None:
    if not path.exists():
        return
    rows, damaged = _read(path)
    torn = not path.read_bytes().endswith(b"\n")
    if damaged:
        _log.warning("%s", _about_damage(path, damaged))
    if damaged or torn:
        _replace(path, [line for line, _ in rows])


def _replace(path: Path, lines: list[bytes]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(b"".join(line + b"\n" for line in lines))
    os.replace(temporary, path)


def _plain(value: Any) -> bool | int | float | str | None:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"a metric is one number; this one has shape {array.shape}")
    scalar = array.reshape(()).item()
    return None if isinstance(scalar, float) and not math.isfinite(scalar) else scalar


def import_wandb():
    """Weights & Biases.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "log.wandb_project is set but wandb is not installed: "
            "pip install 'edf_jax[wandb]', or leave the key empty."
        ) from error
    return wandb


def _start_wandb(workdir: Path, project: str, config: dict[str, Any] | None):
    wandb = import_wandb()
    id_file = workdir / "wandb_id.txt"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4) + "\n")
    run = wandb.init(
        project=project,
        id=id_file.read_text().strip(),
        name=workdir.name,
        dir=str(workdir),
        resume="allow",
        config=config,
    )
    # Each stage counts its own steps; W&B's single counter could not go back to 0.
    for stage in ("experts", "teacher", "distill", "evaluate"):
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return run
