"""The one place that knows how pixels become network inputs, and back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels in [0, 1].

    Hashable, so it can be a static argument of a compiled function.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images):
        """Network inputs from pixels.

        Args:
          images: `[..., H, W, C]`; uint8 in 0..255, or floating point in [0, 1].

        Returns:
          Normalised images of the same shape, float32 (float64 from float64).
        """
        x = _unit_interval(images)
        return (x - np.asarray(self.mean, x.dtype)) / np.asarray(self.std, x.dtype)

    def invert(self, images):
        """Pixels in [0, 1] (clipped) from network inputs `[..., H, W, C]`."""
        mean, std = (np.asarray(v, images.dtype) for v in (self.mean, self.std))
        return (images * std + mean).clip(0.0, 1.0)

    def to_json(self) -> str:
        """All there is to know, as a line of JSON."""
        return json.dumps({"mean": self.mean, "std": self.std})

    @classmethod
    def from_json(cls, text: str) -> Normalisation:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        return cls(mean=tuple(fields["mean"]), std=tuple(fields["std"]))


def _unit_interval(images):
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
