"""Progress reports: what they say, where, and what they cost."""

from __future__ import annotations

import io
import sys

import pytest

from edf_jax.runtime import progress
from edf_jax.runtime.progress import Progress, duration


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Unread:
    """A value that must not be looked at."""

    def __getattr__(self, name):
        raise AssertionError(name)

    __float__ = __format__ = __str__ = lambda self, *_: self.looked_at


class _Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return _Clock(monkeypatch)


class _Unready:
    """A scalar on a device that has not been computed yet."""

    def __init__(self, value):
        self.value, self.ready = value, False

    def is_ready(self):
        return self.ready

    def __float__(self):
        assert self.ready, "waited for the device"
        return self.value


def test_lines_come_at_the_start_every_few_seconds_and_at_the_end(clock):
    stream = io.StringIO()
    with Progress("experts", total=100, unit="step", stream=stream) as bar:
        for step in range(100):
            clock.now += 0.125
            bar.update(loss=1.0 / (step + 1))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "experts: 0/100 steps"
    assert lines[1] == "experts: 40/100 steps, 8/s, 7.5 s left, loss 0.025"
    assert lines[-1] == "experts: 100/100 steps in 12 s, 8/s, loss 0.01"
    assert len(lines) == 4


def test_rate_forgets_the_compilation_of_the_first_step(clock):
    stream = io.StringIO()
    with Progress("distill", total=1000, stream=stream) as bar:
        clock.now += 60.0
        bar.update()
        for _ in range(20):
            clock.now += 1.0
            bar.update()
    assert ", 1/s, " in stream.getvalue().splitlines()[-2]


def test_steps_of_an_earlier_sitting_count_as_done_but_not_for_the_rate(clock):
    stream = io.StringIO()
    with Progress("distill", total=100, start=90, stream=stream) as bar:
        for _ in range(10):
            clock.now += 2.0
            bar.update()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "distill: 90/100 steps"
    assert lines[-1] == "distill: 100/100 steps in 20 s, 2.0 s each"


def test_a_value_still_being_computed_is_shown_once_ready_and_never_waited_for(clock):
    stream, first, second = io.StringIO(), _Unready(1.0), _Unready(2.0)
    with Progress("distill", total=3, stream=stream) as bar:
        clock.now += 6.0
        bar.update(loss=first)
        first.ready = True
        clock.now += 6.0
        bar.update(loss=second)
        second.ready = True
    lines = stream.getvalue().splitlines()
    assert "loss" not in lines[1]
    assert lines[2].endswith("loss 1")
    assert lines[-1].endswith("loss 2")


def test_loaders_call_back_with_done_and_total(clock):
    stream = io.StringIO()
    with Progress("images", unit="image", stream=stream) as bar:
        clock.now += 6.0
        bar.at(30, 120)
    assert "images: 30/120 images, 5/s, 18 s left" in stream.getvalue()


def test_an_error_inside_is_told_and_not_hidden():
    stream, value = io.StringIO(), _Unready(1.0)
    with pytest.raises(ValueError, match="the reason"):
        with Progress("distill", total=3, stream=stream) as bar:
            bar.update(loss=value)
            raise ValueError("the reason")
    assert "stopped at 1/3 steps" in stream.getvalue()


def test_a_terminal_gets_a_bar_and_nested_bars_leave_when_they_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = _Terminal()
    with Progress("distill", total=2, stream=stream) as outer:
        for _ in range(2):
            with Progress("evaluate", total=3, unit="network", stream=stream) as inner:
                inner.update(accuracy=50.0)
            outer.update(loss=0.5)
    final = stream.getvalue().split("\x1b[2K")[-1]
    assert "distill" in final and "2/2 steps" in final and "loss 0.5" in final
    assert "evaluate" not in final
    assert Progress._display is None


def test_what_the_loop_prints_on_standard_output_stays_there(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    stream = _Terminal()
    with Progress("distill", total=1, stream=stream) as bar:
        print("RESULT {}")
        bar.update()
    assert capsys.readouterr().out == "RESULT {}\n"


def test_by_default_it_writes_to_standard_error(capsys):
    with Progress("experts", total=1) as bar:
        bar.update()
    captured = capsys.readouterr()
    assert captured.out == "" and "experts: 1/1 steps" in captured.err
    assert sys.stdout is not sys.stderr


def test_between_two_looks_an_update_reads_no_value_and_writes_nothing(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    stream = io.StringIO()
    with Progress("experts", total=1000, stream=stream) as bar:
        begun = stream.getvalue()
        for _ in range(999):
            bar.update(loss=_Unread())
        assert stream.getvalue() == begun
        bar.update(loss=0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.31, "0.3 s"),
        (42.4, "42 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 05 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text
