"""Being asked to stop: signals are kept until the work reaches a place it can resume from.

Schedulers send SIGTERM some time before they take a machine away; some send SIGUSR1 instead, and
the kernel SIGXCPU at the end of a process's time. A loop asks at each boundary of its compiled
steps, saves, and raises `Preempted`; the same command then continues. Of processes that run
together each may get it, and all stop at the same place.

JAX's own preemption service isn't used: it hears SIGTERM alone, takes it away from Python, and
tells of it only at steps that all processes count, so that the loading of images and the wait for
another run's lock would hear nothing. This file imports no library, so as to be at work before
those that take seconds to import.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from edf_jax.runtime.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGXCPU)
_heard: set[int] = set()
_before: dict[int, signal.Handlers | Callable | int | None] = {}
_interrupts = True
# Whether any process is asked to, of whether this one is; `processes.start` puts another one here.
agree: Callable[[bool], bool] = bool


def listen(*, interrupts: bool = False) -> None:
    """From now on signals only ask to stop; a second one of a kind acts as before.

    Ctrl-C is raised as ever, and again by the next question where it was lost: Python drops what
    is raised in a destructor or in a library's callback. Does nothing outside of the main thread,
    where signals can't be handled.

    Args:
        interrupts: False keeps Ctrl-C, too, for the next question: while modules are imported.
    """
    global _interrupts
    _interrupts = interrupts
    if not _before and threading.current_thread() is threading.main_thread():
        for number in (*_SIGNALS, signal.SIGINT):
            _before[number] = signal.signal(number, _hear)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """As `listen`, within; a `listen` that came before stays."""
    is_outer = not _before
    listen(interrupts=True)
    try:
        yield
    finally:
        if is_outer:
            for number, handler in _before.items():
                signal.signal(number, handler)
            _before.clear()
            _heard.clear()


def _hear(number: int, frame) -> None:
    _heard.add(number)
    signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else _before[number])
    if number == signal.SIGINT and _interrupts:
        raise KeyboardInterrupt


def asked() -> bool:
    """Whether the run is asked to stop; the same in all processes, which call it together.

    Where a process works by itself it is whether any has been heard to be asked.
    """
    return agree(asked_here())


def asked_here() -> bool:
    """Whether this very process is asked to stop.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if signal.SIGINT in _heard and _interrupts:
        raise KeyboardInterrupt
    return bool(_heard - {signal.SIGINT})


def stop() -> NoReturn:
    """Raises `Preempted`, which says by what it is asked to stop; call it when all is saved."""
    names = [signal.Signals(number).name for number in sorted(_heard)]
    raise Preempted(f"asked to stop by {', '.join(names) or 'another process'}")


def stop_if_asked() -> None:
    """As `stop`, where the run is asked to."""
    if asked():
        stop()
