"""What the choices are made from: short trainings, unrolls and gradients by the run's own parts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edf_jax.config.resolve import resolve
from edf_jax.data import Dataset, Split
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.train import expert_after, expert_recipe
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.matching.gradient import unroll
from edf_jax.matching.iteration import (
    Learnable,
    Student,
    initial_state,
    make_iteration,
    outer_optimiser,
)
from edf_jax.matching.placement import Placement
from edf_jax.methods import family
from edf_jax.methods.soft_labels import snapshot_labels
from edf_jax.models import Network
from edf_jax.runtime import randomness
from edf_jax.training import loop, losses
from edf_jax.training.streaming import place
from edf_jax.tune.choices import Probes

# Of the images, so many are enough to tell rates apart.
_MOST_TRAINED, _MOST_TESTED = 8192, 2048
# An expert's rate is tried for so many steps, and judged by the mean of its last losses.
_STRETCH, _STRETCHES, _JUDGED = 10, 6, 3
TRIED_STEPS = _STRETCH * _STRETCHES


def expert_losses(
    config, dataset: Dataset, held_out: Split, network: Network
) -> Callable[[float], float]:
    """`rate -> loss` of a fresh network on held-out images, after a few steps from the same start.

    Steps are plain SGD, also where experts take GSAM's, which cost twice as much.

    Args:
        config: resolved.
        dataset: the real images.
        held_out: training images that the network isn't trained on.
        network: the experts'.
    """
    normalisation = dataset.info.normalisation
    rng = randomness.host_stream(config.seed, "tried experts")
    images, labels, prepare = _some(rng, dataset.train, _MOST_TRAINED, normalisation)
    tested, tested_labels, _ = _some(rng, held_out, _MOST_TESTED, normalisation)
    recipe = dataclasses.replace(expert_recipe(config, network, prepare), gsam=None)
    batch = min(recipe.batch, len(labels))
    key = randomness.stream(config.seed, "tried experts")

    @jax.jit
    def stretch(state, key, rate, images, labels):
        order, steps = jax.random.split(key)
        positions = jax.random.randint(order, (_STRETCH, batch), 0, len(labels))
        batches = loop.Batches(positions, None, jax.random.split(steps, _STRETCH))
        return loop.train_batches(recipe, state, images, labels, batches, rate)[0]

    test = _held_out_loss(network, prepare)

    def loss(rate: float) -> float:
        state = loop.initial_state(recipe, key)
        found = []
        for index in range(_STRETCHES):
            step_key = jax.random.fold_in(key, index)
            state = stretch(state, step_key, jnp.float32(rate), images, labels)
            if index >= _STRETCHES - _JUDGED:
                found.append(test(state.theta, state.batch_stats, tested, tested_labels))
        return float(np.mean(found))

    return loss


def _some(rng: np.random.Generator, split: Split, most: int, normalisation):
    """At most so many images of a split with their labels, on the device."""
    rows = np.sort(rng.permutation(len(split))[:most])
    images, prepare = place(np.asarray(split.images[rows]), normalisation, "yes")
    return images, jnp.asarray(split.labels[rows]), prepare


def _held_out_loss(network: Network, prepare: loop.Prepare) -> Callable[..., float]:
    @jax.jit
    def loss(theta, batch_stats, images, labels):
        logits = loop.predict(network, theta, batch_stats, images, prepare)
        return losses.hard_cross_entropy(logits, labels, None)

    return lambda *arguments: float(loss(*arguments))


def expert_curve(
    config, dataset: Dataset, held_out: Split, network: Network, store: TrajectoryStore
) -> dict[int, float]:
    """The first expert's loss on held-out images by epoch, at some ten of its epochs."""
    rng = randomness.host_stream(config.seed, "tried experts")
    images, labels, prepare = _some(rng, held_out, _MOST_TESTED, dataset.info.normalisation)
    test = _held_out_loss(network, prepare)
    last = config.experts.epochs
    epochs = sorted({round(share * last / 10) for share in range(1, 11)} - {0})
    return {
        epoch: test(*expert_after(network, store, 0, epoch), images, labels) for epoch in epochs
    }


