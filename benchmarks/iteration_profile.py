"""Where the time and bytes of one outer iteration go, and how far that is from the floor.

    python -m benchmarks.iteration_profile --preset=cpu-small

First what the machine does at best: a large matrix product, a large copy. Then the parts of an
iteration compiled and timed alone, each with its arithmetic, the bytes that XLA counts, and the
time that either would take at that best. Last the compiled iteration's own operations, by a trace.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ours, problems
from benchmarks.harness import print_bench, significant
from benchmarks.sizes import Sizes, parse_sizes
from edf_jax.matching import gradient as matching
from edf_jax.matching.placement import place
from edf_jax.methods import dsa
from edf_jax.methods.cpd import common_pattern_dropout
from edf_jax.plan import costs
from edf_jax.runtime import devices
from edf_jax.training import losses

_CROP = 0.25
_TOP = 15
# Operations of a compiled program by what they do, the first that fits; names as XLA's and cuDNN's.
_KINDS = (
    ("convolution", r"conv(?!ert)|cudnn|xmma|cutlass.*fprop|wgrad|dgrad|implicit"),
    ("matrix product", r"dot|gemm|matmul"),
    ("YNNPACK's fusions", r"ynn"),
    ("layout", r"transpose|copy|concatenate|pad|slice|reverse"),
    ("reduction", r"reduce"),
    ("gather, scatter, sort", r"gather|scatter|sort"),
    ("random", r"rng|threefry|random"),
)
_OUTER = re.compile(r"^(\$|end: |Thunk|Pjit|Common|while|call|cond|jit_|Tfrt|PjRt)")


class Part(NamedTuple):
    """A part of the iteration timed alone.

    Attributes:
        name: what it is.
        seconds: of one execution.
        times: how often an iteration has it.
        gflop: arithmetic of convolutions and products, by its trace.
        gbytes: what XLA's cost analysis says that it reads and writes.
    """

    name: str
    seconds: float
    times: float
    gflop: float
    gbytes: float


def main(argv: Sequence[str] | None = None) -> dict:
    """Profiles by flags; returns the record."""
    sizes, _ = parse_sizes(__doc__ or "", {}, argv)
    if sizes.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if sizes.device != "gpu" and hasattr(os, "sched_setaffinity"):
        # Before JAX counts the cores; where `auto` finds a GPU two feed it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: sizes.threads])
    ours.set_up(sizes)
    with tempfile.TemporaryDirectory() as path:
        problems.prepare("matching", sizes, pathlib.Path(path))
        with np.load(pathlib.Path(path) / "problem.npz") as arrays:
            problem = dict(arrays)
    peak_gflops, peak_gbytes = _machine(sizes.precision)
    kind = jax.devices()[0].device_kind
    print(f"{kind}, {sizes.precision}: one device of {jax.device_count()} does products at "
          f"{peak_gflops:.0f} GFLOP/s, copies at {peak_gbytes:.1f} GB/s; "
          f"load {os.getloadavg()[0]:.1f}")

    task = ours.Matching(sizes, problem)
    runs = [task.ready(variant) for variant in (0, 1, 2, 3)]
    runs[0]()
    iteration = statistics.median(_seconds(run) for run in runs for _ in range(sizes.repeats))
    parts = _parts(sizes, problem)
    _print_parts(parts, iteration, peak_gflops, peak_gbytes)
    operations = _traced(runs[1])
    _print_operations(operations)
    record = {
        "benchmark": "iteration_profile",
        **dataclasses.asdict(sizes),
        "device": kind,
        "iteration_seconds": significant(iteration),
        "peak_gflops": significant(peak_gflops),
        "peak_gbytes": significant(peak_gbytes),
        "parts": {
            p.name: {
                "seconds": significant(p.seconds),
                "times": round(p.times, 2),
                "gflop": significant(p.gflop),
                "gbytes": significant(p.gbytes),
            }
            for p in parts
        },
        "kinds": {name: significant(s) for name, s in _by_kind(operations).items()},
        "versions": ours.versions(),
        "load": round(os.getloadavg()[0], 2),
    }
    print_bench(record)
    return record


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _best(function: Callable, *arguments: Any, repeats: int = 5) -> float:
    """The median time of a compiled function, after a first run."""
    jax.block_until_ready(function(*arguments))
    return statistics.median(
        _seconds(lambda: jax.block_until_ready(function(*arguments))) for _ in range(repeats)
    )


def _machine(precision: str) -> tuple[float, float]:
    """GFLOP/s of a large matrix product, and GB/s of a large copy, on one device."""
    small = jax.default_backend() == "cpu"
    side, length = (1536, 2**25) if small else (8192, 2**29)
    dtype = devices.compute_dtype(precision) or jnp.float32
    matrix = jnp.ones((side, side), dtype)
    product = _best(jax.jit(lambda x: x @ x), matrix)
    vector = jnp.ones(length)
    copy = _best(jax.jit(lambda x: x + 1), vector)
    return 2 * side**3 / product / 1e9, 2 * vector.nbytes / copy / 1e9


def _parts(sizes: Sizes, problem: dict[str, np.ndarray]) -> list[Part]:
    network = problems.convnet(sizes)
    select = common_pattern_dropout(sizes.drop)
    # What one device computes at a time, and how often.
    placement = place(problems.config(sizes), network, sizes.num_images)
    share, cuts = placement.share, placement.microbatches
    steps = sizes.syn_steps * sizes.networks
    theta, target = (jnp.asarray(problem[name][0]) for name in ("starts", "targets"))
    images, labels = jnp.asarray(problem["images"]), jnp.asarray(problem["labels"])
    seen, wanted = images[:share], labels[:share]
    part = -(-share // cuts)
    keys = jax.random.key(0)
    uniforms = jax.random.uniform(keys, (share, 3))

    def loss(theta, images, labels, mask=None):
        return losses.soft_cross_entropy(network.apply(theta, images, train=True), labels, mask)

    def slope(theta, seen, labels, v):
        return jax.jvp(lambda t: loss(t, seen, labels), (theta,), (v,))[1]

    def augmented(uniforms, x, *, op):
        draws = dsa.Draws(jnp.int32(0), uniforms)
        return dsa.apply_dsa(draws, x, strategy=op, crop_ratio=_CROP)

    def transposed(uniforms, x, cotangent, *, op):
        return jax.vjp(lambda y: augmented(uniforms, y, op=op), x)[1](cotangent)[0]

    parts = [
        _part(
            "forward pass", 0, lambda t, x: network.apply(t, x, train=True), theta, seen[:part]
        ),
        _part(
            "gradient of a step", steps * cuts, jax.grad(loss), theta, seen[:part], wanted[:part]
        ),
        _part(
            "gradient of jvp", steps * cuts, jax.value_and_grad(slope, (0, 1, 2)), theta,
            seen[:part], wanted[:part], target,
        ),
        _part(
            "loss and CPD", sizes.networks, jax.value_and_grad(matching.matching_loss),
            theta, target, theta + 1, select=select,
        ),
    ]
    names = dsa.parse_strategy(dsa.FULL_STRATEGY)
    for name in names:
        often = steps / len(names)
        parts.append(_part(f"augment: {name}", 2 * often, augmented, uniforms, seen, op=name))
        parts.append(
            _part(f"augment: {name}, back", often, transposed, uniforms, seen, seen, op=name)
        )
    return parts


def _part(name: str, times: float, function: Callable, *arguments: Any, **fixed: Any) -> Part:
    def bound(*arrays):
        return function(*arrays, **fixed)

    compiled = jax.jit(bound).lower(*arguments).compile()
    analysis = compiled.cost_analysis() or {}
    if isinstance(analysis, list):
        analysis = analysis[0]
    return Part(
        name,
        _best(compiled, *arguments),
        times,
        costs.flops(bound, *arguments) / 1e9,
        analysis.get("bytes accessed", 0.0) / 1e9,
    )


def _print_parts(
    parts: Iterable[Part], iteration: float, peak_gflops: float, peak_gbytes: float
) -> None:
    columns = ("ms", "times", "GFLOP", "ms at best", "GB", "ms at best", "of iteration")
    print(f"\n{'part, alone, on one device':28}" + "".join(f"{name:>13}" for name in columns))
    total = floor = 0.0
    for p in parts:
        arithmetic, traffic = p.gflop / peak_gflops * 1e3, p.gbytes / peak_gbytes * 1e3
        total += p.times * p.seconds
        floor += p.times * arithmetic / 1e3
        print(
            f"{p.name:28}{p.seconds * 1e3:13.3f}{p.times:13.2f}{p.gflop:13.3f}{arithmetic:13.3f}"
            f"{p.gbytes:13.4f}{traffic:13.3f}{p.times * p.seconds / iteration:13.1%}"
        )
    print(
        f"iteration {iteration:.4g} s; its parts alone {total:.4g} s; arithmetic at the machine's "
        f"best {floor:.4g} s, {iteration / floor:.2f} times less"
    )


def _traced(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each operation of one run, summed over threads, or over the device's streams."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        planes = list(data.planes)
        on_device = [p for p in planes if p.name.startswith("/device:")]
        seconds: dict[str, float] = collections.defaultdict(float)
        for plane in on_device or [p for p in planes if p.name.startswith("/host:")]:
            for line in plane.lines:
                if (not on_device and line.name == "python") or line.name.startswith("XLA Modules"):
                    continue
                if on_device and not line.name.startswith("Stream"):
                    continue
                for name, own in _own_times(line.events):
                    seconds[name] += own
    return {name: s for name, s in seconds.items() if not _OUTER.match(name)}


def _own_times(events: Iterable[Any]) -> list[tuple[str, float]]:
    """Names and seconds of a line's events, each without those inside it."""
    found: list[list] = []
    open_: list[tuple[float, int]] = []
    spans = sorted(
        ((e.start_ns, e.start_ns + e.duration_ns, e.name) for e in events),
        key=lambda span: (span[0], -span[1]),
    )
    for start, end, name in spans:
        while open_ and open_[-1][0] <= start:
            open_.pop()
        if open_:
            found[open_[-1][1]][1] -= (end - start) / 1e9
        open_.append((end, len(found)))
        found.append([name, (end - start) / 1e9])
    return [(name, own) for name, own in found]


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name)), "elementwise")


def _by_kind(operations: dict[str, float]) -> dict[str, float]:
    found: dict[str, float] = collections.defaultdict(float)
    for name, seconds in operations.items():
        found[_kind(name)] += seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _print_operations(operations: dict[str, float]) -> None:
    total = sum(operations.values())
    if not total:
        print("\nthe trace holds no operations on this platform")
        return
    print("\noperations of one iteration, summed over threads or streams")
    for kind, seconds in _by_kind(operations).items():
        print(f"{kind:28}{seconds:12.4f} s{seconds / total:9.1%}")
    print("the longest")
    for name, seconds in sorted(operations.items(), key=lambda item: -item[1])[:_TOP]:
        print(f"  {name[:56]:58}{seconds:10.4f} s{seconds / total:9.1%}")


if __name__ == "__main__":
    main()
