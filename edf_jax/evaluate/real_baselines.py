"""Baselines: real images chosen, and labelled, with the help of trained networks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.data import Dataset, coresets
from edf_jax.distilled_set import LabelledImages
from edf_jax.experts.train import expert_after
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.methods.parametrisation.multi_formation import multi_formation
from edf_jax.methods.parametrisation.pixels import PIXELS
from edf_jax.methods.soft_labels import average_labels, hard_labels
from edf_jax.models.choose import network_for
from edf_jax.runtime import processes, randomness
from edf_jax.training.streaming import place
from edf_jax.training.trained import TrainedNetwork

_CHUNK = 256
# Networks trained on the real data, read one after the other.
Networks = Callable[[], Iterable[TrainedNetwork]]


def trained_experts(config, dataset: Dataset, store: TrajectoryStore) -> Iterator[TrainedNetwork]:
    """The experts after their last epoch, each read when it is asked for."""
    network = network_for(config, dataset.info)
    for expert in range(config.experts.num):
        arrays = expert_after(network, store, expert, config.experts.epochs)
        yield TrainedNetwork(network, *arrays, f"expert {expert} ({network.name})")


class RealImages:
    """Chooses real training images.

    Args:
        config: resolved.
        dataset: the real images.
        networks: called when features (the first network's) or soft labels (the mean of those
            that are right) are needed.
    """

    def __init__(self, config, dataset: Dataset, networks: Networks):
        self._config, self._dataset, self._networks = config, dataset, networks

    def choose(self, name: str, ipc: int) -> LabelledImages:
        """One of `coresets.BASELINES`, `ipc` stored images of each class.

        Those of `downsampled` are grids of smaller ones, as `multi_formation` starts from.
        """
        train, info, stored = self._dataset.train, self._dataset.info, PIXELS
        if name == "downsampled":
            stored = multi_formation(self._config.distill.parametrisation_factor)
        if name in ("random", "real_soft", "downsampled"):
            rng = randomness.host_stream(self._config.seed, "random baseline")
            chosen = coresets.choose_random(rng, train.labels, ipc * stored.real)
            note = "random, their own labels"
            if name == "downsampled":
                note = f"{stored.real} times as many, shrunk to the same bytes, their own labels"
        else:
            how = {"herding": coresets.herding, "k_centre": coresets.k_centre}[name]
            features, by = self._features
            own = how(features, train.labels, ipc)
            # Rounding may differ between processes, and the images may not.
            _, arrays = processes.arrays_from_first_process(
                "chosen images", lambda: (None, {"": own})
            )
            chosen = arrays[""]
            note = f"by the features of {by}"
        images = info.normalisation.apply(np.asarray(train.images[chosen]))
        real = LabelledImages(
            np.asarray(stored.encode(images), np.float32),
            hard_labels(train.labels[chosen], info.num_classes),
            note=note,
            positions=chosen,
            parametrisation=stored,
        )
        return self._with_soft_labels(real) if name == "real_soft" else real

    @functools.cached_property
    def _features(self) -> tuple[np.ndarray, str]:
        """Features `[N, F]` of all training images, and whose they are."""
        source = next(iter(self._networks()))
        images, prepare = place(
            self._dataset.train.images,
            self._dataset.info.normalisation,
            self._config.data.on_device,
        )

        @jax.jit
        def features(arrays, images):
            theta, batch_stats = arrays
            maps = source.network.features(theta, prepare(images), batch_stats)
            return maps.reshape(len(images), -1)

        starts = range(0, len(images), _CHUNK)
        parts = [np.asarray(features(source.arrays, images[i : i + _CHUNK])) for i in starts]
        return np.concatenate(parts), source.name

    def _with_soft_labels(self, real: LabelledImages) -> LabelledImages:
        """Logits averaged over the networks that are right, as distillation starts from."""
        inputs, logits = jnp.asarray(real.images), []
        predict = None
        for source in self._networks():
            predict = predict or jax.jit(source.logits)
            logits.append(predict(source.arrays, inputs))
        labels = average_labels(jnp.stack(logits), jnp.asarray(real.classes))
        by = source.name if len(logits) == 1 else f"{len(logits)} networks"
        return dataclasses.replace(
            real, labels=np.asarray(labels, np.float32), note=f"random, labels of {by}"
        )
