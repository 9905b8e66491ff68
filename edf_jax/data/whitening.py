"""ZCA whitening: fitted once, kept in the data cache, named by its digest.

References:
    Krizhevsky and Hinton, Learning multiple layers of features from tiny images, 2009 (appendix A);
    the conventions are kornia's: covariance over n - 1, `T = U (S + eps)^(-1/2) U^T`.
"""

from __future__ import annotations

import functools
import os
import pathlib

import numpy as np

from edf_jax.data.cache import write_atomically
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

EPS = 0.1
# Of the host's memory while a matrix is fitted, measured: its eigenvectors are found in float64.
_FIT_BYTES = 42


def fit_bytes(size: int) -> int:
    """Memory that fitting to images of `size` numbers takes on the host."""
    return _FIT_BYTES * size**2


def stored_bytes(size: int) -> int:
    """What the matrix and its inverse take in the data cache."""
    return 2 * 4 * size**2


def fit_zca(
    images: np.ndarray, *, eps: float = EPS, batch: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and whitening matrix of training images.

    Args:
        images: `[N, ...]`, uint8 or floating point in [0, 1], two images or more; flattened to
          `[N, D]`. Read in batches, so a memory map stays on disk.
        eps: added to the eigenvalues of the covariance.
        batch: images read at once.

    Returns:
        mean `[D]` and matrix `[D, D]`, float32. The matrix is symmetric.
    """
    count, size = len(images), int(np.prod(images.shape[1:]))
    mean = np.zeros(size)
    for start in range(0, count, batch):
        mean += _flat(images[start : start + batch]).sum(axis=0, dtype=np.float64)
    mean /= count
    covariance = np.zeros((size, size))
    for start in range(0, count, batch):
        centred = _flat(images[start : start + batch]) - mean.astype(np.float32)
        covariance += centred.T @ centred
    covariance /= count - 1
    values, vectors = np.linalg.eigh(covariance)
    # Rounding can leave the smallest eigenvalues a little below zero.
    scale = 1.0 / np.sqrt(np.maximum(values, 0.0) + eps)
    matrix = (vectors * scale) @ vectors.T
    return mean.astype(np.float32), matrix.astype(np.float32)


def whiten(images, mean, matrix):
    """`(x - mean) @ matrix` on flattened images.

    Args:
        images: `[..., H, W, C]`, floating point; NumPy or JAX.
        mean: `[H*W*C]`.
        matrix: `[H*W*C, H*W*C]`.

    Returns:
        Whitened images of the same shape and type.
    """
    shape = images.shape
    flat = images.reshape(-1, mean.shape[0]) - np.asarray(mean, images.dtype)
    return _product(flat, np.asarray(matrix, images.dtype)).reshape(shape)


def restore(images, mean, inverse):
    """Undoes `whiten`, with the inverse of its matrix."""
    shape = images.shape
    flat = _product(images.reshape(-1, mean.shape[0]), np.asarray(inverse, images.dtype))
    return (flat + np.asarray(mean, images.dtype)).reshape(shape)


def save(folder: str | os.PathLike, mean: np.ndarray, matrix: np.ndarray) -> str:
    """Writes mean and matrix to the data cache.

    Returns:
        The digest that names the file, for `load` and `load_inverse`.
    """
    stacked = np.concatenate([mean[None], matrix]).astype(np.float32)
    digest = storage.fingerprint(stacked.data)
    write_atomically(_path(folder, digest), lambda file: np.save(file, stacked))
    return digest


@functools.lru_cache(maxsize=2)
def load(folder: str, digest: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[D]` and matrix `[D, D]` of a digest.

    Raises:
        UserError: the file is not in the folder, or not what the digest says.
    """
    path = _path(folder, digest)
    try:
        stacked = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"The ZCA matrix {path.name} is not in {folder}: prepare the dataset again with the "
            "same settings, or copy the file there."
        ) from None
    except (OSError, ValueError, EOFError):
        stacked = None
    if stacked is None or storage.fingerprint(np.ascontiguousarray(stacked).data) != digest:
        raise UserError(f"The ZCA matrix {path} is damaged: remove it and prepare the data again.")
    return stacked[0], stacked[1:]


@functools.lru_cache(maxsize=1)
def load_inverse(folder: str, digest: str) -> np.ndarray:
    """The inverse `[D, D]` of a digest's matrix; computed at first need, then cached too."""
    path = _path(folder, digest).with_suffix(".inverse.npy")
    _, matrix = load(folder, digest)
    if path.exists():
        try:
            inverse = np.load(path, allow_pickle=False)
            # A random vector must survive the round trip: cheaper than another digest.
            probe = np.random.default_rng(0).standard_normal(len(matrix)).astype(np.float32)
            if np.allclose(matrix @ (inverse @ probe), probe, atol=1e-2):
                return inverse
        except (OSError, ValueError, EOFError):
            pass
    inverse = np.linalg.inv(matrix.astype(np.float64)).astype(np.float32)
    write_atomically(path, lambda file: np.save(file, inverse))
    return inverse


def _path(folder: str | os.PathLike, digest: str) -> pathlib.Path:
    return pathlib.Path(folder) / f"zca_{digest[:32]}.npy"


def _flat(images: np.ndarray) -> np.ndarray:
    flat = np.asarray(images).reshape(len(images), -1)
    return flat.astype(np.float32) / 255 if flat.dtype == np.uint8 else flat.astype(np.float32)


def _product(left, right):
    if isinstance(left, np.ndarray):
        return left @ right
    import jax
    import jax.numpy as jnp

    # TF32 and bfloat16 would leave errors of the size of the whitened details.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
