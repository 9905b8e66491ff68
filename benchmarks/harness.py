"""What the benchmarks share: both frameworks in turn, the table and the line `BENCH {json}`.

Each framework runs in a process of its own (`benchmarks.child`), so that neither's threads, memory
or imports touch the other's. The processes are asked in turn and never at once. This module imports
neither framework.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.processes import Child, alternate
from benchmarks.sizes import EXACT, OURS, PYTORCH, Sizes, parse_sizes, write_sizes

_MIB = 2**20


def print_bench(record: Mapping[str, Any]) -> None:
    """The line that machines read."""
    print("BENCH " + json.dumps(record), flush=True)


def significant(value: float | None, digits: int = 4) -> float | None:
    """A number without the digits that mean nothing."""
    return None if value is None else float(f"{value:.{digits}g}")


def main(
    name: str,
    description: str,
    defaults: Mapping[str, Any],
    tolerance: float,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Runs one benchmark and prints what it found.

    Args:
        name: of the tasks in `benchmarks.ours` and `benchmarks.pytorch`.
        description: for `--help`.
        defaults: sizes that are the benchmark's own.
        tolerance: how far the two frameworks' float32 results may differ, relatively.
        argv: flags.

    Returns:
        The record that is printed.

    Raises:
        SystemExit: the results differ, or a process failed.
    """
    sizes, flags = parse_sizes(description, defaults, argv)
    names = [flags.only] if flags.only else [OURS, PYTORCH]
    if importlib.util.find_spec("torch") is None and PYTORCH in names:
        print("PyTorch is not installed: running ours alone")
        names.remove(PYTORCH)
    with tempfile.TemporaryDirectory() as path, contextlib.ExitStack() as stack:
        folder = pathlib.Path(path)
        sizes, details = _prepare(name, sizes, folder)
        print(_heading(name, sizes), flush=True)
        children: dict[str, Child] = {}
        started: dict[str, dict[str, Any]] = {}

        def run(which: str, index: int) -> dict[str, Any]:
            if which not in children:
                children[which] = child = Child(
                    which, name, str(folder), environment=_environment(sizes)
                )
                stack.callback(child.close)
                hello = child.reply()
                started.setdefault(which, hello)
            row = children[which].ask(first=1 + index * sizes.repeats, count=sizes.repeats)
            if sizes.device == "gpu":
                # The next process is to have the whole of the device's memory.
                children.pop(which).close()
            return row

        rows = alternate(names, sizes.rounds, run)
        differences = _differences(folder, OURS, PYTORCH) if _same_steps(started) else {}
        exact: dict[str, dict[str, float]] = {}
        in_float32 = sizes.precision == sizes.pytorch_precision == "float32"
        if in_float32 and any(not d <= tolerance for d in differences.values()):
            exact = _exact_differences(name, sizes, folder, started[PYTORCH]["steps"])
    record = _record(name, sizes, details, started, rows, differences) | exact
    _print_table(record, sizes)
    print_bench(record)
    if in_float32:
        check_results(differences, exact, tolerance)
    return record


def _exact_differences(
    name: str, sizes: Sizes, folder: pathlib.Path, steps: int
) -> dict[str, dict[str, float]]:
    """Both frameworks' distances from PyTorch's results in float64; {} if those don't fit."""
    child = Child(EXACT, name, str(folder), environment=_environment(sizes))
    fits = child.reply()["steps"] == steps
    child.close()
    if not fits:
        return {}
    return {
        f"{which}_from_float64": {
            key: float(f"{value:.2g}")
            for key, value in _differences(folder, which, EXACT).items()
        }
        for which in (OURS, PYTORCH)
    }


def check_results(
    differences: Mapping[str, float],
    exact: Mapping[str, Mapping[str, float]],
    tolerance: float,
) -> None:
    """Fails where results differ by more than rounding explains.

    Args:
        differences: of the two frameworks' results, by name, relative.
        exact: `ours_from_float64` and `pytorch_from_float64`, the same from PyTorch's results in
            float64; ours may be twice as far from them as PyTorch's. Empty where those don't fit
            into memory: then this is only told.
        tolerance: for differences that need no explanation.

    Raises:
        SystemExit: says which differ.
    """
    for key, difference in differences.items():
        if difference <= tolerance:
            continue
        if not exact:
            print(f"{key}: over {tolerance:g}, and float64 didn't fit to tell whose rounding it is")
            continue
        ours, theirs = (exact[f"{which}_from_float64"][key] for which in (OURS, PYTORCH))
        if not ours <= max(2 * theirs, tolerance):
            raise SystemExit(
                f"the results differ by more than {tolerance:g}: in {key} ours are {ours:.1e} "
                f"from float64's, PyTorch's {theirs:.1e}"
            )


def _prepare(name: str, sizes: Sizes, folder: pathlib.Path) -> tuple[Sizes, dict[str, Any]]:
    """Writes what both are given; returns sizes with the device found, and what was told."""
    write_sizes(sizes, folder)
    child = Child("prepare", name, str(folder), environment=_environment(sizes))
    details = child.reply()
    child.close()
    sizes = dataclasses.replace(sizes, device=details.pop("device"))
    write_sizes(sizes, folder)
    return sizes, details


