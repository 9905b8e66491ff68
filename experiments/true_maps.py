"""EDF on cluttered digits with the digits' true places in place of its activation maps.

    python -m experiments.true_maps runs/complex_scenes/hard_ipc10 --workdir=runs/true_maps_hard

What DAE could bring at best: for each run of EDF in a comparison the same run again with a
`cam.method` of its own, whose maps are 1 where the digit covers the first image and 0 elsewhere.
The composites are made here, so the places are known. The workdir becomes a comparison of one row,
and what it gains over the rows of the first, seed by seed, is printed. The same command continues.
The last line is TRUE_MAPS {json}.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import sys
from typing import Any

import jax.numpy as jnp

from edf_jax import extending, stages
from edf_jax.config.resolve import resolve
from edf_jax.data import load_dataset
from edf_jax.report import comparison
from edf_jax.runs.folder import Run
from edf_jax.runs.grid import Grid, GridRun
from edf_jax.runtime import console, devices, preemption
from edf_jax.runtime.errors import UserError
from experiments.scene_maps import digit_opacity, finished_run

METHOD = "true_maps"
_LABEL = "edf, true maps"


def run_again(source: pathlib.Path, workdir: pathlib.Path, command: str) -> dict[str, Any]:
    """The result of an EDF run made again with true maps, or continued.

    Args:
        source: a finished run on cluttered digits.
        workdir: of the new one.
        command: to keep.

    Raises:
        UserError: `source` is no finished run, or of more images than one call makes maps of.
    """
    unresolved, first, _ = finished_run(source)
    images = load_dataset(unresolved.data).train.images
    places = jnp.asarray(digit_opacity(unresolved, first.pixels, images) > 0.5, jnp.float32)

    def true_maps(features, classify, images, classes, key):
        if len(images) != len(places):
            raise UserError(f"{source} has {len(places)} images: too many for true maps")
        return places

    extending.add_part("cam.method", METHOD, true_maps)
    unresolved.cam.method = METHOD
    with preemption.listening(), Run(workdir, resolve(unresolved), command) as run:
        return stages.run_stages(run, "evaluate") or {}


def compare_with(source: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    """Writes the runs of `workdir` as a comparison of one row; what it gains over `source`'s rows.

    Args:
        source: the comparison whose runs of EDF were made again.
        workdir: with the new runs of the same seeds.

    Returns:
        By label, the mean gain over seeds in percentage points and its 95% interval.
    """
    title, rows = comparison.load(source)
    cells = {
        folder.name: GridRun(f"{_LABEL}, {folder.name}", folder, None)
        for folder in sorted((workdir / "cells").iterdir(), key=lambda path: int(path.name[5:]))
    }
    grid = Grid(title, {_LABEL: list(cells)}, cells, {})
    comparison.save_grid(grid, workdir)
    own = comparison.gather(grid)
    comparison.write(grid, own, workdir)
    return {row.label: comparison.gains([row, *own], row.label)[_LABEL] for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.true_maps")
    parser.add_argument("comparison", type=pathlib.Path, help="a folder of edf_jax.compare")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/true_maps"))
    options = parser.parse_args()
    console.speak_in_lines()

    def work() -> int:
        sources = list((options.comparison / "cells" / "edf").glob("seed_*"))
        if not sources:
            raise UserError(f"{options.comparison} has no runs of EDF")
        devices.set_up("float32", deterministic=False)
        command = "python -m experiments.true_maps " + shlex.join(sys.argv[1:])
        for source in sorted(sources, key=lambda path: int(path.name[5:])):
            run_again(source, options.workdir / "cells" / source.name, command)
        gains = compare_with(options.comparison, options.workdir)
        print((options.workdir / "table.md").read_text(encoding="utf-8"))
        for label, (mean, interval) in gains.items():
            spread = "" if interval is None else " ({:+.1f} to {:+.1f})".format(*interval)
            print(f"over {label}: {mean:+.1f}{spread}")
        print("TRUE_MAPS " + json.dumps(gains), flush=True)
        return 0

    return console.exit_status(work, name="true_maps")


if __name__ == "__main__":
    sys.exit(main())
