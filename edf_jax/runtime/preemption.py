"""Being asked to stop: SIGTERM is kept until the loop at work reaches a place it can resume from.

Schedulers send it some time before they take a machine away. A loop asks at each boundary of its
compiled steps, saves, and raises `Preempted`; the same command then continues. Of processes that
run together each may get it, and all stop at the same place.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from edf_jax.runtime import processes
from edf_jax.runtime.errors import Preempted

_asked = threading.Event()
_NOTE = "stop"
WHY = "asked to stop by SIGTERM"


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """SIGTERM within only asks to stop; a second one ends the process at once.

    Does nothing outside of the main thread, where signals can't be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum, frame) -> None:
        _asked.set()
        processes.note(_NOTE)
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked.clear()


def asked() -> bool:
    """Whether the run is asked to stop; the same in all processes, which call it together."""
    return processes.shared("whether to stop", asked_here)


def asked_here() -> bool:
    """Whether the run is asked to stop, as far as this process has heard."""
    return _asked.is_set() or processes.noted(_NOTE)


def stop_if_asked() -> None:
    """Raises `Preempted` where the run is asked to stop; call it when all is saved."""
    if asked():
        raise Preempted(WHY)


def stop_if_asked_here() -> None:
    """As `stop_if_asked`, where this process works by itself."""
    if asked_here():
        raise Preempted(WHY)
