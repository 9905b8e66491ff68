"""How a command speaks and how it ends: lines on standard error, and the exit status.

Statuses: 0 done; 2 something for the user to mend, told in one line; 75 stopped by SIGTERM with
all saved (EX_TEMPFAIL of sysexits.h: the same command continues); 76 another process of the same
run is lost; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import logging
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from edf_jax.runtime import processes
from edf_jax.runtime.errors import Preempted, UserError

MISTAKE, PREEMPTED, LOST, INTERRUPTED = 2, 75, 76, 130
# What a disk, or the right to use it, can fail with.
_OF_THE_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG,
    errno.ESTALE, errno.ENODEV, errno.EMFILE, errno.ENFILE,
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
        return command()
    except processes.Left as error:
        return _end(name, str(error), error.status)
    except UserError as error:
        return _end(name, str(error), MISTAKE)
    except Preempted as error:
        return _end(name, f"{error}; all is saved, and the same command continues", PREEMPTED)
    except KeyboardInterrupt:
        return _end(name, "interrupted; the same command continues", INTERRUPTED)
    except (MemoryError, RuntimeError, ValueError) as error:
        # JAX's own kind of error is a RuntimeError; a failed transfer may be a ValueError.
        what = (str(error).strip() or "an allocation failed").splitlines()[0][:200]
        if processes.is_loss(error):
            lost = f"another process of this run is lost ({what}); the same command continues"
            return _end(name, lost, LOST)
        if not isinstance(error, MemoryError) and (
            isinstance(error, ValueError) or "RESOURCE_EXHAUSTED" not in str(error)
        ):
            raise
        return _end(name, f"out of memory ({what}): --dry_run tells what would fit", MISTAKE)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        told = f"{where}{(error.strerror or str(error)).lower()}; mend that, and the same command "
        return _end(name, f"{told}continues", MISTAKE)


def _end(name: str, message: str, status: int) -> int:

    if processes.process_name():
        name += f", {processes.process_name()}"
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
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
