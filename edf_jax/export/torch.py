"""A distilled set as PyTorch trains on it: `edf_jax.torch.TensorSet`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from edf_jax.config.resolve import SCHEMA
from edf_jax.distilled_set import DistilledSet
from edf_jax.export.formats import probabilities
from edf_jax.methods.dsa import dsa
from edf_jax.runtime.errors import UserError

try:
    import torch
    from torch.utils.data import Dataset, get_worker_info
except ImportError as error:
    raise UserError("edf_jax.torch needs PyTorch: pip install 'edf_jax[interop]'") from error


class TensorSet(Dataset):
    """The images and soft labels of a distilled set; every access augments anew.

    Items are pairs of a normalised image `[C, H, W]` and the probabilities `[classes]` of its
    label, both float32. A `DataLoader` augments a batch at once; JAX does that on its own
    device, in the loader's process: leave `num_workers` at 0.

    Attributes:
        images: `[n, C, H, W]`, as learned.
        labels: `[n, classes]`, probabilities.
        rate: the learned rate of SGD.
        epochs, batch, momentum, weight_decay: what the set's own evaluation trains with.
        rate_falls: the epoch, from 0, at which that divides the rate by ten.
        class_names: by label.

    References:
        DSA: Zhao and Bilen, ICML 2021 (arXiv 2102.08259).
    """

    def __init__(self, distilled: DistilledSet, *, augment: bool = True, seed: int = 0):
        """Takes over a set.

        Args:
            distilled: the set.
            augment: whether items go through the DSA that the set was made for.
            seed: of the augmentation.
        """
        config = {name: key.default for name, key in SCHEMA.items()} | dict(distilled.config)
        self.images = _tensor(distilled.images)
        self.labels = torch.from_numpy(probabilities(distilled.labels))
        self.rate, self.class_names = distilled.alpha, distilled.class_names
        self.epochs = config["evaluate.epochs"] + 1
        self.rate_falls = config["evaluate.epochs"] // 2 + 2
        self.batch, self.momentum = config["evaluate.batch"], config["evaluate.momentum"]
        self.weight_decay = config["evaluate.weight_decay"]
        self._distilled, self._key, self._batches = distilled, jax.random.key(seed), 0
        self._augment = None
        if augment and config["augment.strategy"] != "none":
            options = {"strategy": config["augment.strategy"]}
            options["crop_ratio"] = config["augment.crop_ratio"]
            self._augment = jax.jit(functools.partial(dsa, **options))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """The items of a batch, which `DataLoader` asks for at once."""
        chosen = np.asarray(indices)
        return list(zip(self._inputs(chosen), self.labels[chosen]))

    def _inputs(self, chosen: np.ndarray):
        if self._augment is None:
            return self.images[chosen]
        if get_worker_info() is not None:
            raise UserError("TensorSet augments in the DataLoader's own process: num_workers=0")
        key = jax.random.fold_in(self._key, self._batches)
        self._batches += 1
        return _tensor(self._augment(key, self._distilled.images[chosen]))

    def normalise(self, pixels: np.ndarray):
        """Real images as the set's networks take them.

        Args:
            pixels: `[N, H, W, C]`, uint8, or float in [0, 1].

        Returns:
            float32 tensor `[N, C, H, W]`.
        """
        return _tensor(self._distilled.normalisation.apply(pixels))

    def test_data(self, path: str = "") -> tuple[Any, Any]:
        """Normalised test images `[N, C, H, W]` and labels `[N]`, of `DistilledSet.test_data`."""
        test = self._distilled.test_data(path)
        return self.normalise(test.images), torch.tensor(test.labels, dtype=torch.int64)


def _tensor(images: Any):
    """Images `[n, H, W, C]` as a float32 tensor `[n, C, H, W]`."""
    return torch.from_numpy(np.asarray(images, np.float32).transpose(0, 3, 1, 2).copy())
