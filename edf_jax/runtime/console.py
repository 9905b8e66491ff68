"""How a command speaks and how it ends: lines on standard error, and the exit status.

Statuses: 0 done; 2 something for the user to mend, told in one line; 75 stopped by SIGTERM with
all saved (EX_TEMPFAIL of sysexits.h: the same command continues); 76 another process of the same
run is lost; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from edf_jax.runtime import preemption, processes
from edf_jax.runtime.errors import Preempted, UserError
from edf_jax.runtime.process_group import Left

MISTAKE, PREEMPTED, LOST, INTERRUPTED, CLOSED = 2, 75, 76, 130, 141
# What a disk, a path, or the right to use it, can fail with.
_OF_THE_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG,
    errno.ESTALE, errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOTDIR, errno.EISDIR, errno.ENOLCK, errno.ENXIO,
}


def exit_status(command: Callable[[], int], *, name: str = "edf_jax") -> int:
    """Runs a command, and tells in one line of whatever isn't a fault of the program's.

    Args:
        command: returns its status.
        name: begins the line.

    Returns:
        The command's status, or the one of how it ended.
    """
    try:
        preemption.stop_if_asked()
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        return _end(name, "nobody reads the output any more (a closed pipe)", CLOSED)
    except (Exception, KeyboardInterrupt) as error:
        told = _told(error)
        if told is None:
            raise
        return _end(name, *told)


def _told(error: BaseException) -> tuple[str, int] | None:
    """What to say of an error, and the status to end with; None of a fault of the program's."""
    told = str(error).strip()
    first = (told or "an allocation failed").splitlines()[0][:200]
    if isinstance(error, Left):
        return told, error.status
    if isinstance(error, UserError):
        return told, MISTAKE
    if isinstance(error, Preempted):
        return f"{told}; all is saved, and the same command continues", PREEMPTED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues", INTERRUPTED
    # JAX's own kind of error is a RuntimeError; a failed transfer may be a ValueError.
    if isinstance(error, (RuntimeError, ValueError)) and processes.is_loss(error):
        return f"another process of this run is lost ({first}); the same command continues", LOST
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in told
    ):
        return f"out of memory ({first}): --dry_run tells what would fit", MISTAKE
    if isinstance(error, RuntimeError) and "home directory" in told:
        return "a path begins with ~, but that home folder isn't known: write it out", MISTAKE
    if isinstance(error, json.JSONDecodeError) or (
        isinstance(error, RecursionError) and "JSON" in told
    ):
        return f"a JSON file can't be read ({first}): it isn't one of ours", MISTAKE
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        where = f"{str(error.filename)[:200]}: " if error.filename else ""
        why = (error.strerror or told).lower()
        return f"{where}{why}; mend that, and the same command continues", MISTAKE
    return None


def _end(name: str, message: str, status: int) -> int:
    who = ", ".join(filter(None, (name, processes.process_name())))
    line = f"{who}: {' '.join(message.split())}\n"
    for stream, text in ((sys.stdout, ""), (sys.stderr, line)):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            # Python flushes again as it ends, and tells of a closed pipe in its own way.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


class Parser(argparse.ArgumentParser):
    """Of a command's flags; a wrong one is a `UserError`, and so ends in a line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def speak_in_lines() -> None:
    """Sends the program's messages, and libraries' warnings, to standard error a line each."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        # A library's first message installs one; those of other programs around us stay.
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    if not any(isinstance(handler, _Lines) for handler in root.handlers):
        root.addHandler(_Lines(logging.INFO))
    root.setLevel(logging.WARNING)
    logging.getLogger("edf_jax").setLevel(logging.INFO)
    warnings.showwarning = _show_warning
    sys.unraisablehook = _quiet_hook(sys.unraisablehook)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        # Whatever standard error is at the moment: a progress bar puts itself in between.
        print(f"{level}{' '.join(record.getMessage().split())}", file=sys.stderr, flush=True)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    logging.getLogger("edf_jax").warning("%s", message)


def _quiet_hook(hook: Callable) -> Callable:
    def quiet(raised) -> None:
        # TensorStore says so of every write that was under way when another failed.
        if "Event loop is closed" not in str(raised.exc_value):
            hook(raised)

    return quiet
