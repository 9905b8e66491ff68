"""EDF by the official algorithm's steps in PyTorch and by a run's own functions, on equal terms.

    python -m experiments.equal_footing --config=configs/cluttered_digits.py:hard_ipc10 \\
        --config.distill.iterations=200 --workdir=runs/equal_footing

Both get the same experts, initial images, labels and hyper-parameters; batches, augmentation and
experts' order are drawn by each itself. Both final sets, and the initial one, are evaluated by the
same networks and recipe. The same command continues a run that was stopped: what is finished is
kept. The last line is FOOTING {json}.
"""

from __future__ import annotations

import json
import math
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from edf_jax import distilled_set
from edf_jax.config.resolve import resolve
from edf_jax.distilled_set import DistilledSet
from edf_jax.evaluate.measure import make_evaluator, test_data
from edf_jax.experts.train import open_experts
from edf_jax.models.choose import network_for
from edf_jax.runs.folder import Run
from edf_jax.runs.prepare import prepare
from edf_jax.runtime import console, randomness, storage
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress
from edf_jax.stages import run_stages

_SETS = ("initial", "ours", "pytorch")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = list(sys.argv if argv is None else argv)
    return console.exit_status(lambda: _run(argv), name="equal_footing")


def _run(argv: list[str]) -> int:
    from edf_jax.config.flags import parse
    from edf_jax.runtime import devices, preemption

    values = parse(argv, lambda values: None)
    config = resolve(values.config)
    _check(config)
    console.speak_in_lines()
    devices.set_up(config.precision, deterministic=config.deterministic)
    workdir = pathlib.Path(values.workdir or "runs/equal_footing").expanduser()
    command = "python -m experiments.equal_footing " + shlex.join(argv[1:])
    with preemption.listening(), Run(workdir, config, command) as run:
        run_stages(run, "distill")
        with run.stage("pytorch"):
            pytorch_set(config, workdir)
        with run.stage("evaluate"):
            figures = evaluate(config, workdir)
        result = {**figures, "workdir": str(workdir), **run.provenance()}
        run.write_result(result)
    for name in _SETS:
        print(f"{name:8s} {result[f'{name}_mean']:.2f} ± {result[f'{name}_std']:.2f}")
    told = {key: result[key] for key in ("difference", "difference_error", "within_noise")}
    print(f"ours - pytorch: {told['difference']:+.2f} ± {told['difference_error']:.2f}")
    means = {f"{name}_{f}": result[f"{name}_{f}"] for name in _SETS for f in ("mean", "std")}
    print("FOOTING " + json.dumps({**means, **told, "workdir": str(workdir)}), flush=True)
    return 0


def _check(config) -> None:
    wanted = {
        "method": "edf",
        "model.name": "ConvNet",
        "distill.trajectories": 1,
        "cam.method": "grad_cam",
        "cam.network": "auto",
        "cam.weights": "",
    }
    for name, value in wanted.items():
        group, _, leaf = name.rpartition(".")
        found = (config[group] if group else config)[leaf]
        if found != value:
            raise UserError(f"the PyTorch side knows {name}={value!r} only, not {found!r}")


def pytorch_set(config, workdir: pathlib.Path) -> DistilledSet:
    """The last set of the PyTorch side, which is made where it isn't there.

    Args:
        config: resolved.
        workdir: of our run, whose experts and first set it takes.
    """
    from benchmarks.pytorch_distill import Distillation

    path = workdir / "pytorch" / "last.safetensors"
    if path.exists():
        return distilled_set.load(path)
    dataset = prepare(config)
    store = open_experts(config, dataset, workdir)
    work = Distillation(config, network_for(config, dataset.info), store, config.seed)
    initial = distilled_set.load(workdir / "distilled" / "step_0.safetensors")
    rows: list[dict[str, Any]] = []
    with Progress("pytorch", config.distill.iterations, "iteration") as bar:

        def on_iteration(done: int, loss: float) -> None:
            told = {"loss": round(loss, 6), "time": round(time.time(), 3)}
            rows.append({"stage": "distill", "step": done - 1, **told})
            bar.update(loss=loss, skipped=work.skipped)

        last = work.run(initial, on_iteration)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_text(path.parent / "metrics.jsonl", lines)
    last.save(path)
    return last


def evaluate(config, workdir: pathlib.Path) -> dict[str, Any]:
    """Accuracies of the initial and of both last sets, in percent, by the same networks.

    Returns:
        For each set its `accuracies`, `mean`, `std` (ddof 0) and learned `rate`; `difference` of
        the means (ours less PyTorch's), its standard error, and whether it is below twice that.
    """
    dataset = prepare(config)
    network = network_for(config, dataset.info)
    test = test_data(config, dataset)
    evaluator = make_evaluator(config, network, test, epochs=config.evaluate.epochs)
    key = randomness.stream(config.seed, "evaluation")
    paths = {
        "initial": workdir / "distilled" / "step_0.safetensors",
        "ours": workdir / "distilled" / "last.safetensors",
        "pytorch": workdir / "pytorch" / "last.safetensors",
    }
    figures: dict[str, Any] = {"num_eval": config.evaluate.num, "seed": config.seed}
    found = {}
    for name, path in paths.items():
        measured = distilled_set.load(path)
        found[name] = evaluator(
            measured.images, measured.labels, measured.alpha, key, num=config.evaluate.num
        )
        figures |= {f"{name}_{k}": v for k, v in found[name].figures().items()}
        figures[f"{name}_rate"] = measured.alpha
    ours, theirs = found["ours"], found["pytorch"]
    count = config.evaluate.num
    error = math.sqrt((ours.std**2 + theirs.std**2) / max(count - 1, 1))
    difference = ours.mean - theirs.mean
    figures |= {"difference": round(difference, 3), "difference_error": round(error, 3)}
    figures["within_noise"] = abs(difference) <= 2 * error
    return figures


if __name__ == "__main__":
    sys.exit(main())
