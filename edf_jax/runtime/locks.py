"""Locks on folders, of which a kill leaves none.

Of processes that run together the first holds them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from edf_jax.runtime import processes, storage
from edf_jax.runtime.errors import UserError


class Busy(UserError):
    """Another process has a folder's lock."""


@contextlib.contextmanager
def locked(folder: pathlib.Path, busy: str, *, beside: bool = False) -> Iterator[None]:
    """Keeps other processes from `folder`; a kill leaves no lock behind.

    Args:
        folder: made if missing.
        busy: said where another process has it.
        beside: keep only those out that don't lock it so, too.

    Raises:
        Busy: another process has it; says `busy`.
        WriteFailed: the folder can't be made or written.
    """
    if not processes.is_first():
        yield
        return
    with contextlib.ExitStack() as stack:
        with storage.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "a+"))
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if beside else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # The one before may have removed its folder, and with it this very lock.
            current = os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / ".lock"))
        except BlockingIOError:
            raise Busy(busy) from None
        except FileNotFoundError:
            current = False
        except OSError as error:
            raise UserError(f"{folder} can't be locked: {storage.cause(error)}") from error
        if not current:
            raise Busy(busy)
        yield
