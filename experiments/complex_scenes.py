"""Methods on simple and on complex scenes, each with settings chosen on held-out training images.

    python -m experiments.complex_scenes --level=easy --workdir=runs/complex_scenes
    python -m experiments.complex_scenes --level=hard --workdir=runs/complex_scenes

For a level of the cluttered digits, in this order, and continued by the same command:

1. `<level>_heldout.npz`: the training composites, a fifth of the digit samples set aside as its
   test split. Test images play no part in the choice.
2. `<level>_tune_ipc<n>`: for each method the same trials, on that file.
3. `<level>_rows_ipc<n>.json`: each method with the values of its best trial; EDF's ablations take
   EDF's.
4. `<level>_ipc<n>`: the comparison with real test images (`edf_jax.compare --rows=...`).
5. With `--closer`, `<level>_closer_ipc<n>`: DATM, EDF without DAE, and EDF with Grad-CAM's maps and
   with those of the official code, over ten seeds; the runs that 4 has made are taken from there.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import pathlib
import shlex
import shutil
import sys
from typing import Any

import numpy as np

from edf_jax.compare import compare, run_in_child
from edf_jax.config.resolve import set_keys
from edf_jax.data import load_dataset
from edf_jax.data.cluttered_digits import split_by_class
from edf_jax.report import comparison
from edf_jax.runs.grid import Grid, make_grid
from edf_jax.runtime import console, preemption, storage

_METHODS = ("mtt", "datm", "edf")
_ABLATIONS: dict[str, dict[str, Any]] = {
    "edf without CPD": {"distill.loss_mask": "none"},
    "edf without DAE": {"distill.pixel_weight": "none"},
}
# The same for each method: image rates, and how late in training matched epochs may lie.
TRIALS: dict[int, tuple[dict[str, Any], ...]] = {
    ipc: tuple(
        {"distill.lr_img": rate, "distill.max_start_epoch": epoch}
        for rate, epoch in ((1000.0, early), (3000.0, early), (3000.0, late))
    )
    for ipc, early, late in ((1, 4, 10), (10, 10, 20))
}
# Trials take fewer experts, iterations and networks than what they choose for.
_CHEAPER = {
    "experts.num": 3,
    "distill.iterations": 100,
    "distill.expansion_end": 60,
    "distill.eval_every": 100,
    "evaluate.num": 2,
    "evaluate.during_epochs": 1,
}
_HELD_OUT_SEED = 1
_SEEDS = 3
_CLOSER_SEEDS = 10

_log = logging.getLogger("experiments.complex_scenes")


def held_out_file(path: pathlib.Path, data_config) -> None:
    """Writes a level's training composites as .npz, a fifth of their digits as its test split.

    Args:
        path: of the file.
        data_config: of the cluttered digits.
    """
    train = load_dataset(data_config).train
    copies = data_config.composites
    # Composites of one digit sample stay together.
    samples = len(train.labels) // copies
    kept, held = split_by_class(train.labels[:samples], _HELD_OUT_SEED)
    arrays = {}
    for split, chosen in (("train", kept), ("test", held)):
        positions = (np.arange(copies)[:, None] * samples + chosen).ravel()
        arrays[f"x_{split}"] = train.images[positions]
        arrays[f"y_{split}"] = train.labels[positions]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def tuning_rows(ipc: int) -> dict[str, dict[str, Any]]:
    """The trials at a number of images per class as rows of a comparison: labels, and values."""
    return {
        f"{method}, {_told(trial)}": {"method": method, **trial}
        for method in _METHODS
        for trial in TRIALS[ipc]
    }


def _told(trial: dict[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value:g}" for key, value in trial.items())


def chosen_rows(means: dict[str, float], ipc: int) -> dict[str, dict[str, Any]]:
    """The comparison's rows: each method with its best trial's values.

    Args:
        means: held-out accuracy by the labels of `tuning_rows`.
        ipc: the ablations are made at ten images per class.
    """
    rows: dict[str, dict[str, Any]] = {"random": {"baseline": "random"}}
    for method in _METHODS:
        best = max(TRIALS[ipc], key=lambda trial: means[f"{method}, {_told(trial)}"])
        rows[method] = {"method": method, **best}
    if ipc == 10:
        for label, changes in _ABLATIONS.items():
            rows[label] = {**rows["edf"], **changes}
    return rows


def closer_rows(chosen: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows that tell DAE and its maps apart, of those of `chosen_rows`."""
    without = {**chosen["edf"], **_ABLATIONS["edf without DAE"]}
    official = {**chosen["edf"], "cam.method": "smooth_grad_cam_pp"}
    return {
        "datm": chosen["datm"],
        "edf without DAE": without,
        "edf": chosen["edf"],
        "edf, SmoothGrad-CAM++": official,
    }


