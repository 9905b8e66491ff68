"""The command line of experiments on real images that go on from their rows."""

from __future__ import annotations

import argparse
import pathlib
import signal
import sys
from collections.abc import Callable

from edf_jax.runtime import console


def parser(name: str) -> argparse.ArgumentParser:
    """Flags for the images, the folder of runs and the file of rows.

    Args:
        name: the experiment's module.
    """
    made = argparse.ArgumentParser(prog=f"python -m experiments.{name}")
    made.add_argument("--images", type=pathlib.Path, required=True)
    made.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs") / name)
    results = pathlib.Path("docs/results")
    made.add_argument("--csv", type=pathlib.Path, default=results / f"{name}.csv")
    return made


def run(name: str, work: Callable[[], int]) -> int:
    """The experiment's exit status; SIGTERM ends it where a run can go on.

    Args:
        name: the experiment's module.
        work: makes what is missing.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(console.PREEMPTED))
    return console.exit_status(work, name=name)
