"""Baselines as subjects: real images chosen, and labelled, with the help of trained networks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.data import Dataset, coresets
from edf_jax.data.coresets import choose_random
from edf_jax.evaluate import labelled_images
from edf_jax.evaluate.labelled_images import Subject
from edf_jax.experts.train import expert_after
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.methods.soft_labels import average_labels
from edf_jax.models import Network
from edf_jax.models.choose import network_for
from edf_jax.runtime import processes, randomness
from edf_jax.training import loop as training
from edf_jax.training.streaming import place

_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class RealNetworks:
    """Networks trained on the real data, whose features and labels baselines are made of.

    Attributes:
        network: their architecture.
        snapshot: `k -> (theta, batch_stats)` of each.
        count: how many there are.
        name: which they are, for people.
        class_indices: their class for each of ours; None where they are the same.
    """

    network: Network
    snapshot: Callable[[int], tuple[jax.Array, Any]]
    count: int
    name: str
    class_indices: tuple[int, ...] | None = None


class RealImages:
    """Chooses real training images."""

    def __init__(self, config, dataset: Dataset, networks: Callable[[], RealNetworks]):
        """Prepares.

        Args:
            config: resolved.
            dataset: the real images.
            networks: called when features or soft labels are first needed.
        """
        self._config, self._dataset = config, dataset
        self._networks = functools.cache(networks)

    def choose(self, name: str, ipc: int) -> Subject:
        """One of `baselines.BASELINES`, `ipc` images of each class."""
        train, info = self._dataset.train, self._dataset.info
        if name in ("random", "real_soft"):
            rng = randomness.host_stream(self._config.seed, "random baseline")
            chosen = choose_random(rng, train.labels, ipc)
            note = "random, their own labels"
        else:
            how = {"herding": coresets.herding, "k_centre": coresets.k_centre}[name]
            own = how(self._features, train.labels, ipc)
            # Rounding may differ between processes, and a subject may not.
            chosen = processes.shared_arrays("chosen images", lambda: (None, {"": own}))[1][""]
            note = f"by the features of {self._networks().name}"
        subject = labelled_images.of_real(train.images, train.labels, chosen, info, note)
        return self._with_soft_labels(subject) if name == "real_soft" else subject

    @functools.cached_property
    def _features(self) -> np.ndarray:
        """Features `[N, F]` of all training images by the first network."""
        source = self._networks()
        theta, batch_stats = source.snapshot(0)
        images, prepare = place(
            self._dataset.train.images,
            self._dataset.info.normalisation,
            self._config.data.on_device,
        )

        @jax.jit
        def features(theta, batch_stats, images):
            maps = source.network.features(theta, prepare(images), batch_stats)
            return maps.reshape(len(images), -1)

        parts = [
            np.asarray(features(theta, batch_stats, images[i : i + _CHUNK]))
            for i in range(0, len(images), _CHUNK)
        ]
        return np.concatenate(parts)

    def _with_soft_labels(self, subject: Subject) -> Subject:
        """Logits averaged over the networks that are right, as distillation starts from."""
        source = self._networks()
        predict = jax.jit(
            lambda theta, stats, x: training.predict(source.network, theta, stats, x, lambda y: y)
        )
        inputs = jnp.asarray(subject.images)
        logits = jnp.stack([predict(*source.snapshot(k), inputs) for k in range(source.count)])
        if source.class_indices is not None:
            logits = logits[..., np.asarray(source.class_indices)]
        labels = average_labels(logits, jnp.asarray(subject.classes))
        return dataclasses.replace(
            subject, labels=np.asarray(labels, np.float32), note=f"random, labels of {source.name}"
        )


def real_networks(config, dataset: Dataset, store: TrajectoryStore) -> RealNetworks:
    """The experts after their last epoch, as baselines use them."""

    network, count = network_for(config, dataset.info), config.experts.num
    return RealNetworks(
        network,
        lambda expert: expert_after(network, store, expert, config.experts.epochs),
        count,
        f"{count} experts",
    )
