"""A run that takes about the time that was asked for, on whatever machine it stands on.

The size of images and network and the number of experts are chosen before anything is read, from
the machine's speed, measured for seconds; experts' epochs and distillation's iterations once a step
of theirs has been timed (`edf_jax.tune.tuning`).
"""

from __future__ import annotations

import json
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.config.resolve import autos, flatten, reckoned, resolve
from edf_jax.data.describe import describe_dataset
from edf_jax.data.subsets import chosen_subset
from edf_jax.methods import family
from edf_jax.models import Network
from edf_jax.models.choose import network_for
from edf_jax.plan.hours import forward_flops, rate
from edf_jax.runtime import devices, processes
from edf_jax.runtime.errors import UserError
from edf_jax.training import loop, losses

# The parts of the time that experts and distillation get; the rest is evaluation and report.
EXPERTS_SHARE, DISTILL_SHARE = 0.35, 0.45
# Compiling and starting take about so many seconds, whatever is computed.
OVERHEAD = 90.0
RESOLUTIONS, WIDTHS = (32, 64, 128), (16, 32, 64, 128)
FEWEST_EXPERTS, MOST_EXPERTS = 2, 8
# An expert takes so many steps at least, and as many as it is given time for up to the second.
FEWEST_STEPS, MOST_STEPS, FEWEST_EPOCHS = 350, 800, 6
_FEWEST_ITERATIONS = 150
# Of what a training step computes a second, what an outer iteration does.
_MATCHING = 0.7
_SECONDS, _BATCH = 2.0, 64
_UNKNOWN = {"cpu": 2e10}
_UNKNOWN_ACCELERATOR = 5e12
# What is chosen here; `distill.iterations` only needs a budget.
KEYS = ("data.resolution", "model.width", "experts.num")


class Sizes(NamedTuple):
    """What a run of some size costs, in operations.

    Attributes:
        resolution: side of its images.
        width: of its network.
        forward: of one image.
        epoch: of an expert.
        iteration: of distillation.
        steps: of an expert's epoch.
    """

    resolution: int
    width: int
    forward: float
    epoch: float
    iteration: float
    steps: int


def settle(config, workdir: pathlib.Path, *, measure: bool = True):
    """The config with sizes that fit its budget: those of the run's folder, else new ones.

    Args:
        config: resolved.
        workdir: the run's folder, which may not be there yet.
        measure: False takes speeds recorded on such devices, and computes nothing.

    Raises:
        UserError: something is left open that needs `budget.minutes`.
    """
    flat = flatten(config)
    wanted = [key for key in KEYS if key in autos(flat)]
    if not config.budget.minutes:
        needing = [key for key in (*KEYS, "distill.iterations") if key in autos(flat)]
        if needing:
            raise UserError(
                f"{needing[0]}=auto goes by the time there is: set budget.minutes, such as 20"
            )
        return config
    if not wanted:
        return config
    found = processes.from_first_process("sizes", lambda: _of_folder(workdir, wanted))
    if found is None:
        found = processes.from_first_process("sizes", lambda: _choose(config, wanted, measure))
    return resolve(config, **found)


def _of_folder(workdir: pathlib.Path, wanted: list[str]) -> dict[str, Any] | None:
    try:
        earlier = flatten(json.loads((workdir / "config.json").read_text(encoding="utf-8")))
        return {key: earlier[key] for key in wanted}
    except (OSError, ValueError, AttributeError, KeyError):
        return None


def _choose(config, wanted: list[str], measure: bool) -> dict[str, Any]:
    sizes = _sizes(config)
    speed = _speeds(config, measure)
    chosen = choose(sizes, [speed(size) for size in sizes], config.budget.minutes * 60)
    return {key: chosen[key] for key in wanted}


