"""The programs that a run compiles, with the shapes of their arguments and nothing in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from edf_jax.data import Normalisation
from edf_jax.experts.settings import group_size
from edf_jax.experts.train import expert_recipe
from edf_jax.matching import iteration
from edf_jax.methods import dsa
from edf_jax.models import Network
from edf_jax.plan import memory
from edf_jax.training import losses, streaming
from edf_jax.training.loop import Epochs, Recipe, for_each_network, initial_state, sgd, train_epochs


class Program(NamedTuple):
    """A compiled function of a run.

    Attributes:
        name: what one call of it is.
        function: jitted.
        arguments: shapes and types.
    """

    name: str
    function: Any
    arguments: tuple


def programs(config, data, network: Network, num_images: int) -> list[Program]:
    """What a run with this config computes, apart from small things.

    Args:
        config: resolved.
        data: what `describe_dataset` says.
        network: of experts, students and evaluation.
        num_images: n, synthetic.
    """
    found = [
        outer_iteration(config, network, num_images),
        experts_epoch(config, data, network),
        evaluation_epoch(config, network, num_images),
    ]
    if config.distill.pixel_weight == "dae":
        found.append(
            Program("all maps", *memory.maps_program(config, network, num_images))
        )
    return found


def outer_iteration(config, network: Network, num_images: int) -> Program:
    """One outer iteration."""
    placement = memory.place_iteration(config, network, num_images)
    function = iteration.make_iteration(config, network, num_images, placement)
    arguments = memory.iteration_arguments(config, network, num_images)
    return Program("outer iteration", function, arguments)


def experts_epoch(config, data, network: Network) -> Program:
    """An epoch of one group of experts; of a streamed set, on what the device holds of it."""
    size, channels = data.image_shape, data.image_shape[-1]
    whitened = config.data.zca
    statistics = Normalisation((0.5,) * channels, (0.25,) * channels)
    prepare = (lambda x: x) if whitened else statistics.apply
    each = 1 if not whitened else 4
    for side in size:
        each *= side
    count = data.num_train
    if not streaming.fits_on_device(count * each, config.data.on_device):
        count = min(count, streaming.CHUNKS * streaming.CHUNK_BYTES // each)
    images = jax.ShapeDtypeStruct((count, *size), jnp.float32 if whitened else jnp.uint8)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32)
    networks = group_size(config)
    recipe = expert_recipe(config, network, prepare)
    function, states = _epoch(recipe, networks)
    return Program(f"epoch of {_experts(networks)}", function, (*states, images, labels))


def evaluation_epoch(config, network: Network, num_images: int) -> Program:
    """An epoch of the networks that are trained on the set, by the plain protocol."""
    options, augment = config.evaluate, config.augment
    recipe = Recipe(
        network,
        losses.soft_cross_entropy,
        sgd(options.momentum, options.weight_decay),
        lambda key, x: dsa.dsa(
            key, x, strategy=augment.strategy, crop_ratio=augment.crop_ratio
        ),
        lambda images: images,
        options.batch,
    )
    function, states = _epoch(recipe, options.num)
    images = jax.ShapeDtypeStruct((num_images, *network.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((num_images, network.num_classes), jnp.float32)
    name = f"epoch of {options.num} evaluated"
    return Program(name, function, (*states, images, labels))


def _epoch(recipe: Recipe, networks: int) -> tuple[Callable, tuple]:
    """A function of states, keys, images and targets, and the first two's shapes."""

    def epoch(states, keys, images, targets):
        def one(state, key):
            first = Epochs(jnp.zeros(1, jnp.int32), jnp.full(1, 0.01), jnp.zeros(1, bool))
            return train_epochs(recipe, state, images, targets, first, key)

        return for_each_network(one)(states, keys)

    def start(key):
        keys = jax.random.split(key, networks)
        return jax.vmap(lambda key: initial_state(recipe, key))(keys), keys

    return jax.jit(epoch), jax.eval_shape(start, memory.key_shape())


def _experts(count: int) -> str:
    return "1 expert" if count == 1 else f"{count} experts"
