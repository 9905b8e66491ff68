"""What the outer iteration takes on accelerators that aren't here, by what XLA compiles for them.

    python -m benchmarks.compiled --targets=h100,v5e --presets=imagenette-ipc10 --precisions=tf32

needs the extras `aot-gpu` (4 GB) and `aot-tpu`. For each it tells the temporaries by XLA's account,
the bytes that the compiled operations read and write, how much of it convolutions and matrix
products do, the arithmetic, and the time at best: at the published bandwidth, and at the rates
that products were seen to reach (80% of the published ones in TF32, 70% in bfloat16). Then the
layers that move the most. `--by_layer=0` leaves those out.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import problems
from benchmarks.harness import print_bench
from benchmarks.sizes import PRESETS, Sizes
from edf_jax.plan import compiled, memory, targets
from edf_jax.plan.ahead import compile_program
from edf_jax.plan.programs import outer_iteration
from edf_jax.runtime import devices

_REACHED = {"float32": 1.0, "tf32": 0.81, "bfloat16": 0.71}
_COLUMNS = ("GiB", "estimate", "GB", "elementwise", "products", "TFLOP", "s at best", "compile s")


def measure(target: str, preset: str, precision: str, by_layer: int) -> dict:
    """Compiles one iteration, and prints what it takes."""
    kind, count = targets.parse(target)
    absent = targets.devices_of(kind, count)
    devices.set_precision(precision)
    sizes = dataclasses.replace(
        Sizes(**PRESETS[preset]), preset=preset, precision=precision, convolution="platform"
    )
    with devices.elsewhere(absent, devices.Device(kind.kind, count, kind.memory)):
        config, network = problems.config(sizes), problems.convnet(sizes)
        program = outer_iteration(config, network, sizes.num_images)
        executable, seconds = compile_program(program)
        placement = memory.place_iteration(config, network, sizes.num_images)
        estimate = memory.iteration_bytes(config, network, sizes.num_images, placement)
    account = executable.memory_analysis()
    operations = compiled.movers(executable.as_text())
    sums = compiled.by_kind(operations)
    rate = _REACHED[precision] * kind.rates[precision]
    row = {
        "temporaries_gib": account.temp_size_in_bytes / 2**30,
        "estimate": estimate / (account.temp_size_in_bytes + account.argument_size_in_bytes),
        "gb": sums["total"] / 1e9,
        "elementwise_gb": sums[compiled.ELEMENTWISE] / 1e9,
        "products_gb": sums[compiled.PRODUCTS] / 1e9,
        "tflop": sum(m.flops * m.times for m in operations) / 1e12,
        "seconds": compiled.roofline(operations, kind.bandwidth, rate).seconds,
        "compile_seconds": seconds,
    }
    name = f"{target}, {preset}, {precision}"
    print(f"{name:36}" + "".join(f"{value:12.4g}" for value in row.values()), flush=True)
    for (layer, work), total in list(compiled.by_layer(operations).items())[:by_layer]:
        print(f"    {layer:32}{work:12}{total / 1e9:12.1f} GB")
    return {"target": target, "preset": preset, "precision": precision, **row}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs each combination in a process of its own: XLA reads its flags once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default="h100")
    parser.add_argument("--presets", default="imagenette-ipc10,imagenette-ipc50")
    parser.add_argument("--precisions", default="tf32,bfloat16")
    parser.add_argument("--by_layer", type=int, default=8)
    chosen = parser.parse_args(argv)
    lists = [getattr(chosen, name).split(",") for name in ("targets", "presets", "precisions")]
    combinations = [(t, p, q) for t in lists[0] for p in lists[1] for q in lists[2]]
    if len(combinations) == 1:
        print(f"{'':36}" + "".join(f"{name:>12}" for name in _COLUMNS))
        print_bench({"name": "compiled", **measure(*combinations[0], chosen.by_layer)})
        return
    for target, preset, precision in combinations:
        command = [
            sys.executable, "-m", "benchmarks.compiled", f"--targets={target}",
            f"--presets={preset}", f"--precisions={precision}", f"--by_layer={chosen.by_layer}",
        ]  # fmt: skip
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
