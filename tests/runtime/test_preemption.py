"""Being asked to stop: by which signals, from when on, and that no Ctrl-C is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from edf_jax.runtime import console, preemption
from edf_jax.runtime.errors import Preempted
from tests import tiny_run

_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGXCPU)


@pytest.mark.parametrize("number", _ASKING)
def test_a_signal_asks_to_stop_and_a_second_one_is_not_kept(number):
    handler = signal.getsignal(number)
    second = []
    signal.signal(number, lambda *_: second.append(True))
    try:
        with preemption.listening():
            preemption.stop_if_asked()
            os.kill(os.getpid(), number)
            assert preemption.asked() and not second
            with pytest.raises(Preempted, match=f"asked to stop by {number.name}"):
                preemption.stop_if_asked()
            os.kill(os.getpid(), number)
            assert second
        assert not preemption.asked()
    finally:
        signal.signal(number, handler)


def test_signals_are_left_alone_outside_of_the_main_thread():
    handler = signal.getsignal(signal.SIGTERM)

    def listen():
        with preemption.listening():
            pass

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == handler


class _Interrupted:
    """Ctrl-C is pressed while it is destroyed: Python drops what is raised there."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_that_python_drops_is_raised_again_by_the_next_question(monkeypatch):
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: dropped.append(raised.exc_type))
    handler = signal.getsignal(signal.SIGINT)
    with preemption.listening():
        preemption.stop_if_asked()
        _Interrupted()
        assert dropped == [KeyboardInterrupt]
        for ask in (preemption.asked, preemption.stop_if_asked):
            with pytest.raises(KeyboardInterrupt):
                ask()
    assert signal.getsignal(signal.SIGINT) == handler


def test_ctrl_c_is_raised_where_it_is_pressed(capsys):
    def command() -> int:
        with preemption.listening():
            os.kill(os.getpid(), signal.SIGINT)
        return 0

    assert console.exit_status(command) == console.INTERRUPTED
    assert capsys.readouterr().err == "edf_jax: interrupted; the same command continues\n"


_SIGNALLED_WHILE_IT_IMPORTS = """
import os, runpy, sys
module, number, *arguments = sys.argv[1:]
class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "absl":
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Importing())
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "number", "status", "told"),
    [
        ("main", signal.SIGTERM, console.PREEMPTED, "asked to stop by SIGTERM"),
        ("main", signal.SIGINT, console.INTERRUPTED, "interrupted"),
        ("compare", signal.SIGINT, console.INTERRUPTED, "interrupted"),
    ],
)
def test_commands_hear_signals_before_their_libraries_are_there(
    tmp_path, module, number, status, told
):
    arguments = tiny_run.arguments(tmp_path / "run")
    ended = subprocess.run(
        [sys.executable, "-c", _SIGNALLED_WHILE_IT_IMPORTS, f"edf_jax.{module}", str(int(number)),
         *arguments],
        env=tiny_run.environment(), cwd=tiny_run.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.startswith(f"edf_jax: {told}") and ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
