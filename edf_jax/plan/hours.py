"""How long a run's stages take, by rates recorded on devices of the same kind.

`rates.json` holds, per device and stage, the arithmetic of convolutions and matrix products done in
a second of that stage as a whole, for networks of one or more sizes. The nearest size counts.
`python -m edf_jax.plan.hours RUN` prints a finished run's records, to be added there.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from edf_jax.config.resolve import baseline_rates, default_config, flatten
from edf_jax.data.describe import describe_dataset
from edf_jax.methods import family
from edf_jax.models import Network
from edf_jax.models.choose import network_for
from edf_jax.plan import costs
from edf_jax.runs.files import RunFiles
from edf_jax.runtime import devices
from edf_jax.runtime.errors import UserError

# Arithmetic in forward passes: a gradient is worth three, a step of GSAM two gradients, a step of
# matching a gradient forwards and a gradient of jvp backwards.
_GRADIENT, _MATCHING_STEP = 3, 9


class Work(NamedTuple):
    """The arithmetic of each stage, in floating-point operations."""

    experts: float
    distillation: float
    evaluation: float


@functools.cache
def forward_flops(network: Network) -> int:
    """The arithmetic of one image's forward pass."""
    theta, batch_stats = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)))
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    return costs.flops(network.apply, theta, image, batch_stats)


def evaluations(options) -> int:
    """How often a distillation is evaluated: at 0, every `eval_every`, at the last iteration."""
    return -(-options.iterations // options.eval_every) + 1


def stage_work(
    config,
    network: Network,
    num_images: int,
    num_train: int,
    num_test: int,
    evaluated: Sequence[Network],
) -> Work:
    """The arithmetic of a run.

    Args:
        config: resolved.
        network: of experts and students.
        num_images: n, synthetic.
        num_train: real images.
        num_test: real images.
        evaluated: the networks of the last evaluation.
    """
    forward = forward_flops(network)
    experts, options, evaluate = config.experts, config.distill, config.evaluate
    step = _GRADIENT * (2 if experts.optimizer == "gsam" else 1)
    training = experts.num * experts.epochs * (step * num_train + num_test) * forward

    def from_scratch(networks: int, epochs: int) -> int:
        """Images that go forward."""
        return networks * ((epochs + 1) * num_images * _GRADIENT + num_test)

    batch = min(options.batch_syn, num_images)
    steps = options.iterations * options.syn_steps * options.trajectories
    matching = steps * batch * _MATCHING_STEP * forward
    during = evaluations(options) * from_scratch(
        evaluate.during_num, evaluate.during_epochs or evaluate.epochs
    )
    # The first set, the last, the best, and the random images after their rates were tried.
    tried = len(baseline_rates(evaluate.baseline_rates))
    final = from_scratch(4 * evaluate.num + (tried if tried > 1 else 0), evaluate.epochs)
    each = sum(forward_flops(other) for other in evaluated)
    return Work(training, matching + during * forward, final * each)


def estimate(work: Work, forward: int, device_kind: str, precision: str) -> dict[str, float | None]:
    """Hours of each stage; None where no rate was recorded on such a device.

    Args:
        work: see `stage_work`.
        forward: see `forward_flops`.
        device_kind: as JAX names it.
        precision: `config.precision`.
    """
    found: dict[str, float | None] = {}
    for stage, amount in work._asdict().items():
        speed = rate(stage, forward, device_kind, precision)
        found[stage] = amount / speed / 3600 if speed else None
    return found


def rate(stage: str, forward: float, device_kind: str, precision: str) -> float | None:
    """Operations a second; of a CPU, by its number of cores."""
    fitting = [
        record
        for record in _records()
        if (record["device"], record["precision"], record["stage"])
        == (device_kind, precision, stage)
    ]
    if not fitting:
        return None
    nearest = min(fitting, key=lambda r: abs(math.log(r["forward_mflop"] * 1e6 / forward)))
    speed = nearest["gflops"] * 1e9
    if nearest.get("cores"):
        speed *= devices.available_cores() / nearest["cores"]
    return speed


@functools.cache
def _records() -> list[dict[str, Any]]:
    text = importlib.resources.files(__package__).joinpath("rates.json").read_text("utf-8")
    return json.loads(text)


def records_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rates of a finished run, in the form of `rates.json`.

    Args:
        workdir: the run's folder.

    Raises:
        UserError: there is no finished run.
    """

    try:
        run = RunFiles(workdir)
        config, result = default_config(**flatten(run.config)), run.result
        seconds, hardware = result["stages"], result["hardware"]
    except KeyError as error:
        raise UserError(f"{workdir} holds no finished run ({error})") from None
    data = describe_dataset(config.data)
    network = network_for(config, data)
    num_images = family.num_images(config.distill, data.num_classes)
    work = stage_work(config, network, num_images, data.num_train, data.num_test, [network])
    device = hardware["device"].rpartition(" x ")[2]
    stages = {"experts": "experts", "distillation": "distill", "evaluation": "evaluate"}
    return [
        {
            "device": device,
            **({"cores": int(hardware["cores"])} if device == "cpu" else {}),
            "precision": config.precision,
            "stage": stage,
            "forward_mflop": round(forward_flops(network) / 1e6, 1),
            "gflops": round(amount / seconds[stages[stage]] / 1e9, 1),
        }
        for stage, amount in work._asdict().items()
        if seconds.get(stages[stage])
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the rates of finished runs; returns the exit status."""
    folders = list(sys.argv[1:] if argv is None else argv)
    try:
        for folder in folders:
            for record in records_of(pathlib.Path(folder)):
                print(json.dumps(record))
    except UserError as error:
        print(f"edf_jax: {error}", file=sys.stderr)
        return 2
    if not folders:
        print("usage: python -m edf_jax.plan.hours RUN ...", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
