"""What a run measures: `metrics.jsonl`, TensorBoard events and, if asked for, Weights & Biases.

A row of metrics.jsonl is one event: `{"row", "stage", "step", "time", ...scalars, "check"}`, where
`row` counts from 1 and `check` is a checksum of all but the time, so that lost, doubled, moved and
changed rows are noticed. `metrics.jsonl` is the record, which figures and the report are drawn
from; the others are copies for watching. Of processes that run together the first writes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edf_jax.runtime import processes, storage
from edf_jax.runtime.errors import UserError

_FILE = "metrics.jsonl"
_log = logging.getLogger(__name__)
# A killed run's events of the last seconds are missing from TensorBoard, not from metrics.jsonl.
_TENSORBOARD_FLUSH_SECONDS = 10
_BINS = 64


class MetricsWriter:
    """Writes the measurements of a run, and takes back those that a resumed run makes again.

    Use it as a context manager, or `close` it.

    Attributes:
        count: of the rows.
    """

    def __init__(
        self,
        workdir: str | Path,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        config: dict[str, Any] | None = None,
        after: Mapping[str, Callable[[], Any]] | None = None,
    ):
        """Opens the run's metrics.

        A last line torn by a kill is dropped; of other damage a warning tells, and what is left is
        put in order.

        Args:
          workdir: the run's folder; made if missing.
          tensorboard: whether to write events to `workdir/tensorboard/<stage>`.
          wandb_project: Weights & Biases project, None or "" for none. The run's id is kept in
            the workdir, so that a resumed run continues the same charts.
          config: what Weights & Biases shows as the run's settings.
          after: by stage, what is called after each of its rows.

        Raises:
          UserError: `wandb_project` is given and wandb is not installed.
        """
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._path = self._workdir / _FILE
        self._file: Any = None
        rows, fault = _read(self._path)
        if fault:
            _log.warning("%s", fault)
        self._replace(rows)
        self._tensorboard = tensorboard
        self._after = dict(after or {})
        self._events: dict[str, Any] = {}
        self._flushed = time.monotonic()
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
        self.count += 1
        row = {"stage": stage, "step": int(step), "time": round(time.time(), 3), **values}
        self._file.write(_line(self.count, row))
        numbers = {k: v for k, v in values.items() if isinstance(v, (bool, int, float))}
        for name, value in numbers.items():
            self._show(stage, int(step), "scalar", f"{stage}/{name}", value)
        if self._wandb is not None and step > self._wandb_sent.get(stage, -1):
            charts = {f"{stage}/{name}": value for name, value in numbers.items()}
            self._wandb.log({**charts, f"{stage}/step": int(step)})
        if stage in self._after:
            self._after[stage]()

    def images(self, step: int, stage: str, name: str, images) -> None:
        """Sends pictures to TensorBoard: `[H, W, 3]` or `[n, H, W, C]`, in [0, 1] or uint8."""
        pixels = np.asarray(images)
        if pixels.shape[-1] == 1:
            pixels = np.repeat(pixels, 3, axis=-1)
        form = "NHWC" if pixels.ndim == 4 else "HWC"
        self._show(stage, step, "image", f"{stage}/{name}", pixels, dataformats=form)

    def histogram(self, step: int, stage: str, name: str, values) -> None:
        """Sends the distribution of the finite `values` (any shape) to TensorBoard."""
        flat = np.asarray(values, np.float64).ravel()
        flat = flat[np.isfinite(flat)]
        if flat.size:
            self._show(stage, step, "histogram", f"{stage}/{name}", flat, _BINS)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The stage's rows so far, as `read_metrics` reads them."""
        return read_metrics(self._workdir, stage)

    def sync(self) -> None:
        """Returns when all rows are on the disk itself."""
        os.fsync(self._file.fileno())

    def truncate_after(self, stage: str, step: int) -> None:
        """Takes back `stage`'s rows of later steps: a run resumed there makes them again."""
        rows = _read(self._path)[0]
        last = max((row["step"] for row in rows if row["stage"] == stage), default=-1)
        self._replace([row for row in rows if row["stage"] != stage or row["step"] <= step])
        # W&B cannot take rows back: those it has are not sent a second time.
        self._wandb_sent[stage] = last
        if last > step:
            self._watch(stage, lambda: self._events_of(stage, purge_step=step + 1))

    def sort(self, stage: str, before: tuple[str, ...]) -> None:
        """Puts `stage`'s rows in the order of their steps, and before those of other stages."""
        rows = _read(self._path)[0]
        own = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row["step"])
        others = [row for row in rows if row["stage"] != stage]
        at = [i for i, row in enumerate(others) if row["stage"] in before]
        place = at[0] if at else len(others)
        self._replace([*others[:place], *own, *others[place:]])

    def close(self) -> None:
        """Writes what is left; the writer is of no use after that."""
        for stage, events in self._events.items():
            self._watch(stage, events.close)
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _replace(self, rows: Iterable[dict[str, Any]]) -> None:
        """Makes the file hold these rows, and opens it."""
        lines = [_line(number, row) for number, row in enumerate(rows, 1)]
        text = "".join(lines)
        if not self._path.exists() or self._path.read_bytes() != text.encode():
            storage.write_text(self._path, text)
        if self._file is not None:
            self._file.close()
        self._file = open(self._path, "a", buffering=1, encoding="utf-8")
        self.count = len(lines)

    def _show(self, stage: str, step: int, kind: str, *arguments, **options) -> None:
        """Sends a summary of tensorboardX's making."""

        def send() -> None:
            from tensorboardX import summary
            from tensorboardX.proto.event_pb2 import Event

            made = getattr(summary, kind)(*arguments, **options)
            self._events_of(stage).write_event(
                Event(wall_time=time.time(), step=step, summary=made)
            )
            if time.monotonic() - self._flushed > _TENSORBOARD_FLUSH_SECONDS:
                self._flushed = time.monotonic()
                for events in self._events.values():
                    events.flush()

        self._watch(stage, send)

    def _watch(self, stage: str, act: Callable[[], Any]) -> None:
        """Goes on without the events if they can't be written: they are only copies."""
        if not self._tensorboard:
            return
        try:
            act()
        except OSError as error:
            self._tensorboard = False
            _log.warning("TensorBoard events can't be written, and end here: %s", error)

    def _events_of(self, stage: str, purge_step: int | None = None):
        """Its file of events, which TensorBoard is to take for all from a step on."""
        # tensorboardX's own `SummaryWriter` writes in a thread: a full disk ends the thread, and
        # the next event waits for it for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if stage not in self._events or purge_step is not None:
            if stage in self._events:
                self._events.pop(stage).close()
            # A folder for each stage: TensorBoard forgets purged steps of a whole folder.
            folder = self._workdir / "tensorboard" / stage
            folder.mkdir(parents=True, exist_ok=True)
            self._events[stage] = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
            if purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self._events[stage].write_event(
                    Event(wall_time=time.time(), step=purge_step, session_log=start)
                )
        return self._events[stage]


