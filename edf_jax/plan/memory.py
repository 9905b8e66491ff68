"""Peak memory of a run's stages: from traces alone, or by XLA's own account.

A stage takes its arguments and results, which are counted exactly, and temporaries, which are a
factor times what `costs.peak_bytes` finds in the trace of one step. The factors are those of XLA on
a CPU: distillation's total came within 13% of `memory_analysis()` for ConvNets with instance norm
(width 16 to 128, depth 3 to 5, 28 to 128 pixels, batch 10 to 500, N 5 to 40), within 24% for 11
other networks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edf_jax.experts.settings import group_size
from edf_jax.matching import iteration
from edf_jax.matching.gradient import REMAT
from edf_jax.matching.pixel_weight import make_weight
from edf_jax.matching.placement import Placement, check_batches, place
from edf_jax.methods import family, gsam
from edf_jax.models import Network, build_network
from edf_jax.plan import costs
from edf_jax.runtime import devices
from edf_jax.runtime.errors import UserError
from edf_jax.training import losses, streaming
from edf_jax.training.trained import TrainedNetwork

# XLA's temporaries over the trace's peak.
_MATCHING, _TRAINING, _FORWARD = 1.7, 2.4, 1.4
# The first of these of programs compiled for an H100.
_MATCHING_ON_ACCELERATOR = 1.0
# Vectors of parameters that XLA holds beside the steps' and the trace's peak.
_VECTORS = 3
# Batches of images that augmentation holds beside a student's step.
_AUGMENTED = 2
_TEST_BATCH = 256
_FLOAT = 4


def _shape(*sizes: int, dtype=jnp.float32) -> Any:
    """An array to trace with; it stands where a real one would."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def key_shape() -> jax.ShapeDtypeStruct:
    """A PRNG key to trace with."""
    return jax.eval_shape(lambda: jax.random.key(0))


def _bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    # A key's dtype has no size of its own; it is a few bytes.
    return sum(x.size * x.dtype.itemsize for x in leaves if hasattr(x.dtype, "itemsize"))


def iteration_arguments(config, network: Network, num_images: int) -> tuple:
    """Abstract arguments of `make_iteration`'s function."""
    options, size = config.distill, network.image_shape
    stored = num_images // family.parametrisation(options).images
    values = iteration.Learnable(
        _shape(stored, *size), _shape(num_images, network.num_classes), _shape()
    )
    state = jax.eval_shape(lambda values: iteration.initial_state(options, values), values)
    snapshots = _shape(options.trajectories, network.num_params)
    return state, snapshots, snapshots, _shape(num_images, *size[:2], 1), key_shape()


@functools.cache
def _matching_step(network: Network, batch: int) -> int:
    """Bytes that the trace of grad of jvp of a student's loss takes."""
    theta = _shape(network.num_params)
    images, labels = _shape(batch, *network.image_shape), _shape(batch, network.num_classes)

    def slope(theta, images, labels, v):
        def loss(theta):
            return losses.soft_cross_entropy(network.apply(theta, images, train=True), labels)

        return jax.jvp(loss, (theta,), (v,))[1]

    return costs.peak_bytes(jax.value_and_grad(slope, (0, 1, 2)), theta, images, labels, theta)


def iteration_bytes(config, network: Network, num_images: int, placement: Placement) -> int:
    """Memory of one outer iteration on one device: arguments, results and temporaries.

    Temporaries are each trajectory's image gradients, and of every one that is matched at once the
    activations of a step under grad of jvp, N parameter vectors and a batch's augmentation.

    Args:
        config: resolved.
        network: the student's.
        num_images: n.
        placement: of its work.
    """
    options = config.distill
    at_once = math.ceil(placement.share / placement.microbatches)
    trajectories = options.trajectories // placement.trajectory
    arguments = iteration_arguments(config, network, num_images)
    factor = _MATCHING if devices.platform() == "cpu" else _MATCHING_ON_ACCELERATOR
    of_one = (
        (options.syn_steps + _VECTORS) * _bytes(_shape(network.num_params))
        + int(factor * _matching_step(network, at_once))
        + _AUGMENTED * _bytes(_shape(placement.share, *network.image_shape))
        + stored_bytes(config, network, placement.batch, placement.remat)
    )
    gradients = trajectories * _bytes(_shape(num_images, *network.image_shape))
    on_each = placement.together * of_one + gradients
    return _bytes(arguments) + _bytes(arguments[0]) + _devices_on_host(placement) * on_each


