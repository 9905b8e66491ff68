"""What the benchmarks share: sizes, child processes in turn, memory, the table and `BENCH {json}`.

Each framework runs in a process of its own (`benchmarks.child`), so that neither's threads, memory
or imports touch the other's. The processes are asked in turn and never at once. This module imports
neither framework.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
OURS, PYTORCH = "ours", "pytorch"
# Different draws of the same work; runs go round them.
VARIANTS = 4
CLASSES = 10
# The rate of students and evaluated networks; mean and deviation of pixels.
ALPHA = 0.01
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_REPLY = "REPLY "
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much work one run is; every benchmark reads what concerns it.

    Attributes:
        preset: the name of the preset they come from.
        width: channels of the ConvNet.
        depth: its blocks.
        resolution: side of the images.
        ipc: synthetic images per class, of ten classes.
        batch: images in a batch.
        syn_steps: N, the student's steps.
        networks: trajectories matched at once, experts or evaluated networks.
        epochs: of evaluation.
        images: real images, of experts and of the test in evaluation.
        drop: CPD's share.
        cam: the network of class activation maps.
        method: how those are made.
        convolution: ours, as `config.model.convolution`.
        precision: float32, tf32 or bfloat16.
        pytorch_precision: the same for PyTorch; bfloat16 is its autocast.
        rounds: how often the two are asked in turn.
        repeats: timed runs in a round.
        device: cpu, gpu or auto, the one that JAX finds.
        threads: processor cores for each on a CPU.
        memory_gib: what PyTorch's graph may take; 0 is what is free.
    """

    preset: str = "cpu-small"
    width: int = 32
    depth: int = 3
    resolution: int = 32
    ipc: int = 10
    batch: int = 100
    syn_steps: int = 20
    networks: int = 1
    epochs: int = 40
    images: int = 1024
    drop: float = 0.25
    cam: str = "ConvNet"
    method: str = "grad_cam"
    convolution: str = "auto"
    precision: str = "float32"
    pytorch_precision: str = "float32"
    rounds: int = 5
    repeats: int = 1
    device: str = "auto"
    threads: int = 2
    memory_gib: float = 0.0

    @property
    def num_images(self) -> int:
        """n, the synthetic images."""
        return CLASSES * self.ipc


_LARGE = {"width": 128, "depth": 5, "resolution": 128, "cam": "ResNet18BNImageNet", "repeats": 3}
PRESETS: dict[str, dict[str, Any]] = {
    "cpu-small": {},
    "cpu": {"width": 128},
    "imagenette-ipc10": {**_LARGE, "syn_steps": 40, "images": 2560},
    "imagenette-ipc50": {
        **_LARGE, "ipc": 50, "syn_steps": 80, "batch": 128, "drop": 0.375, "images": 2560,
    },
}
_CHOICES = {
    "precision": ("float32", "tf32", "bfloat16"),
    "pytorch_precision": ("float32", "tf32", "bfloat16"),
    "device": ("auto", "cpu", "gpu"),
    "convolution": ("auto", "platform", "matmul"),
    "cam": ("ConvNet", "ResNet18BNImageNet"),
    "method": ("grad_cam", "smooth_grad_cam_pp"),
}


def parse_sizes(
    description: str, defaults: Mapping[str, Any], argv: Sequence[str] | None = None
) -> tuple[Sizes, argparse.Namespace]:
    """Sizes by flags over a preset; and the parsed flags, for `--only`.

    Args:
        description: of the benchmark, for `--help`.
        defaults: the benchmark's own, over its preset's.
        argv: the flags; the process's own where None.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu-small")
    parser.add_argument("--only", choices=(OURS, PYTORCH), help="run one of the two")
    for field in dataclasses.fields(Sizes):
        if field.name != "preset":
            parser.add_argument(
                f"--{field.name}",
                type=type(field.default),
                choices=_CHOICES.get(field.name),
                help=f"default {field.default}, or the preset's",
            )
    flags = parser.parse_args(argv)
    given = {f.name: getattr(flags, f.name) for f in dataclasses.fields(Sizes)}
    given = {name: value for name, value in given.items() if value is not None}
    if "precision" in given:
        given.setdefault("pytorch_precision", given["precision"])
    return Sizes(**{**PRESETS[flags.preset], **defaults, **given}), flags


class Child:
    """A process that works on request.

    It is asked by a line of JSON on its standard input and replies by one on its standard output;
    it ends when the input does.
    """

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None):
        """Starts `python -m benchmarks.child` with `arguments`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = arguments[0]

    def reply(self) -> dict[str, Any]:
        """Waits for the next reply."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_REPLY):
                return json.loads(line[len(_REPLY) :])
        raise SystemExit(f"the {self._name} process ended with status {self._process.wait()}")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its reply."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self.reply()

    def close(self) -> None:
        """Lets the process end and waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def send(**reply: Any) -> None:
    """A child's reply."""
    print(_REPLY + json.dumps(reply), flush=True)


def requests() -> Iterator[dict[str, Any]]:
    """A child's requests, until there are no more."""
    for line in sys.stdin:
        yield json.loads(line)


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return _status("VmRSS") or _highest()


def peak_resident_bytes() -> int:
    """The most that it has held, since `reset_peak` where the system can."""
    return _status("VmHWM") or _highest()


def reset_peak() -> None:
    """Gives freed memory back to the system and starts the peak anew, on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _status(field: str) -> int:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _highest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def alternate(
    names: Sequence[str], rounds: int, run: Callable[[str, int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Runs each in turn, in the other order every second round.

    Args:
        names: of what is compared.
        rounds: how often.
        run: `(name, round) -> row`, with `seconds` among its entries.

    Returns:
        The rows of each.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names if index % 2 == 0 else tuple(reversed(names)):
            rows[name].append(run(name, index))
        latest = "  ".join(f"{name} {found[-1]['seconds']:.4g} s" for name, found in rows.items())
        print(f"round {index + 1}: {latest}", flush=True)
    return rows


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
        differences = _differences(folder, started) if len(names) == 2 else {}
    record = _record(name, sizes, details, started, rows, differences)
    _print_table(record, sizes)
    print_bench(record)
    if sizes.precision == sizes.pytorch_precision == "float32" and any(
        not difference <= tolerance for difference in differences.values()
    ):
        raise SystemExit(f"the results differ by more than {tolerance:g}")
    return record


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


def write_sizes(sizes: Sizes, folder: pathlib.Path) -> None:
    """Leaves the sizes for the children."""
    (folder / "sizes.json").write_text(json.dumps(dataclasses.asdict(sizes)))


def read_sizes(folder: pathlib.Path) -> Sizes:
    """The sizes that the parent left."""
    return Sizes(**json.loads((folder / "sizes.json").read_text()))


def _differences(folder: pathlib.Path, started) -> dict[str, float]:
    """By name, the norm of the two results' difference over the norm of PyTorch's."""
    if started[PYTORCH]["steps"] != started[OURS]["steps"]:
        return {}
    with np.load(folder / "ours.npz") as ours, np.load(folder / "pytorch.npz") as pytorch:
        return {
            name: float(
                np.linalg.norm(ours[name].ravel() - pytorch[name].ravel())
                / np.linalg.norm(pytorch[name].ravel())
            )
            for name in ours
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
        print(f"PyTorch's graph fits {theirs} of {ours} steps: its time is scaled by {ours}/{theirs}")
    if record["differences"]:
        told = ", ".join(f"{name} {value:.1e}" for name, value in record["differences"].items())
        print(f"relative differences of results: {told}")
