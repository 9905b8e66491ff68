"""The one place that knows how pixels become network inputs, and back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from edf_jax.data import whitening
from edf_jax.data.cache import default_cache_dir


@dataclasses.dataclass(frozen=True)
class Whitening:
    """A ZCA matrix by its digest; read from the data cache when first used.

    Attributes:
        digest: of mean and matrix.
        folder: the data cache that holds them; not part of what it is.
    """

    digest: str
    folder: str = dataclasses.field(compare=False)

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean `[D]` and matrix `[D, D]`.

        Raises:
            UserError: they are not in the folder, or damaged.
        """
        return whitening.load(self.folder, self.digest)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels in [0, 1], or ZCA whitening.

    Hashable, so it can be a static argument of a compiled function. With `zca` the matrix becomes
    a constant of what is compiled (38 MB at 32x32x3): whiten whole sets outside of it.

    Attributes:
        mean: per channel; zeros with ZCA.
        std: per channel; ones with ZCA.
        zca: the whitening, or None.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    zca: Whitening | None = None

    def apply(self, images):
        """Network inputs from pixels.

        Args:
            images: `[..., H, W, C]`, NumPy or JAX; uint8 in 0..255, or floating point in [0, 1].

        Returns:
            Normalised images of the same shape, float32 (float64 from float64).

        Raises:
            UserError: the ZCA matrix is not in its folder.
        """
        x = _unit_interval(images)
        if self.zca is not None:
            return whitening.whiten(x, *self.zca.load())
        return (x - np.asarray(self.mean, x.dtype)) / np.asarray(self.std, x.dtype)

    def invert(self, images):
        """Pixels in [0, 1] (clipped) from network inputs `[..., H, W, C]`."""
        if self.zca is not None:
            mean, _ = self.zca.load()
            inverse = whitening.load_inverse(self.zca.folder, self.zca.digest)
            return whitening.restore(images, mean, inverse).clip(0.0, 1.0)
        mean, std = (np.asarray(v, images.dtype) for v in (self.mean, self.std))
        return (images * std + mean).clip(0.0, 1.0)

    def to_json(self) -> str:
        """What it is, as one line of JSON: with ZCA the matrix's digest, not the matrix."""
        fields: dict[str, object] = {"mean": self.mean, "std": self.std}
        if self.zca is not None:
            fields["zca"] = self.zca.digest
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str, cache_dir: str | None = None) -> Normalisation:
        """The inverse of `to_json`; `cache_dir` is where the ZCA matrix will be looked for."""
        fields = json.loads(text)
        matrix = None
        if "zca" in fields:
            matrix = Whitening(fields["zca"], str(cache_dir or default_cache_dir()))
        return cls(tuple(fields["mean"]), tuple(fields["std"]), matrix)

    @classmethod
    def fit_zca(
        cls, images: np.ndarray, cache_dir: str, *, eps: float = whitening.EPS
    ) -> Normalisation:
        """Fits ZCA to training images `[N, H, W, C]` (uint8) and keeps it in `cache_dir`."""
        digest = whitening.save(cache_dir, *whitening.fit_zca(images, eps=eps))
        channels = images.shape[-1]
        return cls((0.0,) * channels, (1.0,) * channels, Whitening(digest, str(cache_dir)))

    @classmethod
    def measured(cls, images: np.ndarray, *, batch: int = 1000) -> Normalisation:
        """Mean and deviation of training images `[N, H, W, C]` (uint8), four decimals."""
        channels = images.shape[-1]
        total, squares, count = np.zeros(channels), np.zeros(channels), 0
        for start in range(0, len(images), batch):
            x = np.asarray(images[start : start + batch], np.float64).reshape(-1, channels) / 255
            total += x.sum(axis=0)
            squares += (x * x).sum(axis=0)
            count += len(x)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean * mean, 0.0))
        std = np.where(std < 1e-3, 1.0, std)  # a constant channel stays as it is
        return cls(tuple(mean.round(4).tolist()), tuple(std.round(4).tolist()))


def _unit_interval(images):
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images


# ImageNet and CIFAR: those of the EDF code. The others: those of the dataset condensation papers
# (Zhao et al., 2006.05929). The cluttered digits lie on photographs: ImageNet's.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
MNIST = Normalisation((0.1307,), (0.3081,))
FASHION_MNIST = Normalisation((0.2861,), (0.3530,))
SVHN = Normalisation((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