def _devices_on_host(placement: Placement) -> int:
    """How many of a mesh's devices share one memory."""
    on_cpu = devices.platform() == "cpu"
    together = placement.trajectory * placement.data // jax.process_count()
    return max(1, together) if on_cpu else 1


def stored_bytes(config, network: Network, batch: int, remat: str) -> int:
    """What the backward sweep finds stored of N steps.

    Args:
        config: resolved.
        network: the student's.
        batch: the student's.
        remat: of `gradient.REMAT`.
    """
    if remat == "nothing":
        return 0
    theta = _shape(network.num_params)
    images, labels = _shape(batch, *network.image_shape), _shape(batch, network.num_classes)

    def residuals(*arguments):
        def gradient(theta, images, labels):
            def loss(theta):
                logits = network.apply(theta, images, train=True)
                return losses.soft_cross_entropy(logits, labels)

            return jax.grad(loss)(theta)

        return jax.vjp(jax.checkpoint(gradient, policy=REMAT[remat]), *arguments)[1]

    return config.distill.syn_steps * _bytes(jax.eval_shape(residuals, theta, images, labels))


def place_iteration(config, network: Network, num_images: int) -> Placement:
    """Where an iteration's work is placed, and what is stored of its steps.

    Args:
        config: resolved; `distill.store=auto` is nothing: on a CPU keeping takes longer than
            computing again, and compiled for an H100 it moves a third more bytes.
        network: the student's.
        num_images: n.

    Raises:
        UserError: the network can't have such batches, or something is to be stored of a batch
            that is split over devices.
    """
    wanted = config.distill.store
    placement = place(config, network, num_images)
    check_batches(placement, network, num_images)
    if wanted in ("auto", "nothing"):
        return placement
    if placement.data > 1:
        raise UserError(
            f"distill.store={wanted} is for a batch on one device: set parallel.data=1 (now "
            f"{config.parallel.data})"
        )
    return dataclasses.replace(placement, remat=wanted)


