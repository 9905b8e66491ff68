"""How far a loop is: a bar on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import collections
import os
import sys
import time
from typing import Any, TextIO

from edf_jax.runtime import processes

# Seconds between two looks at the values, and the span over which the rate is measured: long
# enough to be steady, short enough to forget the first step's compilation.
_BAR_INTERVAL = 0.2
_LINE_INTERVAL = 5.0
_RATE_WINDOW = 30.0


class Progress:
    """Reports a loop's progress: done of total, rate, the latest values, time left.

        with Progress("experts", total=1000, unit="step") as bar:
            for ...:
                bar.update(loss=loss)

    On a terminal it is a bar (nested ones stand below their outer one and leave when they end);
    elsewhere a line at the start, then one every few seconds, and one at the end. `update` takes
    microseconds and never waits for a device: an array still being computed is shown once ready.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "step",
        *,
        start: int = 0,
        stream: TextIO | None = None,
    ):
        """Prepares the report; it starts with `with`.

        Args:
          name: what is being done, one or two words.
          total: how many units there are in all; None when unknown.
          unit: singular noun that takes an s, such as "step", "epoch", "image".
          start: how many were done in an earlier sitting; they don't count for the rate.
          stream: where to write, standard error by default.
        """
        self.name, self.total, self.unit = name, total, unit
        self._start = self._done = start
        self._stream = stream
        self._values: dict[str, Any] = {}
        self._shown = ""
        self._pending: dict[str, Any] | None = None
        self._samples: collections.deque[tuple[float, int]] = collections.deque()

    def __enter__(self) -> Progress:
        stream = self._stream or sys.stderr
        self._output: _Bar | _Lines = _Bar(stream) if _is_terminal(stream) else _Lines(stream)
        if not processes.is_first():
            self._output = _Nothing(stream)
        self._began = time.monotonic()
        self._next = self._began + self._output.interval
        self._output.begin(self, self._status(self._began))
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        self._pending = None
        try:
            self._shown = _text_of(self._values)
        except Exception:  # A failed computation's values raise again here and would hide why.
            if error_type is None:
                raise
        self._output.end(self, self._summary(time.monotonic(), stopped=error_type is not None))

    def update(self, n: int = 1, **values: Any) -> None:
        """Counts `n` more units; `values` (numbers, device scalars, words) replace the last."""
        self._done += n
        if values:
            self._values = values
        now = time.monotonic()
        if not self._samples:
            self._samples.append((now, self._done))
        if now >= self._next:
            self._next = now + self._output.interval
            self._show(now)

    def at(self, done: int, total: int | None = None) -> None:
        """Sets how many are done (and of how many): the form of callback that loaders call."""
        if total is not None:
            self.total = total
        self.update(done - self._done)

    def _show(self, now: float) -> None:
        if self._pending is None:
            self._pending = self._values
        if _is_ready(self._pending):
            self._shown, self._pending = _text_of(self._pending), None
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and self._samples[0][0] < now - _RATE_WINDOW:
            self._samples.popleft()
        self._output.show(self, self._status(now))

    def _count(self) -> str:
        return f"{self._done}/{self.total}" if self.total is not None else f"{self._done}"

    def _rate(self, now: float) -> float | None:
        """Units per second over the window, or since the start where that says nothing yet."""
        then, done = self._samples[0] if self._samples else (self._began, self._start)
        if self._done == done:
            then, done = self._began, self._start
        return (self._done - done) / (now - then) if now > then and self._done > done else None

    def _status(self, now: float) -> str:
        parts = [f"{self._count()} {self.unit}s"]
        rate = self._rate(now)
        if rate is not None:
            parts.append(_rate_text(rate))
            if self.total is not None:
                parts.append(f"{duration((self.total - self._done) / rate)} left")
        return ", ".join(parts + ([self._shown] if self._shown else []))

    def _summary(self, now: float, stopped: bool) -> str:
        parts = [f"{'stopped at ' if stopped else ''}{self._count()} {self.unit}s"]
        parts[0] += f" in {duration(now - self._began)}"
        if now > self._began and self._done > self._start:
            parts.append(_rate_text((self._done - self._start) / (now - self._began)))
        return ", ".join(parts + ([self._shown] if self._shown else []))


class _Lines:
    """Plain lines on a stream that is no terminal."""

    interval = _LINE_INTERVAL

    def __init__(self, stream: TextIO):
        self._stream = stream

    def show(self, progress: Progress, status: str) -> None:
        print(f"{progress.name}: {status}", file=self._stream, flush=True)

    begin = end = show


class _Nothing(_Lines):
    def show(self, progress: Progress, status: str) -> None:
        pass

    begin = end = show


class _Bar:
    """A bar of rich's. All open bars share one display, for a terminal can have only one."""

    interval = _BAR_INTERVAL
    _display: Any = None
    _open = 0

    def __init__(self, stream: TextIO):
        self._stream = stream

    def begin(self, progress: Progress, status: str) -> None:
        if _Bar._display is None:
            _Bar._display = _new_display(self._stream)
            _Bar._display.start()
        self._is_outer = _Bar._open == 0
        _Bar._open += 1
        self._task = _Bar._display.add_task(
            progress.name, total=progress.total, completed=progress._done, status=status
        )

    def show(self, progress: Progress, status: str) -> None:
        _Bar._display.update(
            self._task, total=progress.total, completed=progress._done, status=status
        )

    def end(self, progress: Progress, status: str) -> None:
        self.show(progress, status)
        _Bar._open -= 1
        if self._is_outer:
            _Bar._display.stop()
            _Bar._display = None
        else:
            _Bar._display.remove_task(self._task)


def _new_display(stream: TextIO):
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    def column(**settings):
        return Column(no_wrap=True, **settings)

    return RichProgress(
        TextColumn("[bold]{task.description}", table_column=column(min_width=10)),
        BarColumn(bar_width=12, table_column=column(min_width=12)),
        # The rest of the line: what is too long for it is cut, its least important part last.
        TextColumn("{task.fields[status]}", table_column=column(ratio=1, overflow="ellipsis")),
        expand=True,
        console=Console(file=stream),
        refresh_per_second=4,
        # What is printed meanwhile stands above the bar; but standard output that goes to a file
        # must get there, not onto this console.
        redirect_stdout=sys.stdout.isatty(),
    )


def _is_terminal(stream: TextIO) -> bool:
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True


def _is_ready(values: dict[str, Any]) -> bool:
    return all(getattr(value, "is_ready", lambda: True)() for value in values.values())


def _text_of(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_value_text(value)}" for name, value in values.items())


def _value_text(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) else f"{float(value):.4g}"


def _rate_text(rate: float) -> str:
    return f"{rate:.3g}/s" if rate >= 1 else f"{duration(1 / rate)} each"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "3.2 s", "4 min 10 s", "2 h 05 min", "3 d 4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes == 0:
        return f"{whole} s"
    if hours == 0:
        return f"{minutes} min {whole % 60:02d} s"
    if days == 0:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{days} d {hours % 24} h"
