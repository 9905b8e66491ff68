"""How far a loop is: a bar on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

import rich.console
import rich.progress
import rich.table

from edf_jax.runtime import processes

# Seconds between two looks at the values. Rich measures the rate over the last 30 s: long enough to
# be steady, short enough to forget the first step's compilation.
_BAR_INTERVAL, _LINE_INTERVAL = 0.2, 5.0


class Progress:
    """Reports a loop's progress: done of total, rate, the latest values, time left.

        with Progress("experts", total=1000, unit="step") as bar:
            for ...:
                bar.update(loss=loss)

    On a terminal it is a bar (nested ones stand below their outer one and leave when they end);
    elsewhere a line at the start, then one every few seconds, and one at the end. `update` takes
    microseconds and never waits for a device: an array still being computed is shown once ready.
    """

    # Of the outermost: a terminal can have only one.
    _display: rich.progress.Progress | None = None

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

    def __enter__(self) -> Progress:
        stream = self._stream or sys.stderr
        self._is_bar = stream.isatty() and os.environ.get("TERM") != "dumb" and processes.is_first()
        self._interval = _BAR_INTERVAL if self._is_bar else _LINE_INTERVAL
        self._is_outer = Progress._display is None
        if Progress._display is None:
            Progress._display = _new_display(stream, self._is_bar)
            Progress._display.start()
        self._bars = Progress._display
        self._task = self._bars.add_task(
            self.name, total=self.total, completed=self._done, status=""
        )
        self._began = time.monotonic()
        self._next = self._began + self._interval
        self._show(self._status(self._began))
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        try:
            self._shown = _text_of(self._values)
        except Exception:  # A failed computation's values raise again here and would hide why.
            if error_type is None:
                raise
        finally:
            self._show(self._summary(stopped=error_type is not None))
            if self._is_outer:
                self._bars.stop()
                Progress._display = None
            else:
                self._bars.remove_task(self._task)

    def update(self, n: int = 1, **values: Any) -> None:
        """Counts `n` more units; `values` (numbers, device scalars, words) replace the last."""
        self._done += n
        self._bars.update(self._task, completed=self._done, total=self.total)
        if values:
            self._values = values
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._interval
        if self._pending is None:
            self._pending = self._values
        if all(getattr(value, "is_ready", lambda: True)() for value in self._pending.values()):
            self._shown, self._pending = _text_of(self._pending), None
        self._show(self._status(now))

    def at(self, done: int, total: int | None = None) -> None:
        """Sets how many are done (and of how many): the form of callback that loaders call."""
        if total is not None:
            self.total = total
        self.update(done - self._done)

    def _show(self, status: str) -> None:
        if self._is_bar:
            self._bars.update(self._task, status=status)
        elif processes.is_first():
            print(f"{self.name}: {status}", file=self._stream or sys.stderr, flush=True)

    def _count(self) -> str:
        return f"{self._done}/{self.total}" if self.total is not None else f"{self._done}"

    def _mean_rate(self, now: float) -> float | None:
        made = self._done - self._start
        return made / (now - self._began) if made > 0 and now > self._began else None

    def _status(self, now: float) -> str:
        parts = [f"{self._count()} {self.unit}s"]
        task = next(task for task in self._bars.tasks if task.id == self._task)
        rate = task.speed or self._mean_rate(now)
        if rate is not None:
            parts.append(_rate_text(rate))
            if self.total is not None:
                parts.append(f"{duration((self.total - self._done) / rate)} left")
        return ", ".join(filter(None, (*parts, self._shown)))

    def _summary(self, stopped: bool) -> str:
        now = time.monotonic()
        rate = self._mean_rate(now)
        parts = [
            f"{'stopped at ' if stopped else ''}{self._count()} {self.unit}s "
            f"in {duration(now - self._began)}",
            "" if rate is None else _rate_text(rate),
            self._shown,
        ]
        return ", ".join(filter(None, parts))


def _new_display(stream: TextIO, is_bar: bool) -> rich.progress.Progress:
    """A display of bars; where there are none it only measures the rate."""

    def column(**settings):
        return rich.table.Column(no_wrap=True, **settings)

    return rich.progress.Progress(
        rich.progress.TextColumn("[bold]{task.description}", table_column=column(min_width=10)),
        rich.progress.BarColumn(bar_width=12, table_column=column(min_width=12)),
        # The rest of the line: what is too long for it is cut, its least important part last.
        rich.progress.TextColumn(
            "{task.fields[status]}", table_column=column(ratio=1, overflow="ellipsis")
        ),
        expand=True,
        console=rich.console.Console(file=stream),
        refresh_per_second=4,
        disable=not is_bar,
        get_time=time.monotonic,
        # What is printed meanwhile stands above the bar; but standard output that goes to a file
        # must get there, not onto this console.
        redirect_stdout=sys.stdout.isatty(),
    )


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
