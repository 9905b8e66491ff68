"""The low frequencies of several images in the place of one image's pixels.

References:
    Shin et al., "Frequency Domain-based Dataset Distillation" (FreD, 2311.08819). FreD keeps the
    frequencies that explain most variance in each class; here they are the lowest ones, the same
    for all images, which needs no masks to be stored.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.methods.parametrisation.stored import Parametrisation, parts
from edf_jax.runtime.shapes import Array, Float, Images


def frequency(factor: int) -> Parametrisation:
    """A stored image holds, per channel, the lowest frequencies of `factor` images."""
    return Parametrisation(
        "frequency",
        functools.partial(to_frequencies, factor=factor),
        functools.partial(from_frequencies, factor=factor),
        factor,
        images=factor,
        real=factor,
    )


def _lowest_first(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns `[H * W]` of all DCT coefficients, the lowest frequency first."""
    rows, columns = np.divmod(np.arange(height * width), width)
    order = np.argsort((rows / height) ** 2 + (columns / width) ** 2, kind="stable")
    return rows[order], columns[order]


def from_frequencies(parameters: Images, factor: int) -> Float[Array, "m h w c"]:
    """Images of their lowest coefficients of the orthonormal DCT-II, each channel by itself.

    Args:
        parameters: `[n, H, W, C]`; read row by row, the first image's coefficients, lowest
            frequency first, then the next one's.
        factor: images that share them, at most H * W.

    Returns:
        `[n * factor, H, W, C]`.
    """
    count, height, width, channels = parameters.shape
    rows, columns = _lowest_first(height, width)
    stored = parameters.reshape(count, height * width, channels)
    spectra = jnp.zeros((count, factor, height, width, channels), parameters.dtype)
    for index, share in enumerate(parts(height * width, factor)):
        kept = share.stop - share.start
        spectra = spectra.at[:, index, rows[:kept], columns[:kept]].set(stored[:, share])
    images = jax.scipy.fft.idctn(spectra, axes=(2, 3), norm="ortho")
    return images.reshape(-1, height, width, channels)


def to_frequencies(images: Images, factor: int) -> Float[Array, "m h w c"]:
    """The lowest coefficients of images, which is what of each is stored.

    Args:
        images: `[n * factor, H, W, C]`.
        factor: images that share the place of one.

    Returns:
        `[n, H, W, C]`, laid out as `from_frequencies` reads them.
    """
    height, width, channels = images.shape[1:]
    rows, columns = _lowest_first(height, width)
    spectra = jax.scipy.fft.dctn(jnp.asarray(images), axes=(1, 2), norm="ortho")
    ordered = spectra[:, rows, columns].reshape(-1, factor, height * width, channels)
    kept = [
        ordered[:, index, : share.stop - share.start]
        for index, share in enumerate(parts(height * width, factor))
    ]
    return jnp.concatenate(kept, axis=1).reshape(-1, height, width, channels)
