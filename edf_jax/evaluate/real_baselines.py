"""Baselines: real images chosen, and labelled, with the help of trained networks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.config.resolve import autos, flatten
from edf_jax.data import Dataset, coresets
from edf_jax.distilled_set import LabelledImages
from edf_jax.evaluate.patches import stitched_crops
from edf_jax.experts import difficulty
from edf_jax.experts.settings import expert_seed
from edf_jax.experts.train import expert_after, expert_recipe
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.methods.parametrisation.multi_formation import multi_formation
from edf_jax.methods.parametrisation.pixels import PIXELS
from edf_jax.methods.soft_labels import average_labels, hard_labels
from edf_jax.models.choose import network_for
from edf_jax.runtime import processes, randomness
from edf_jax.runtime.errors import UserError
from edf_jax.training.streaming import place
from edf_jax.training.trained import TrainedNetwork

_CHUNK = 256
# Networks trained on the real data, read one after the other; `early=True` early in training.
Networks = Callable[..., Iterable[TrainedNetwork]]


def trained_experts(
    config, dataset: Dataset, store: TrajectoryStore, *, early: bool = False
) -> Iterator[TrainedNetwork]:
    """The experts after their last epoch, each read when it is asked for.

    Early ones are as near to `experts.difficulty_epochs` as the store has epochs.
    """
    network, epoch = network_for(config, dataset.info), config.experts.epochs
    if early:
        wanted = config.experts.difficulty_epochs
        epoch = min(store.epochs(0), key=lambda epoch: abs(epoch - wanted))
    for expert in range(config.experts.num):
        arrays = expert_after(network, store, expert, epoch)
        name = f"expert {expert} ({network.name})" + (f" after epoch {epoch}" if early else "")
        yield TrainedNetwork(network, *arrays, name)


class RealImages:
    """Chooses real training images.

    Args:
        config: resolved.
        dataset: the real images.
        teacher: called where crops are to be judged, and for all else where there are no experts.
        experts: called when features (the first network's), soft labels (the mean of those that
            are right) or scores (of early ones) are needed; None where there are none.
    """

    def __init__(
        self,
        config,
        dataset: Dataset,
        teacher: Callable[[], TrainedNetwork],
        experts: Networks | None = None,
    ):
        self._config, self._dataset = config, dataset
        self._teacher, self._experts = teacher, experts
        self._networks: Networks = experts or (lambda: [teacher()])
        self._scores = functools.cache(self._find_scores)

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
        elif name == "rded":
            rng = randomness.host_stream(self._config.seed, "stitched baseline")
            stitched = stitched_crops(rng, self._dataset, self._teacher(), ipc)
            return dataclasses.replace(
                stitched,
                parameters=_same_everywhere(stitched.images),
                positions=_same_everywhere(np.asarray(stitched.positions)),
            )
        elif name in ("el2n", "grand", "ccs"):
            scores, by = self._scores("grand" if name == "grand" else "el2n")
            if name == "ccs":
                rng = randomness.host_stream(self._config.seed, "covering baseline")
                own = coresets.coverage(rng, scores, train.labels, ipc)
            else:
                own = coresets.hardest(scores, train.labels, ipc)
            chosen, note = _same_everywhere(own), f"by the scores of {by}"
        else:
            how = {"herding": coresets.herding, "k_centre": coresets.k_centre}[name]
            features, by = self._features
            chosen = _same_everywhere(how(features, train.labels, ipc))
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

    def _find_scores(self, how: str) -> tuple[np.ndarray, str]:
        """How hard all training images are, `[N]`, and to whom.

        As PAD's experts find it (`experts.difficulty_networks`): by snapshots of experts where
        there are any, else by networks trained for it.
        """
        config, train = self._config, self._dataset.train
        options, workers = config.experts, config.data.workers
        normalisation = self._dataset.info.normalisation
        images, prepare = place(train.images, normalisation, config.data.on_device)
        network = network_for(config, self._dataset.info)
        if self._experts is None:
            if "experts.lr" in autos(flatten(config)):
                raise UserError(
                    "scores of real images need networks, and without experts these are trained at "
                    "experts.lr: set it, such as 0.01"
                )
            scores = difficulty.mean_scores(
                expert_recipe(config, network, prepare),
                images,
                train.labels,
                how=how,
                networks=options.difficulty_networks,
                epochs=options.difficulty_epochs,
                rate=options.lr,
                key=randomness.stream(expert_seed(config), "difficulty"),
                workers=workers,
            )
            epochs = f"{options.difficulty_epochs} epochs"
            return scores, f"{options.difficulty_networks} networks trained {epochs}"
        score = difficulty.make_scores(
            network, prepare, images, train.labels, how=how, workers=workers
        )
        judges = list(itertools.islice(self._experts(early=True), options.difficulty_networks))
        scores = np.mean([score(*judge.arrays) for judge in judges], axis=0)
        return scores, judges[0].name if len(judges) == 1 else f"{judges[0].name} and others"

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


def _same_everywhere(own: np.ndarray) -> np.ndarray:
    """The first process's: rounding may differ between processes, and the images may not."""
    _, arrays = processes.arrays_from_first_process("chosen images", lambda: (None, {"": own}))
    return arrays[""]
