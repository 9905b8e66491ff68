"""Runs and comparisons as rows of two CSV files, which are small enough for a repository.

    python -m experiments.keep runs/complex_scenes/hard_ipc10 docs/results/complex_scenes.csv \\
        --experiment=scenes_hard_ipc10

The file gets a row a run (see `experiments.rows`), and `docs/results/curves/complex_scenes.csv`
what the runs logged on their way: all evaluations and epochs of experts, and of the iterations a
row for each twentieth of a run. They take the place of what was kept under the experiment's name
before. Pictures are for copying: a comparison draws its curves, `python -m edf_jax.report` a run's
figures.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edf_jax.data.coresets import BASELINES
from edf_jax.report import comparison
from edf_jax.runs.files import RunFiles, open_run, selected
from edf_jax.runs.grid import Grid
from edf_jax.runs.metrics import read_metrics
from edf_jax.runtime import console
from edf_jax.runtime.errors import UserError
from experiments import rows
from experiments.rows import Line, Row

# What a run by itself measures, in the order of its rows; `distilled` is called after the method.
_MEASURED = (*BASELINES, "initial", "distilled", "ours", "pytorch", "full")
_DISTILLED = ("distilled", "ours", "best_on_test", "best_on_held_out")
_STRETCHES = 20
_CURVES = {
    "step": "step",
    "loss": "loss",
    "skipped": "skipped",
    "accuracy_mean": "accuracy",
    "accuracy_std": "accuracy_std",
    "test_accuracy": "accuracy",
    "test_accuracy_std": "accuracy_std",
    "held_out_accuracy_mean": "held_out_accuracy",
    "alpha": "alpha",
    "max_start_epoch": "max_start_epoch",
}

# What a result tells of each kind of set.
_OF_A_SET = ("image_bytes", "label_bytes", "epochs", "steps")


def keep(source: pathlib.Path, target: pathlib.Path, experiment: str = "") -> None:
    """Keeps what came of a run, or of a comparison with all its runs.

    Args:
        source: its folder.
        target: the CSV file; made where it isn't there.
        experiment: the name to keep it under; empty: the folder's.

    Raises:
        UserError: `source` is neither, or isn't finished.
    """
    experiment = experiment or source.name
    of_source = _of_comparison if comparison.is_comparison(source) else _of_run
    kept, curves = of_source(source, experiment)
    rows.replace(target, experiment, [row.line() for row in kept])
    rows.replace(target.parent / "curves" / target.name, experiment, curves)


def _of_comparison(source: pathlib.Path, experiment: str) -> tuple[list[Row], list[Line]]:
    grid = comparison.load_grid(source)
    trainers = [(cell.name, key) for key, cell in grid.runs.items() if cell.kind == "experts"]
    # A run can stand in several rows of the table.
    users = [(label, key) for label, keys in grid.rows.items() for key in keys]
    kept: list[Row] = []
    curves: list[Line] = []
    for method, key in trainers + users:
        cell, trainer = grid.runs[key], grid.runs.get(grid.experts.get(key, ""))
        run, metrics = open_run(cell.workdir), read_metrics(cell.workdir)
        if cell.kind == "experts":
            told = _result_of_experts(grid, key)
            row = row_of(experiment, method, run, "full", made="experts", result=told)
        else:
            experts = trainer.name if trainer else ""
            row = row_of(experiment, method, run, made=cell.baseline, experts=experts)
            # A run's folder repeats the epochs of the experts that it was given.
            metrics = [m for m in metrics if not experts or m["stage"] != "experts"]
        kept.append(row)
        curves += _lines(experiment, method, row.seed, metrics)
    return kept, curves


def _result_of_experts(grid: Grid, identity: str) -> dict[str, Any]:
    """An experts cell's result, with their accuracies, which the runs that use them tell."""
    result = _result(open_run(grid.runs[identity].workdir))
    users = [cell for user, cell in grid.runs.items() if grid.experts.get(user) == identity]
    told = [_result(open_run(cell.workdir)).get("full_accuracies") for cell in users]
    return {**result, "full_accuracies": next(filter(None, told), [])}


