"""Draws what a run tried for its numbers: `docs/choosing-the-numbers.md` shows one of real images.

    python -m experiments.number_curves runs/imagenette-laptop_ipc10 picture.png
    python -m experiments.number_curves docs/results/number_curves.json picture.png
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib

from edf_jax.runs.files import open_run
from edf_jax.runtime import console
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.storage import writing

# By key: a panel's title, and whether its axis is logarithmic.
_PANELS = {
    "experts.lr": ("the experts' rate", True),
    "experts.epochs": ("epochs of the experts", False),
    "distill.lr_teacher": ("alpha, the student's rate", True),
    "distill.syn_steps": ("N, the student's steps", False),
    "distill.expert_epochs": ("M, epochs to the target", False),
    "distill.max_start_epoch": ("start epoch", False),
    "distill.lr_img": ("the images' rate", True),
}


def draw(run: pathlib.Path, target: pathlib.Path) -> None:
    """Writes a picture with a panel for each number that a run tried values for.

    Args:
        run: its folder, or a file like its `tuned.json`.
        target: the picture.

    Raises:
        UserError: it is no run, or it found no number.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tuned = json.loads(run.read_text("utf-8")) if run.is_file() else open_run(run).tuned
    curves = {
        key: told for key, told in tuned.get("told", {}).items()
        if key in _PANELS and len(told["tried"]) > 1
    }  # fmt: skip
    if not curves:
        raise UserError(f"{run} tried no values: run a config with 'auto' numbers")
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.6 * rows), squeeze=False)
    for axis, key in zip(axes.flat, [key for key in _PANELS if key in curves]):
        title, logarithmic = _PANELS[key]
        points = [(v, s) for v, s in curves[key]["tried"] if v and s is not None]
        axis.plot(*zip(*points), "o-", color="#3b6ea8", markersize=4)
        axis.axvline(tuned["chosen"][key], color="#c0504d", linewidth=1)
        axis.set_title(f"{title}\n{key} = {tuned['chosen'][key]:g}", fontsize=9)
        axis.set_ylabel(curves[key]["score"], fontsize=7)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if logarithmic:
            axis.set_xscale("log")
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    figure.tight_layout()
    with writing(target):
        figure.savefig(target, dpi=110)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.number_curves")
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    options = parser.parse_args()

    def run() -> int:
        draw(options.run, options.target)
        return 0

    return console.exit_status(run, name="number_curves")


if __name__ == "__main__":
    raise SystemExit(main())