def _environment(sizes: Sizes) -> dict[str, str]:
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if sizes.device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    return environment


def _same_steps(started) -> bool:
    return len(started) == 2 and started[PYTORCH]["steps"] == started[OURS]["steps"]


def _differences(folder: pathlib.Path, one: str, other: str) -> dict[str, float]:
    """By name, the norm of two processes' results' difference over the norm of the other's."""
    with np.load(folder / f"{one}.npz") as found, np.load(folder / f"{other}.npz") as expected:
        return {
            name: float(
                np.linalg.norm(found[name].ravel() - expected[name].ravel())
                / np.linalg.norm(expected[name].ravel())
            )
            for name in found
        }


def _heading(name: str, sizes: Sizes) -> str:
    told = {
        "matching": f"N = {sizes.syn_steps}, {sizes.networks} trajectories",
        "experts": f"{sizes.networks} experts, {sizes.images} images",
        "evaluation": f"{sizes.networks} networks, {sizes.epochs} epochs",
        "gradcam": f"{sizes.method} of {sizes.cam}",
    }[name]
    side = sizes.resolution
    return (
        f"{name}, {sizes.preset}: width {sizes.width}, depth {sizes.depth}, {side}x{side}, "
        f"IPC {sizes.ipc}, batch {sizes.batch}, {told}, {sizes.precision}, {sizes.device}; "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def _record(name, sizes: Sizes, details, started, rows, differences) -> dict[str, Any]:
    seconds = {
        which: statistics.median(s for row in found for s in row["all_seconds"])
        for which, found in rows.items()
    }
    found: dict[str, Any] = {}
    for which in (OURS, PYTORCH):
        if which not in rows:
            continue
        hello = started[which]
        # Where fewer steps fit, the time for all of them, were there the memory.
        scale = started.get(OURS, hello)["steps"] / hello["steps"] if name == "matching" else 1.0
        seconds[which] *= scale
        cpu = statistics.median(row["cpu_seconds"] for row in rows[which]) / sizes.repeats
        found |= {
            f"{which}_seconds": significant(seconds[which]),
            f"{which}_cpu_seconds": significant(cpu * scale),
            f"{which}_peak_mib": round(rows[which][-1]["peak_bytes"] / _MIB, 1),
            f"{which}_first_seconds": significant(hello["first_seconds"]),
            f"{which}_steps": hello["steps"],
            f"{which}_device": hello["device"],
        }
    if len(rows) == 2:
        found["ratio"] = significant(seconds[PYTORCH] / seconds[OURS])
        found["cpu_ratio"] = significant(found["pytorch_cpu_seconds"] / found["ours_cpu_seconds"])
        memory = found["pytorch_peak_mib"] / max(found["ours_peak_mib"], 1e-9)
        found["memory_ratio"] = significant(memory)
    if OURS in rows:
        found["rate"] = {
            "device": started[OURS]["device"],
            "precision": sizes.precision,
            "stage": details["stage"],
            "forward_mflop": significant(details["forward"] / 1e6),
            "gflops": significant(details["work"] / seconds[OURS] / 1e9),
            **({"cores": sizes.threads} if sizes.device == "cpu" else {}),
        }
    versions: dict[str, str] = {}
    for hello in started.values():
        versions |= hello["versions"]
    return {
        "benchmark": name,
        **dataclasses.asdict(sizes),
        **found,
        "differences": {name: significant(d, 2) for name, d in differences.items()},
        "versions": versions,
        "load": round(os.getloadavg()[0], 2),
    }


def _print_table(record: Mapping[str, Any], sizes: Sizes) -> None:
    lines = [
        (f"seconds (median of {sizes.rounds * sizes.repeats})", "seconds", "ratio"),
        ("CPU seconds", "cpu_seconds", "cpu_ratio"),
        ("peak memory, MiB", "peak_mib", "memory_ratio"),
        ("first run, compilation included, s", "first_seconds", None),
    ]
    if sizes.device == "gpu":
        del lines[1]
    print(f"{'':32}{'ours':>12}{'PyTorch':>12}{'ratio':>10}")
    for title, key, ratio in lines:
        cells = [record.get(f"{which}_{key}") for which in (OURS, PYTORCH)]
        text = "".join(f"{'-' if cell is None else format(cell, '.4g'):>12}" for cell in cells)
        last = record.get(ratio) if ratio else None
        print(f"{title:32}{text}{'' if last is None else format(last, '.3f'):>10}")
    ours, theirs = (record.get(f"{which}_steps") for which in (OURS, PYTORCH))
    if theirs and ours and theirs < ours:
        print(f"PyTorch's graph fits {theirs} of {ours} steps; its time is scaled to {ours}")
    if record["differences"]:
        told = ", ".join(f"{name} {value:.1e}" for name, value in record["differences"].items())
        print(f"relative differences of results: {told}")
    for which, told in ((OURS, "ours"), (PYTORCH, "PyTorch's")):
        if f"{which}_from_float64" in record:
            found = record[f"{which}_from_float64"].items()
            print(f"from float64, {told}: " + ", ".join(f"{k} {v:.1e}" for k, v in found))
