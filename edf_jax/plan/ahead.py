"""A run's programs compiled for a device that isn't here: will it fit, and what bounds it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edf_jax.data.describe import describe_dataset
from edf_jax.plan import compiled, plan, targets
from edf_jax.plan.programs import Program, programs
from edf_jax.plan.targets import Target
from edf_jax.runtime import devices


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA made of a program.

    Attributes:
        name: the program's.
        peak: bytes of one device, by XLA's account: arguments, results, temporaries.
        temporaries: bytes of those.
        moved: bytes that operations read and write.
        products: bytes of `moved` that convolutions and matrix products do.
        between: bytes that collectives take from each device.
        flops: of convolutions and matrix products.
        seconds: at best.
        waiting: of those, for memory.
    """

    name: str
    peak: int
    temporaries: int
    moved: float
    products: float
    between: float
    flops: float
    seconds: float
    waiting: float


def compile_one(program: Program, precision: str, target: Target) -> Compiled:
    """Compiles one program; call within `devices.elsewhere`.

    Args:
        program: of `plan.programs`.
        precision: `config.precision`, of which the rate is taken.
        target: what for.
    """
    executable, _ = compile_program(program)
    account = executable.memory_analysis()
    operations = compiled.movers(executable.as_text())
    sums = compiled.by_kind(operations)
    best = compiled.roofline(operations, target.bandwidth, target.rates[precision])
    return Compiled(
        program.name,
        account.temp_size_in_bytes
        + account.argument_size_in_bytes
        + account.output_size_in_bytes
        - account.alias_size_in_bytes,
        account.temp_size_in_bytes,
        sums["total"],
        sums[compiled.PRODUCTS],
        sums[compiled.COLLECTIVES],
        sum(m.flops * m.times for m in operations),
        best.seconds,
        best.waiting,
    )


def compile_program(program: Program) -> tuple[Any, float]:
    """The compiled program, and the seconds that compiling took."""
    began = time.monotonic()
    executable = program.function.lower(*_placed(program.arguments)).compile()
    return executable, time.monotonic() - began


def _placed(arguments: Any) -> Any:
    """Shapes of arrays that all devices hold."""
    everywhere = NamedSharding(Mesh(np.asarray(devices.all_devices()), ("all",)), PartitionSpec())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), arguments
    )


def to_text(rows: list[Compiled], target: Target, count: int, precision: str) -> str:
    """A table for people."""
    several = f"{count} x " if count > 1 else ""
    header = (
        f"compiled for {several}{target.kind}, {precision}: {target.memory / 2**30:.0f} GiB, "
        f"{target.bandwidth / 1e9:,.0f} GB/s, {target.rates[precision] / 1e12:.3g} TFLOP/s "
        "(published peaks; a program takes longer)"
    )
    names = ("", "GiB", "of card", "GB moved", "products", "TFLOP", "s at best", "bound by", "fits")
    lines = [names]
    for row in rows:
        lines.append(
            (
                row.name,
                f"{row.peak / 2**30:.2f}",
                f"{row.peak / target.memory:.0%}",
                f"{row.moved / 1e9:,.0f}",
                f"{row.products / max(row.moved, 1):.0%}",
                f"{row.flops / 1e12:,.1f}",
                f"{row.seconds:.3g}",
                "memory" if row.waiting > row.seconds / 2 else "arithmetic",
                "yes" if row.peak <= target.memory else "no",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    table = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    ]
    between = [
        f"{row.name}: {row.between / 1e9:,.3g} GB of collectives" for row in rows if row.between
    ]
    return "\n".join([header, *table, *between])


def describe(config, workdir, text: str) -> str:
    """A run's plan and its programs' table, for a target.

    Args:
        config: resolved.
        workdir: where the run would lie.
        text: of `--target`.

    Raises:
        UserError: there is no such target, its compiler isn't installed, or as in `make_plan`.
    """
    target, count = targets.parse(text)
    absent = targets.devices_of(target, count)
    devices.set_precision(config.precision)
    with devices.elsewhere(absent, devices.Device(target.kind, count, target.memory)):
        made = plan.make_plan(config, describe_dataset(config.data), workdir)
        rows = [
            compile_one(program, config.precision, target)
            for program in programs(config, made.data, made.network, made.num_images)
        ]
        return f"{plan.to_text(made)}\n\n{to_text(rows, target, count, config.precision)}"
