"""EDF on cluttered digits with the digits' true places in place of its activation maps.

    python -m benchmarks.true_maps runs/complex_scenes/hard_ipc10 --workdir=runs/true_maps_hard

What DAE could bring at best: for each run of EDF in a comparison the same run again with a
`cam.method` of its own, whose maps are 1 where the digit covers the first image and 0 elsewhere.
The composites are made here, so the places are known. The same command continues. The last line is
TRUE_MAPS {json}.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.scene_maps import digit_opacity, finished_run
from edf_jax import comparison, console, devices, extending, preemption, stages
from edf_jax.config import resolve
from edf_jax.data import load_dataset
from edf_jax.errors import UserError
from edf_jax.run import Run

METHOD = "true_maps"


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.true_maps")
    parser.add_argument("comparison", type=pathlib.Path, help="a folder of edf_jax.compare")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/true_maps"))
    options = parser.parse_args()
    console.speak_in_lines()

    def work() -> int:
        sources = sorted((options.comparison / "cells" / "edf").glob("seed_*"))
        if not sources:
            raise UserError(f"{options.comparison} has no runs of EDF")
        devices.set_up("float32", deterministic=False)
        command = "python -m benchmarks.true_maps " + shlex.join(sys.argv[1:])
        means = {}
        for source in sources:
            found = run_again(source, options.workdir / source.name, command)
            means[source.name] = found["distilled_mean"]
        before = next(r for r in comparison.load(options.comparison)[1] if r.label == "edf")
        figures = {
            "runs": means,
            "true_maps": round(float(np.mean(list(means.values()))), 2),
            "grad_cam": round(before.last.mean, 2),
        }
        print("TRUE_MAPS " + json.dumps(figures), flush=True)
        return 0

    return console.exit_status(work, name="true_maps")


if __name__ == "__main__":
    sys.exit(main())
