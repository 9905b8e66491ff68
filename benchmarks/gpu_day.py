"""Every figure of one GPU in ten minutes: `bash benchmarks/gpu_day.sh`.

Runs the rows of "One GPU" in docs/benchmarks.md, what matters most first, each with PyTorch
beside it, until `--minutes` are over. A finished row is kept in `--records` and not run again, so
the same command goes on. Then the table is printed, with what was compiled for an H100 beside it;
`--docs` writes it into the page instead, and runs nothing. Nothing is needed but jax, flax, optax,
orbax, numpy and torch.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_ROOT = pathlib.Path(__file__).parents[1]
RECORDS = _ROOT / "docs" / "results" / "gpu_day.json"
PAGE = _ROOT / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- one GPU: begin -->\n", "<!-- one GPU: end -->"
_LEAST = 20.0  # Seconds in which no row can be had.


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        title: its first cell.
        benchmark: of `benchmarks`.
        precision: of both frameworks.
        flags: of the benchmark, beside.
        at_best: seconds on an H100 by what XLA compiles for it (`benchmarks.compiled`).
    """

    title: str
    benchmark: str
    precision: str
    flags: tuple[str, ...]
    at_best: float | None = None

    @property
    def command(self) -> list[str]:
        flags = (f"--precision={self.precision}", "--rounds=1", "--device=gpu", *self.flags)
        return ["-m", f"benchmarks.{self.benchmark}", *flags]


_TEN, _FIFTY = "--preset=imagenette-ipc10", "--preset=imagenette-ipc50"
# In the order of the table; they are run in that of `_ORDER`.
ROWS = (
    Row("matching, `imagenette-ipc10`", "matching", "float32", (_TEN,)),
    Row("matching, `imagenette-ipc10`", "matching", "tf32", (_TEN,), 0.48),
    Row("matching, `imagenette-ipc10`", "matching", "bfloat16", (_TEN,), 0.28),
    Row("matching, `imagenette-ipc50`", "matching", "tf32", (_FIFTY, "--repeats=1"), 1.24),
    Row("matching, `imagenette-ipc50`", "matching", "bfloat16", (_FIFTY, "--repeats=1"), 0.71),
    Row("experts, `imagenette-ipc10`", "experts", "tf32", (_TEN,)),
    Row("evaluation of 5 networks, `imagenette-ipc10`", "evaluation", "tf32", (_TEN,)),
    Row("Grad-CAM, ResNet-18, `imagenette-ipc10`", "gradcam", "tf32", (_TEN,)),
)
_ORDER = (1, 2, 5, 3, 6, 7, 0, 4)


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown.

    Args:
        records: of the rows that were measured, by `key`, as benchmarks print them.
    """
    lines = [
        "| | precision | ours, s | at best on an H100, s | PyTorch, s | ratio | ours, GiB | "
        "PyTorch, GiB (its N) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        best = "" if row.at_best is None else f"{row.at_best:.2f}"
        lines.append("| " + " | ".join([row.title, row.precision, *_cells(row, best, records)]))
        lines[-1] += " |"
    devices = {record["ours_device"] for record in records.values()}
    measured = f"\nMeasured on: {', '.join(sorted(devices))}.\n" if devices else ""
    return "\n".join(lines) + "\n" + measured


def _cells(row: Row, best: str, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    record = records.get(key(row))
    if record is None:
        return ["not measured", best, "", "", "", ""]
    gib = {which: record.get(f"{which}_peak_mib", 0) / 1024 for which in ("ours", "pytorch")}
    fitted = record.get("pytorch_steps") if row.benchmark == "matching" else None
    return [
        f"{record['ours_seconds']:.3g}", best,
        f"{record['pytorch_seconds']:.3g}" if "pytorch_seconds" in record else "",
        f"{record['ratio']:.2f}" if "ratio" in record else "", f"{gib['ours']:.1f}",
        (f"{gib['pytorch']:.1f}" + (f" ({fitted})" if fitted else "")) if gib["pytorch"] else "",
    ]  # fmt: skip


def key(row: Row) -> str:
    """What a row's record is kept by."""
    return " ".join(row.command)


def with_table(page: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with the table in its place."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + table(records) + _END + after


def read(path: pathlib.Path = RECORDS) -> dict[str, dict[str, Any]]:
    """The records that are kept."""
    return json.loads(path.read_text()) if path.exists() else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs rows while there is time; returns 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args(argv)
    records = read(options.records)
    if options.docs:
        PAGE.write_text(with_table(PAGE.read_text(), records))
        return 0
    deadline, failed = time.monotonic() + 60 * options.minutes, False
    for row in (ROWS[index] for index in _ORDER):
        left = deadline - time.monotonic()
        if key(row) in records or left < _LEAST:
            continue
        record = _measure(row, left)
        if record is None:
            failed = True
        else:
            options.records.parent.mkdir(parents=True, exist_ok=True)
            options.records.write_text(json.dumps(records | {key(row): record}, indent=1) + "\n")
            records = read(options.records)
    print(table(records))
    return int(failed)


def _measure(row: Row, seconds: float) -> dict[str, Any] | None:
    print(f"{key(row)} ({seconds:.0f} s are left)", file=sys.stderr, flush=True)
    # A session of its own, so that its processes end with it and leave the GPU.
    with subprocess.Popen(
        [sys.executable, *row.command], cwd=_ROOT, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            print("  no time was left for it", file=sys.stderr)
            return None
    print(printed, flush=True)
    lines = [line for line in printed.splitlines() if line.startswith("BENCH ")]
    if process.returncode or not lines:
        return None
    return json.loads(lines[-1].removeprefix("BENCH "))


if __name__ == "__main__":
    sys.exit(main())
