"""A network with its parameters: whose maps are taken, who labels images, whose features choose."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from edf_jax.methods.gradcam import ArrayFunction, Stages
from edf_jax.models import Network
from edf_jax.runtime import storage
from edf_jax.training.loop import predict


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network trained on the real data, or imported.

    Attributes:
        network: the architecture.
        theta: `[P]`; or `[K, P]`, and so the statistics, of K networks whose maps are averaged.
        batch_stats: {} where it has none.
        name: which one it is, for people.
        class_indices: its class for each of ours, `[C]`; None where they are the same.
        accuracy: on the real test images, in percent; None where it wasn't measured.
    """

    network: Network
    theta: jax.Array
    batch_stats: Any
    name: str
    class_indices: tuple[int, ...] | None = None
    accuracy: float | None = None

    @property
    def arrays(self) -> tuple[jax.Array, Any]:
        """What `logits` computes with; an argument of compiled functions."""
        return self.theta, self.batch_stats

    @functools.cached_property
    def digest(self) -> str:
        """Of its parameters and statistics."""
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(self.arrays)]
        parts = "".join(storage.digest(array) for array in arrays)
        return storage.fingerprint(parts.encode())[:16]

    def halves(self, arrays: tuple[jax.Array, Any]) -> tuple[Stages, ArrayFunction]:
        """What `gradcam`'s methods take: from inputs to feature maps, and from those to logits."""
        theta, batch_stats = arrays
        network = self.network

        def stage(number: int, maps: jax.Array) -> jax.Array:
            return network.stage(number, theta, maps, batch_stats)

        numbers = range(network.num_stages)
        features = Stages(functools.partial(stage, number) for number in numbers)
        return features, lambda maps: network.classify(theta, maps, batch_stats)

    def logits(self, arrays: tuple[jax.Array, Any], inputs: jax.Array) -> jax.Array:
        """Of our classes, `[n, C]`, of normalised `inputs [n, H, W, C]`."""
        logits = predict(self.network, *arrays, inputs, lambda x: x)
        return logits if self.class_indices is None else logits[:, np.asarray(self.class_indices)]

    def record(self) -> dict[str, Any]:
        """What to say of it beside a number."""
        return {"name": self.name, "digest": self.digest, "accuracy": self.accuracy}