def _of_run(source: pathlib.Path, experiment: str) -> tuple[list[Row], list[Line]]:
    run = open_run(source)
    config, result = run.config, _result(run)
    method = "ours" if "ours_accuracies" in result else config["method"]
    kept = [
        row_of(experiment, method if kind == "distilled" else kind, run, kind)
        for kind in _MEASURED
        if result.get(f"{kind}_accuracies")
    ]
    curves = _lines(experiment, method, config["seed"], read_metrics(source))
    # What `experiments.equal_footing` logs of the other side.
    other = read_metrics(source / "pytorch")
    return kept, curves + _lines(experiment, "pytorch", config["seed"], other)


def row_of(
    experiment: str,
    method: str,
    run: RunFiles,
    kind: str = "",
    *,
    made: str = "",
    experts: str = "",
    result: Mapping[str, Any] | None = None,
) -> Row:
    """A finished run as a row.

    Args:
        experiment: what it belongs to.
        method: its label there.
        run: its folder.
        kind: of the set whose accuracies it is about, as `result.json` calls it; empty: of the
            baseline `made`, or of the set that the run selects.
        made: as for `rows.settings_of`.
        experts: the method of the row that trained its experts.
        result: in place of its `result.json`.

    Raises:
        UserError: the run isn't finished.
    """
    config, data = run.config, run.config["data"]
    result = result or _result(run)
    kind = kind or made or selected(result)
    distilled = kind in _DISTILLED
    iterations = run.rows("distill") if distilled else []
    hardware = ", ".join(map(str, result["hardware"].values()))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return Row(
        experiment,
        method,
        data.get("subset") or data.get("name") or data["source"],
        data["resolution"],
        config["distill"]["ipc"],
        config["seed"],
        tuple(result[f"{kind}_accuracies"]),
        best_on_test=tuple(result.get("best_on_test_accuracies", ())) if distilled else (),
        average=tuple(result.get("average_accuracies", ())) if distilled else (),
        held_out=_held_out(run, result.get(f"{kind}_step")),
        seconds=result["seconds"],
        own_seconds=round(
            result["stages"]["experts"] if made == "experts" else comparison.own_seconds(result), 1
        ),
        skipped=sum(bool(row["skipped"]) for row in iterations) if iterations else None,
        memory_mb=round(result["peak_memory_mb"]),
        device_memory_mb=result.get("peak_device_memory_mb"),
        **{name: result.get(f"{kind}_{name}") for name in _OF_A_SET},
        experts=experts,
        made_with=f"{hardware}; {versions}",
        command=result["command"],
        settings=rows.settings_of(config, made),
    )


def _held_out(run: RunFiles, step: int | None) -> float | None:
    """Mean accuracy on held-out images of the set of an iteration."""
    known = {row["step"]: row.get("held_out_accuracy_mean") for row in run.rows("evaluate")}
    return None if step is None else known.get(step)


def _result(run: RunFiles) -> dict[str, Any]:
    if not run.result:
        raise UserError(f"{run.workdir} has no result.json: its run isn't finished")
    return run.result


def _lines(
    experiment: str, method: str, seed: int, metrics: Sequence[dict[str, Any]]
) -> list[Line]:
    """The rows of a run's metrics as lines of curves."""
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in metrics):
        own = [row for row in metrics if row["stage"] == stage]
        for row in _stretches(own) if stage == "distill" else own:
            line = {"experiment": experiment, "method": method, "seed": str(seed), "stage": stage}
            told = {column: row.get(name) for name, column in _CURVES.items() if name in row}
            line |= dict.fromkeys(_CURVES.values(), "")
            line |= {column: f"{v:.5g}" for column, v in told.items() if v is not None}
            lines.append(line)
    return lines


def _stretches(iterations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each twentieth of a run: its mean loss, its skipped iterations, and its end."""
    found: list[dict[str, Any]] = []
    for part in np.array_split(np.array(iterations, object), min(_STRETCHES, len(iterations))):
        known = [row["loss"] for row in part if row.get("loss") is not None]
        skipped = sum(bool(row.get("skipped")) for row in part)
        loss = float(np.mean(known)) if known else None
        found.append({**part[-1], "loss": loss, "skipped": skipped})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.keep")
    parser.add_argument("source", type=pathlib.Path, help="the folder of a run or a comparison")
    parser.add_argument("target", type=pathlib.Path, help="the CSV file")
    parser.add_argument("--experiment", default="", help="by default the folder's name")
    options = parser.parse_args()

    def work() -> int:
        keep(options.source, options.target, options.experiment)
        return 0

    return console.exit_status(work, name="keep")


if __name__ == "__main__":
    sys.exit(main())
