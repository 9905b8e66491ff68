"""The data cache: where it is, and how a file gets there."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import IO

from edf_jax.runtime.errors import UserError


def default_cache_dir() -> str:
    """Where prepared images and ZCA matrices lie unless a config says otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(root) / "edf_jax")


def write_atomically(path: pathlib.Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes under a temporary name, then renames.

    Raises:
        UserError: the folder can't be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); set --config.data.cache_dir to "
            "a folder with space."
        ) from None