def student_probe(
    config,
    network: Network,
    initial: DistilledSet,
    store: TrajectoryStore,
    starts: Sequence[int],
    steps: Sequence[int],
    targets: Sequence[int],
) -> Callable[[float], Probes]:
    """`alpha -> Probes` of students that start at experts' snapshots and learn the first images.

    Args:
        config: resolved.
        network: the student's.
        initial: the first set.
        store: the experts.
        starts: epochs to start from, each of another expert.
        steps: of the student, rising.
        targets: expert epochs from start to target.
    """
    options = config.distill
    select = family.LOSS_MASKS[options.loss_mask](options)
    images, labels = jnp.asarray(initial.images), jnp.asarray(initial.labels)
    key = randomness.stream(config.seed, "tried students")

    count = len(initial.labels)
    longest = resolve(config, **{"distill.syn_steps": max(steps)})
    student = Student(longest, network, count, Placement(min(options.batch_syn, count)))

    def reached(theta, start, target):
        went, wanted = theta - start, target - start
        kept = jnp.ones_like(theta)
        if select is not None:
            selected = select((theta - target) ** 2)
            first = selected[0] if isinstance(selected, tuple) else selected
            kept = first.astype(theta.dtype)
        whole = jnp.sum(kept * wanted**2)
        return jnp.sum(kept * went * wanted) / whole, jnp.sum(kept * went**2) / whole

    @jax.jit
    def probe(alpha, start, goals, key, images, labels):
        if family.LABELS[options.labels].of_target:
            labels = snapshot_labels(network, goals[0], images)
        batches = student.batches(key, images.dtype)
        theta, found = start, []
        for first, last in itertools.pairwise((0, *steps)):
            part = jax.tree.map(operator.itemgetter(slice(first, last)), batches)
            theta, _ = unroll(student.loss, student.augment, theta, images, labels, alpha, part)
            found.append([jnp.stack(reached(theta, start, goal)) for goal in goals])
        return jnp.asarray(found)

    pairs = []
    for index, start in enumerate(starts):
        expert = index % config.experts.num
        begin = store.snapshot(expert, start)
        goals = np.stack([store.snapshot(expert, start + target) for target in targets])
        pairs.append((begin, goals, jax.random.fold_in(key, index)))

    def at(alpha: float) -> Probes:
        found = np.stack([probe(jnp.float32(alpha), *pair, images, labels) for pair in pairs])
        return Probes(found[..., 0].astype(float), found[..., 1].astype(float))

    return at


class Gradients:
    """Gradients of the set, and the set moved by them at rates that are tried.

    Attributes:
        seconds: the least that an iteration took.
        lengths: of the images' gradients so far.

    Args:
        config: resolved.
        network: the student's.
        initial: the first set.
        store: the experts.
        choices: `(expert, start epoch)` of each iteration.
    """

    def __init__(
        self,
        config,
        network: Network,
        initial: DistilledSet,
        store: TrajectoryStore,
        choices: Sequence[tuple[int, int]],
    ):
        # At rate one and from rest, an iteration moves the set by its gradient.
        values = {
            "distill.lr_img": 1.0, "distill.lr_y": 1.0, "distill.lr_lr": 1.0,
            "distill.alpha_step": "plain", "distill.momentum_img": 0.0, "distill.momentum_y": 0.0,
            "distill.momentum_lr": 0.0, "distill.threshold": 0.0, "distill.average": 0.0,
            "distill.clip": 0.0,
            "distill.trajectories": 1, "parallel.trajectory": 1,
        }  # fmt: skip
        self._config, alone = config, resolve(config, **values)
        self._iterate = make_iteration(alone, network, len(initial.labels))
        self._rest = functools.partial(initial_state, alone.distill)
        self._first = Learnable(
            jnp.asarray(initial.parameters),
            jnp.asarray(initial.labels),
            jnp.float32(initial.alpha),
        )
        self._pairs = [store.pair(*choice, config.distill.expert_epochs) for choice in choices]
        self._key = randomness.stream(config.seed, "tried rates")
        self.seconds, self.lengths = math.inf, list[float]()
        # Every race begins with the same iteration.
        self._at_first = functools.cache(lambda index: self.at(self._first, index))

    def at(self, values: Learnable, index: int) -> tuple[float, Learnable]:
        """The matching loss of iteration `index`, and its gradients."""
        began, pair = time.monotonic(), self._pairs[index]
        state, report = self._iterate(
            self._rest(values),
            jnp.asarray(pair.start[None]),
            jnp.asarray(pair.target[None]),
            jnp.ones((len(values.labels), *values.images.shape[1:3], 1)),
            jax.random.fold_in(self._key, index),
        )
        gradients = jax.tree.map(jnp.subtract, values, state.values)
        loss = float(report["loss"])
        self.lengths.append(float(report["gradient_images"]))
        # The first takes a compilation besides.
        self.seconds = min(self.seconds, time.monotonic() - began)
        return loss, gradients

    def start(self, count: int) -> tuple[float, float]:
        """Root mean squares of the gradients of images and labels, over some iterations."""
        found = [self._at_first(index)[1] for index in range(count)]
        images, labels, _ = (
            float(np.sqrt(np.mean([np.square(g) for g in kind]))) for kind in zip(*found)
        )
        return images, labels

    def race(self, rates: Mapping[str, float], judged: int) -> float:
        """The mean matching loss of the last iterations of a short distillation.

        Args:
            rates: `lr_img`, `lr_y` and `lr_lr`.
            judged: of how many, the last, the loss is the mean.
        """
        options = copy.deepcopy(self._config.distill)
        options.update(rates)
        optimiser = outer_optimiser(options)
        values, momentum, found = self._first, optimiser.init(self._first), []
        for index in range(len(self._pairs)):
            loss, gradients = self.at(values, index) if index else self._at_first(0)
            found.append(loss)
            updates, momentum = optimiser.update(gradients, momentum, values)
            values = optax.apply_updates(values, updates)
        return float(np.mean(found[-judged:]))