def take_cells(plan: Grid, others: Grid) -> None:
    """Copies the cells of a plan that another comparison has finished, and this one lacks."""
    for identity in plan.runs.keys() & others.runs.keys():
        source, target = others.runs[identity].workdir, plan.runs[identity].workdir
        if not target.exists():
            half = target.with_name(target.name + ".tmp")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(source, half)
            half.rename(target)


def run(
    level: str, ipc: int, workdir: pathlib.Path, config, cheaper=None, *, closer: bool = False
) -> None:
    """Tunes and compares at one level and number of images per class, or continues.

    Args:
        level: `easy` or `hard`.
        ipc: images per class.
        workdir: of everything.
        config: not resolved; that of the comparison.
        cheaper: keys and values of the trials instead of the config's.
        closer: whether to compare `closer_rows` too.
    """
    command = "python -m experiments.complex_scenes " + shlex.join(sys.argv[1:])
    launch = functools.partial(run_in_child, config_file=None)
    file = workdir / f"{level}_heldout.npz"
    if not file.exists():
        held_out_file(file, config.data)
    tuning = copy.deepcopy(config)
    set_keys(tuning, {**(_CHEAPER if cheaper is None else cheaper), "data.source": "npz"})
    set_keys(tuning, {"data.path": str(file), "data.name": f"{level}_heldout"})
    set_keys(tuning, {"experts.dir": str(workdir / f"{level}_experts_heldout")})
    set_keys(config, {"experts.dir": str(workdir / f"{level}_experts")})
    folder = workdir / f"{level}_tune_ipc{ipc}"
    plan = make_grid(tuning, tuning_rows(ipc), 1, folder)
    rows = compare(plan, folder, command, launch)
    chosen = chosen_rows({row.label: row.last.mean for row in rows}, ipc)
    storage.write_text(workdir / f"{level}_rows_ipc{ipc}.json", json.dumps(chosen, indent=1))
    folder = workdir / f"{level}_ipc{ipc}"
    # A seed at a time, so that there is a table as early as can be.
    for seeds in range(1, _SEEDS + 1):
        plan = make_grid(config, chosen, seeds, folder)
        print(comparison.to_markdown(compare(plan, folder, command, launch)), flush=True)
    if closer:
        folder = workdir / f"{level}_closer_ipc{ipc}"
        for seeds in range(_SEEDS, _CLOSER_SEEDS + 1):
            closer_plan = make_grid(config, closer_rows(chosen), seeds, folder)
            take_cells(closer_plan, plan)
            rows = compare(closer_plan, folder, command, launch)
            print(comparison.to_markdown(rows), flush=True)


def main() -> int:
    from configs.cluttered_digits import get_config

    parser = argparse.ArgumentParser(prog="python -m experiments.complex_scenes")
    parser.add_argument("--level", choices=("easy", "hard"), required=True)
    parser.add_argument("--ipc", default="10,1", help="images per class, comma-separated")
    parser.add_argument("--closer", action="store_true", help="EDF's maps, over ten seeds")
    parser.add_argument("--workdir", default="runs/complex_scenes")
    options = parser.parse_args()
    console.speak_in_lines()

    def work() -> int:
        with preemption.listening():
            for ipc in map(int, options.ipc.split(",")):
                config = get_config(f"{options.level}_ipc{ipc}")
                workdir = pathlib.Path(options.workdir)
                run(options.level, ipc, workdir, config, closer=options.closer)
        return 0

    return console.exit_status(work, name="complex_scenes")


if __name__ == "__main__":
    sys.exit(main())