def choose(sizes: list[Sizes], speeds: list[float], seconds: float) -> dict[str, int]:
    """The largest size that the time is enough for, and as many experts as fit.

    Args:
        sizes: to choose from.
        speeds: operations a second of each.
        seconds: of the whole run.
    """
    seconds = max(seconds - OVERHEAD, 0.3 * seconds)
    ordered = sorted(zip(sizes, speeds), key=lambda pair: pair[0].forward)

    def epochs(size: Sizes, speed: float) -> float:
        return EXPERTS_SHARE * seconds * speed / size.epoch

    fitting = [
        (size, speed)
        for size, speed in ordered
        if epochs(size, speed) >= FEWEST_EXPERTS * epochs_of(FEWEST_STEPS, size.steps)
        and DISTILL_SHARE * seconds * speed * _MATCHING / size.iteration >= _FEWEST_ITERATIONS
    ]
    size, speed = fitting[-1] if fitting else ordered[0]
    most = epochs_of(MOST_STEPS, size.steps)
    num = int(np.clip(epochs(size, speed) // most, FEWEST_EXPERTS, MOST_EXPERTS))
    return {"data.resolution": size.resolution, "model.width": size.width, "experts.num": num}


def epochs_of(steps: int, steps_per_epoch: int) -> int:
    """The epochs that have so many steps."""
    return max(FEWEST_EPOCHS, -(-steps // steps_per_epoch))


def trainings(config) -> float:
    """Epochs of networks on the set that a run's evaluations take, in all."""
    options = config.evaluate
    tried = len(options.baseline_rates.split(","))
    baselines = len(options.baselines.split(",")) if options.baselines else 0
    whole = options.num * (2 + baselines) + (tried if tried > 1 and baselines else 0)
    during = 2 * options.during_num * (options.during_epochs or options.epochs)
    return whole * options.epochs + during


def _sizes(config) -> list[Sizes]:
    """What there is to choose from: what was given, or all that the images allow."""
    flat = flatten(config)
    open_keys = autos(flat)
    resolutions = [config.data.resolution]
    if "data.resolution" in open_keys:
        resolutions = _resolutions(config)
    widths = WIDTHS if "model.width" in open_keys else [config.model.width]
    found = []
    for resolution in resolutions:
        for width in widths:
            sized = resolve(config, **{"data.resolution": resolution, "model.width": width})
            found.append(_size(sized, describe_dataset(sized.data)))
    return found


def _resolutions(config) -> list[int]:
    """The sides that the images are large enough for; of ImageNet's all."""
    if chosen_subset(config.data) is not None:
        return list(RESOLUTIONS)
    own = describe_dataset(resolve(config, **{"data.resolution": 0}).data)
    if not own.available:
        raise UserError(own.advice)
    side = min(own.image_shape[:2])
    return [r for r in RESOLUTIONS if r <= side] or [side]


def _size(config, data) -> Sizes:
    config = reckoned(config)
    forward = forward_flops(network_for(config, data))
    gradients = 6 if config.experts.optimizer == "gsam" else 3
    options, images = config.distill, family.num_images(config.distill, data.num_classes)
    seen = min(options.batch_syn, images) * options.syn_steps * options.trajectories
    return Sizes(
        config.data.resolution,
        config.model.width,
        forward,
        (gradients * data.num_train + data.num_test) * forward,
        9 * seen * forward,
        -(-data.num_train // config.experts.batch),
    )


def _speeds(config, measure: bool):
    """`Sizes -> ` operations a second in training."""
    device = devices.local_device()
    is_cpu = device.kind == "cpu"
    if not measure:
        unknown = _UNKNOWN.get(device.kind, _UNKNOWN_ACCELERATOR)
        return lambda size: rate("experts", size.forward, device.kind, config.precision) or unknown
    known = {}
    # A small network leaves much of an accelerator idle, so a large one is timed beside it.
    for resolution, width in ((32, 32),) if is_cpu else ((32, 32), (64, 128)):
        sized = resolve(config, **{"data.resolution": resolution, "model.width": width})
        network = network_for(sized, describe_dataset(sized.data))
        known[float(forward_flops(network))] = measured_speed(network)
    forwards = sorted(known)

    def speed(size: Sizes) -> float:
        logs = np.interp(
            math.log(size.forward), np.log(forwards), np.log([known[f] for f in forwards])
        )
        return float(np.exp(logs))

    return speed


def measured_speed(network: Network, *, seconds: float = _SECONDS, batch: int = _BATCH) -> float:
    """Operations a second that training steps of a network take here, as `forward_flops` counts."""
    recipe = loop.Recipe(
        network, losses.hard_cross_entropy, loop.sgd(), lambda key, x: x, lambda x: x, batch
    )
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch, *network.image_shape))
    labels = jnp.zeros(batch, jnp.int32)
    step = jax.jit(
        lambda state: loop.train_step(recipe, state, images, labels, None, key, jnp.float32(0))[0]
    )
    state = jax.block_until_ready(step(loop.initial_state(recipe, key)))
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        state = jax.block_until_ready(step(state))
        steps += 1
    return 3 * batch * steps * forward_flops(network) / (time.monotonic() - began)
