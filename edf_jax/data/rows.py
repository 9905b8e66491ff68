"""A .npy file of images, read and written a few rows at a time.

A memory map would do the same, but every page it touches counts as memory of the process.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from edf_jax.runtime import storage


class RowFile:
    """uint8 images `[N, H, W, C]` in a .npy file.

    Attributes:
        shape: `(N, H, W, C)`.
    """

    def __init__(self, path: pathlib.Path):
        """Opens a file for reading and writing.

        Raises:
            OSError, ValueError, EOFError: it is not there, or no complete .npy file of bytes.
        """
        # The file stays open as long as the object: closed with it.
        self._file = open(path, "r+b")
        version = np.lib.format.read_magic(self._file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        self.shape, fortran_order, dtype = read_header(self._file)
        self._first = self._file.tell()
        self._row = int(np.prod(self.shape[1:]))
        size = self._first + len(self) * self._row
        if dtype != np.uint8 or fortran_order or os.path.getsize(path) != size:
            raise ValueError(f"{path} is no complete .npy file of bytes")

    @classmethod
    def create(cls, path: pathlib.Path, shape: tuple[int, ...]) -> RowFile:
        """A new file of zeros (which take no space on disk until they are written)."""
        with open(path, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)))
        return cls(path)

    def __len__(self) -> int:
        return self.shape[0]

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Images `[start:stop]`."""
        stop = min(stop, len(self))
        self._file.seek(self._first + start * self._row)
        content = self._file.read((stop - start) * self._row)
        return np.frombuffer(content, np.uint8).reshape(stop - start, *self.shape[1:])

    def write(self, start: int, images: np.ndarray) -> None:
        """Puts images `[k, H, W, C]` at `start`, into the operating system's hands."""
        self._file.seek(self._first + start * self._row)
        self._file.write(np.ascontiguousarray(images).data)
        self._file.flush()

    def digests(self, rows: int) -> list[str]:
        """Hex digests of `rows` images each."""
        return [digest(self.read(start, start + rows)) for start in range(0, len(self), rows)]


def digest(array: np.ndarray) -> str:
    """Hex digest of an array's values."""
    return storage.fingerprint(np.ascontiguousarray(array).data)
