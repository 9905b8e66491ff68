"""PyTorch's files, read without running what they may hold.

PyTorch is optional and imported here only. Everything is read with weights-only loading: a file
that holds more than tensors, and containers of them, is refused.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError


def _torch(path: pathlib.Path):
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} is a file of PyTorch's: pip install -e .[interop]") from None
    return torch


def read(path: str | os.PathLike) -> Any:
    """What a `.pt` or `.pth` file holds: tensors in memory, in lists and dicts.

    Args:
        path: a file that `torch.save` wrote. It is mapped into memory where its format allows,
            so that large ones are read piece by piece.

    Raises:
        UserError: PyTorch or the file is missing, it is damaged, or holds more than tensors.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    torch = _torch(path)
    try:
        # Its warnings are about files that are refused anyway.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # Damaged pickles raise any kind.
        text = " ".join(str(error).split())
        code = re.search(r"(?:GLOBAL|[Uu]nsupported (?:class|global):?|call:) ([\w.]+)", text)
        if code or "TorchScript" in text:
            held = f" ({code[1].removeprefix('GLOBAL ')})" if code else ""
            raise UserError(
                f"{path} holds more than tensors{held}, which is not loaded, for it could run "
                "any code: save a state dict or tensors alone"
            ) from None
        raise UserError(f"{path} is damaged, truncated or no file of PyTorch's") from None


def as_array(value: Any, where: str) -> np.ndarray:
    """The numbers of a tensor, half precision widened to float32.

    Args:
        value: what should be a tensor.
        where: it was found, for the message.

    Raises:
        UserError: it is something else.
    """
    torch = _torch(pathlib.Path(where))
    if not isinstance(value, torch.Tensor):
        raise UserError(f"{where} is a {type(value).__name__}, not a tensor")
    value = value.detach()
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise UserError(f"{where} is a sparse, quantised or empty tensor: save plain ones")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise UserError(f"{where} repeats a smaller tensor: save it as it is")
    if value.is_complex():
        raise UserError(f"{where} holds complex numbers")
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    return value.numpy()


def write(path: pathlib.Path, value: Any) -> None:
    """Writes a `.pt` file; arrays in (lists of) lists become tensors that share their memory.

    Raises:
        UserError: PyTorch is missing.
        WriteFailed: it can't be written.
    """
    torch = _torch(path)

    def tensors(value):
        if isinstance(value, list):
            return [tensors(item) for item in value]
        return torch.from_numpy(value)

    with storage.writing(path):
        torch.save(tensors(value), path)


@contextlib.contextmanager
def appearing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary path in whose place `path` stands afterwards, unless something was raised.

    Args:
        path: a file or folder that isn't there yet, or an empty folder.

    Raises:
        UserError: it is there already.
        WriteFailed: it can't be written.
    """
    path = pathlib.Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} is there already: remove it or give another --to")
    with storage.appearing(path) as temporary:
        yield temporary