class _NoMetrics(MetricsWriter):
    def __init__(self) -> None:
        self.count = 0

    def _nothing(self, *arguments: Any, **options: Any) -> None:
        pass

    write = images = histogram = sync = truncate_after = sort = close = _nothing

    def rows(self, stage: str) -> list[dict[str, Any]]:
        return []


def open_metrics(workdir: str | Path, **options: Any) -> MetricsWriter:
    """A `MetricsWriter` in the first of processes that run together, in the others nothing's."""
    return MetricsWriter(workdir, **options) if processes.is_first() else _NoMetrics()


def read_metrics(workdir: str | Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, all or one stage's, in the order they were written.

    Returns:
      A list of dicts without `row` and `check`; empty where there is no file. A torn last line is
      left out, and so are damaged and doubled ones, with a warning, as is given of lost ones.
    """
    path = Path(workdir) / _FILE
    rows, fault = _read(path)
    lost = _rows_of_result(path.parent) - len(rows)
    if not fault and lost > 0:
        fault = f"{path}: {lost} rows are lost at the end"
    if fault:
        _log.warning("%s", fault)
    return [row for row in rows if stage in (None, row["stage"])]


def _rows_of_result(workdir: Path) -> int:
    """How many rows a finished run had; 0 where it isn't known."""
    try:
        count = json.loads((workdir / "result.json").read_bytes()).get("metrics_rows", 0)
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    return count if isinstance(count, int) else 0


def _read(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows that are whole, in their order; and what is wrong with the others, or ''."""
    rows: dict[int, dict[str, Any]] = {}
    numbers: list[int] = []
    faults: list[str] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for at, line in enumerate(lines, 1):
        row = _parse(line)
        if row is None:
            faults.append(f"line {at} is damaged")
            continue
        # Rows had no numbers once.
        number = row.pop("row", at)
        if number in rows:
            faults.append(f"line {at} is there twice")
        elif numbers and number < max(numbers):
            faults.append(f"line {at} is out of its place")
        numbers.append(number)
        rows.setdefault(number, row)
    lost = max(numbers, default=0) - len(rows)
    if lost > 0:
        faults.append(f"{lost} rows are lost or damaged")
    told = "; ".join(faults[:5] + ["..."] * (len(faults) > 5))
    return [rows[number] for number in sorted(rows)], f"{path}: {told}" if told else ""


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        check = row.pop("check", None)
        intact = (
            isinstance(row["stage"], str)
            and isinstance(row["step"], int)
            and isinstance(row.get("row", 1), int)
            and check in (None, _check(row))
        )
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return None
    return row if intact else None


def _line(number: int, row: dict[str, Any]) -> str:
    row = {"row": number, **row}
    return json.dumps({**row, "check": _check(row)}, allow_nan=False) + "\n"


def _check(row: dict[str, Any]) -> str:
    """Checksum of a row without its time, which differs where everything else is the same."""
    content = {name: value for name, value in row.items() if name != "time"}
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


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
