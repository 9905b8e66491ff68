"""Our side of the benchmarks: the functions that a run compiles, on the problem's arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import problems
from benchmarks.sizes import ALPHA, MEAN, STD, Sizes
from edf_jax.data import Normalisation
from edf_jax.evaluate import RealTestData, plain_evaluator
from edf_jax.experts import train as experts
from edf_jax.matching import iteration
from edf_jax.matching.pixel_weight import make_weight
from edf_jax.models import torch_layout
from edf_jax.plan import memory
from edf_jax.runtime import devices
from edf_jax.training import loop as training
from edf_jax.training.trained import TrainedNetwork

NORMALISATION = Normalisation(MEAN, STD)


def set_up(sizes: Sizes) -> None:
    """Precision, allocator and compilation cache, as in a run."""
    devices.set_up(sizes.precision)


def device_name() -> str:
    """The device's kind as JAX names it."""
    return jax.devices()[0].device_kind


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"jax": jax.__version__, "numpy": np.__version__}


def reset_peak() -> None:
    """JAX's allocator has no such call."""


def peak_bytes() -> int:
    """The allocator's peak on an accelerator; 0 on a CPU."""
    statistics = jax.devices()[0].memory_stats() or {}
    return int(statistics.get("peak_bytes_in_use", 0))


class Matching:
    """One outer iteration from rest."""

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        self.steps = sizes.syn_steps
        config = problems.config(sizes)
        self._options = config.distill
        self._problem = problem
        network = problems.convnet(sizes)
        self._iterate = iteration.make_iteration(
            config,
            network,
            sizes.num_images,
            memory.place_iteration(config, network, sizes.num_images),
        )
        self._weight = jnp.ones((*problem["images"].shape[:3], 1))

    def ready(self, variant: int) -> Callable[[], Any]:
        problem = self._problem
        values = iteration.Learnable(
            jnp.array(problem["images"]), jnp.array(problem["labels"]), jnp.float32(ALPHA)
        )
        state = jax.block_until_ready(iteration.initial_state(self._options, values))
        key = problems.key_of(variant)
        return lambda: jax.block_until_ready(
            self._iterate(state, problem["starts"], problem["targets"], self._weight, key)
        )

    def results(self, output) -> dict[str, np.ndarray]:
        state, report = output
        # From rest, the momentum after one step is the gradient.
        gradients = {
            name: np.asarray(jax.tree.leaves(state.momentum.inner_states[name])[0])
            for name in iteration.Learnable._fields
        }
        return {"loss": np.asarray(report["loss"]), **gradients}


class Experts:
    """An epoch of several experts."""

    steps = 0

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        network = problems.convnet(sizes)
        self._network, self._problem = network, problem
        self._images = jnp.asarray(problem["real_images"])
        self._labels = jnp.asarray(problem["real_labels"])
        self._keys = problems.network_keys(jax.random.key(5), sizes.networks)
        config = problems.config(sizes)
        recipe = experts.expert_recipe(config, network, NORMALISATION.apply)
        self._start = jax.jit(
            jax.vmap(lambda theta: training.TrainState(theta, {}, recipe.optimiser.init(theta)))
        )

        def epoch(state, key, index, images, labels):
            epochs = training.Epochs(
                index[None], jnp.full(1, config.experts.lr), jnp.zeros(1, bool)
            )
            return training.train_epochs(recipe, state, images, labels, epochs, key)

        @jax.jit
        def train(states, keys, index, images, labels):
            return training.for_each_network(
                lambda state, key: epoch(state, key, index, images, labels)
            )(states, keys)

        self._train = train

    def ready(self, variant: int) -> Callable[[], Any]:
        states = jax.block_until_ready(self._start(self._problem["thetas"]))
        return lambda: jax.block_until_ready(
            self._train(states, self._keys, jnp.int32(variant), self._images, self._labels)
        )

    def results(self, output) -> dict[str, np.ndarray]:
        states, losses = output
        moved = np.asarray(states.theta) - self._problem["thetas"]
        return {
            "loss": np.asarray(losses).ravel(),
            "movement": np.stack([torch_layout.to_torch_flat(self._network, m) for m in moved]),
        }


class Evaluation:
    """Several networks trained from scratch on the synthetic set, and tested."""

    steps = 0

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        self._problem, self._network = problem, problems.convnet(sizes)
        self._rates = jnp.full(sizes.networks, ALPHA)
        self._evaluator = plain_evaluator(
            self._network,
            RealTestData(
                jnp.asarray(problem["real_images"]),
                jnp.asarray(problem["real_labels"]),
                NORMALISATION.apply,
            ),
            epochs=sizes.epochs - 1,
            batch=sizes.batch,
        )

    def ready(self, variant: int) -> Callable[[], Any]:
        images, labels = (jnp.asarray(self._problem[name]) for name in ("images", "labels"))
        key = problems.key_of(variant)

        def run():
            states = self._evaluator.train(images, labels, self._rates, key)
            return jax.block_until_ready(states), self._evaluator.test(states)

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        states, accuracies = output
        moved = np.asarray(states.theta) - self._problem["thetas"][0]
        return {
            "accuracy": np.asarray(accuracies.values),
            "movement": np.stack([torch_layout.to_torch_flat(self._network, m) for m in moved]),
        }


class Maps:
    """The activation maps of all synthetic images, and their weight."""

    steps = 0

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        network = problems.cam_network(sizes)
        stats = [problem[name] for name in sorted(problem) if name.startswith("stats_")]
        cam = TrainedNetwork(
            network,
            jnp.asarray(problem["theta"]),
            torch_layout.stats_from_torch(network, stats),
            sizes.cam,
        )
        self._weigh = make_weight(problems.config(sizes), cam)
        self._values = iteration.Learnable(
            jnp.asarray(problem["images"]), jnp.asarray(problem["labels"]), jnp.float32(0)
        )

    def ready(self, variant: int) -> Callable[[], Any]:
        key = problems.key_of(variant)
        return lambda: jax.block_until_ready(self._weigh(self._values, key))

    def results(self, output) -> dict[str, np.ndarray]:
        return {"maps": np.asarray(output[0])}


TASKS = {"matching": Matching, "experts": Experts, "evaluation": Evaluation, "gradcam": Maps}
