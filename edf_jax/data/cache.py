"""The data cache: where it is, and how a file gets there."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import IO

from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError


def default_cache_dir() -> str:
    """Where prepared images and ZCA matrices lie unless a config says otherwise.

    Raises:
        UserError: the user has no home folder.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:
        raise UserError(
            "there is no home folder for the data cache: set --config.data.cache_dir"
        ) from None
    return str(pathlib.Path(root) / "edf_jax")


def write_atomically(path: pathlib.Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        UserError: the folder can't be written.
    """
    try:
        with storage.appearing(path) as temporary, open(temporary, "wb") as file:
            write(file)
    except (OSError, storage.WriteFailed) as error:
        raise UserError(
            f"{path} cannot be written ({storage.cause(error)}); set --config.data.cache_dir to "
            "a folder with space."
        ) from None