def compiled_iteration_bytes(config, network: Network, num_images: int) -> int | None:
    """The same by XLA's account of the compiled iteration; None where the platform gives none."""
    placement = place_iteration(config, network, num_images)
    step: Any = iteration.make_iteration(config, network, num_images, placement)
    compiled = step.lower(*iteration_arguments(config, network, num_images)).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return _devices_on_host(placement) * (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def maps_bytes(config, network: Network, num_images: int) -> int:
    """Memory of the class activation maps of all synthetic images; 0 where none are made."""
    if config.distill.pixel_weight != "dae":
        return 0
    count = _cam_count(config)
    return _maps(_cam_network(config, network), num_images, config.cam.method, count)


def _cam_count(config) -> int:
    """How many networks' maps are averaged."""
    return config.experts.num if config.cam.network == "experts" else 1


def _cam_network(config, network: Network) -> Network:
    if not config.cam.weights:
        return network
    return build_network("ResNet18BNImageNet", num_classes=1000, image_shape=network.image_shape)


@functools.cache
def _maps(network: Network, num_images: int, method: str, count: int) -> int:
    function, arguments = _maps_of(network, num_images, method, count)
    return _bytes(arguments) + int(_FORWARD * costs.peak_bytes(function, *arguments))


def maps_program(config, network: Network, num_images: int) -> tuple[Callable, tuple]:
    """The jitted function of class activation maps, and abstract arguments."""
    count = _cam_count(config)
    cam = _cam_network(config, network)
    function, arguments = _maps_of(cam, num_images, config.cam.method, count)
    return jax.jit(function), arguments


def _maps_of(
    network: Network, num_images: int, method: str, count: int
) -> tuple[Callable, tuple]:
    cam = types.SimpleNamespace(method=method, beta=1.0, threshold=0.0)
    as_pixels = types.SimpleNamespace(parametrisation="pixels", parametrisation_factor=1)
    config = types.SimpleNamespace(cam=cam, distill=as_pixels)
    theta, batch_stats = jax.eval_shape(network.init, key_shape())
    if count > 1:
        theta, batch_stats = jax.tree.map(
            lambda leaf: _shape(count, *leaf.shape), (theta, batch_stats)
        )
    images, labels = (
        _shape(num_images, *network.image_shape),
        _shape(num_images, network.num_classes),
    )
    values = iteration.Learnable(images, labels, _shape())

    def weigh(theta, batch_stats, values, key):
        cam = TrainedNetwork(network, theta, batch_stats, "")
        return make_weight(config, cam)(values, key)

    return weigh, (theta, batch_stats, values, key_shape())


@functools.cache
def _training_step(network: Network, batch: int, *, soft: bool, ascends: bool) -> int:
    """Memory of one network's training step or test, whichever takes more."""
    theta, batch_stats = jax.eval_shape(network.init, key_shape())
    images = _shape(batch, *network.image_shape)
    targets = _shape(batch, network.num_classes) if soft else _shape(batch, dtype=jnp.int32)
    loss_of = losses.soft_cross_entropy if soft else losses.hard_cross_entropy

    def step(theta, batch_stats, images, targets):
        def loss(theta):
            logits, moved = network.apply_and_update(theta, images, batch_stats)
            return loss_of(logits, targets), moved

        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if ascends:
            return gsam.gsam_gradient(value_and_grad, theta, rho=0.01, alpha=0.3, adaptive=True)
        return value_and_grad(theta)

    training = _TRAINING * costs.peak_bytes(step, theta, batch_stats, images, targets)
    seen = _shape(_TEST_BATCH, *network.image_shape)
    test = _FORWARD * costs.peak_bytes(network.apply, theta, seen, batch_stats)
    return int(max(training + _AUGMENTED * _bytes(images), test + _bytes(seen)))


def _networks_bytes(network: Network, count: int, has_momentum: bool, step: int) -> int:
    """Memory of several networks in training on one device (`training.for_each_network`).

    Their states come in and go out; but on a TPU one network at a time has activations.
    """
    on_each = math.ceil(count / len(devices.all_devices()))
    theta, batch_stats = jax.eval_shape(network.init, key_shape())
    state = (1 + has_momentum) * _bytes(theta) + _bytes(batch_stats)
    at_once = on_each if devices.platform() == "tpu" else 1
    return 2 * count * state + at_once * step


def _stored_bytes(config, image_shape: tuple[int, ...], count: int) -> int:
    """Real images on the device, as bytes or whitened floats: a split, or its chunks."""
    size = count * math.prod(image_shape) * (_FLOAT if config.data.zca else 1)
    if streaming.fits_on_device(size, config.data.on_device):
        return size
    return min(size, streaming.CHUNKS * streaming.CHUNK_BYTES)


def experts_bytes(config, network: Network, num_train: int, num_test: int) -> int:
    """Memory of training one group of experts."""
    options = config.experts
    step = _training_step(
        network, min(options.batch, num_train), soft=False, ascends=options.optimizer == "gsam"
    )
    count = group_size(config)
    stored = sum(_stored_bytes(config, network.image_shape, n) for n in (num_train, num_test))
    return stored + _networks_bytes(network, count, bool(options.momentum), step)


def evaluation_bytes(
    config, network: Network, num_images: int, num_test: int, networks: int
) -> int:
    """Memory of training so many networks from scratch on the synthetic images."""
    options = config.evaluate
    step = _training_step(network, min(options.batch, num_images), soft=True, ascends=False)
    synthetic = num_images * (math.prod(network.image_shape) + network.num_classes) * _FLOAT
    return (
        _stored_bytes(config, network.image_shape, num_test)
        + synthetic
        + _networks_bytes(network, networks, bool(options.momentum), step)
    )


def fitting_batch(config, network: Network, num_images: int, room: int) -> int | None:
    """The largest halving of `distill.batch_syn` with which an iteration fits; None if none does.

    Args:
        config: resolved.
        network: the student's.
        num_images: n.
        room: bytes.
    """
    batch = min(config.distill.batch_syn, num_images)
    while batch > 1:
        batch //= 2
        placement = place(config, network, num_images, batch)
        if iteration_bytes(config, network, num_images, placement) <= room:
            return batch
    return None
