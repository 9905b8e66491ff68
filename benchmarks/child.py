"""One framework's process: sets up, warms up, then runs when asked.

    python -m benchmarks.child prepare|ours|pytorch|exact BENCHMARK FOLDER

A task is a class with

    steps: how many student steps it takes, where that may be fewer than asked for;
    ready(variant): what is to be timed, everything it reads being in its place;
    results(output): by name, the arrays that both frameworks must agree on.
"""

from __future__ import annotations

import gc
import importlib
import os
import pathlib
import sys
import time

import numpy as np

from benchmarks import processes
from benchmarks import sizes as work
from benchmarks.sizes import EXACT


def main() -> None:
    role, name, path = sys.argv[1:]
    folder = pathlib.Path(path)
    sizes = work.read_sizes(folder)
    if role == "prepare":
        from benchmarks import problems

        processes.send(**problems.prepare(name, sizes, folder))
        return
    if role == EXACT:
        _exact(name, sizes, folder)
        return
    if sizes.device == "cpu" and hasattr(os, "sched_setaffinity"):
        # Before the framework counts the cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: sizes.threads])
    side = importlib.import_module(f"benchmarks.{role}")
    side.set_up(sizes)
    imports = processes.resident_bytes()

    with np.load(folder / "problem.npz") as problem:
        task = side.TASKS[name](sizes, dict(problem))
    run = task.ready(0)
    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    del run

    # A run that isn't timed: the results to compare, and the memory it takes.
    gc.collect()
    run = task.ready(0)
    processes.reset_peak()
    side.reset_peak()
    output = run()
    peak = side.peak_bytes() or processes.peak_resident_bytes() - imports
    np.savez(folder / f"{role}.npz", **task.results(output))
    del run, output
    processes.send(
        first_seconds=first, steps=task.steps, device=side.device_name(), versions=side.versions()
    )
    for request in processes.requests():
        seconds, cpu = [], 0.0
        for variant in range(request["first"], request["first"] + request["count"]):
            run = task.ready(variant % work.VARIANTS)
            began, cpu_began = time.perf_counter(), time.process_time()
            run()
            seconds.append(time.perf_counter() - began)
            cpu += time.process_time() - cpu_began
            del run
        processes.send(
            seconds=float(np.median(seconds)),
            all_seconds=seconds,
            cpu_seconds=cpu,
            peak_bytes=peak,
        )


def _exact(name: str, sizes: work.Sizes, folder: pathlib.Path) -> None:
    """PyTorch's results in float64."""
    import torch

    from benchmarks import pytorch

    pytorch.set_up(sizes)
    torch.set_default_dtype(torch.float64)
    with np.load(folder / "problem.npz") as found:
        problem = {
            key: value.astype(np.float64) if value.dtype == np.float32 else value
            for key, value in found.items()
        }
    task = pytorch.TASKS[name](sizes, problem)
    np.savez(folder / f"{EXACT}.npz", **task.results(task.ready(0)()))
    processes.send(steps=task.steps)


if __name__ == "__main__":
    main()
