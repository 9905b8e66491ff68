"""The command that sets methods, baselines or ablations side by side, on equal terms.

    python -m edf_jax.compare --config=configs/cluttered_digits.py:ipc10 \\
        --methods=random,mtt,datm,edf --seeds=3

Every cell of the table is an ordinary run in a folder of its own, and a process of its own, so
that its memory is its own. Experts are trained once for all cells that can share them.
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import multiprocessing
import pathlib
import runpy
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from edf_jax.config.flags import default_workdir, parse
from edf_jax.config.resolve import METHODS, autos, flatten, resolve, set_keys
from edf_jax.data.coresets import BASELINES
from edf_jax.evaluate.real_baselines import real_networks
from edf_jax.evaluate.stage import measure_baseline
from edf_jax.evaluate.teacher import get_teacher
from edf_jax.experts.train import open_experts
from edf_jax.report import comparison
from edf_jax.runs.folder import Run
from edf_jax.runs.grid import ABLATIONS, Cell, Plan, make_plan, names_of
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runs.prepare import prepare
from edf_jax.runtime import console, devices, preemption, storage
from edf_jax.runtime.errors import Preempted, UserError
from edf_jax.stages import run_stages
from edf_jax.tune import budget
from edf_jax.tune.tuning import Tuning

_USAGE = f"""\
usage: python -m edf_jax.compare --config=configs/FILE.py:VARIANT[,key=value...] [flags]

Runs a table: each method with the same experts, where they allow it, and the same evaluation.

  --config=FILE:VARIANT   as in edf_jax.main; likewise --config.KEY=VALUE, for all cells
  --methods=A,B,...       of {', '.join(METHODS)};
                          and real images: {', '.join(BASELINES)}
  --ablate=A,B,...        EDF without a part, or with other values: {', '.join(ABLATIONS)}
  --rows=FILE             rows of your own, JSON: {{"label": {{"method": "mtt", "distill.lr_img":
                          300}}, ...}}; a label that is there already gets these values
  --seeds=N               repetitions that differ in all but the experts (default 1)
  --workdir=FOLDER        where cells and tables go; the same command continues there
                          (default runs/compare-<config>-<variant>[-<hash>])

Writes table.md, table.csv, table.tex, table.png and curves.png there (python -m edf_jax.report
FOLDER shows the table again), and ends in one line: RESULT {{json}}."""

# Not __name__, which is "__main__" in the command.
_log = logging.getLogger("edf_jax.compare")
# Makes a cell's result and leaves it in the cell's folder.
Launch = Callable[[Cell, str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `edf_jax.main` does."""
    argv = list(sys.argv if argv is None else argv)
    if any(flag in argv[1:] for flag in ("--help", "-h", "-help", "--helpfull", "--helpshort")):
        print(_USAGE)
        return 0
    return console.exit_status(lambda: _run(argv))


def _run(argv: list[str]) -> int:

    values = parse(argv, _define_flags)
    console.speak_in_lines()
    names = names_of(values.methods, values.ablate, values.rows)
    workdir = pathlib.Path(values.workdir or default_workdir(values, "compare-")).expanduser()
    # All rows have the sizes that there is time for.
    resolved = resolve(values.config)
    sizes = flatten(budget.settle(resolved, workdir))
    set_keys(values.config, {k: sizes[k] for k in budget.KEYS if k in autos(flatten(resolved))})
    plan = make_plan(values.config, names, values.seeds, workdir)
    command = "python -m edf_jax.compare " + shlex.join(argv[1:])
    config_flag: Any = values["config"]
    file, _, _ = config_flag.config_filename.partition(":")
    launch = functools.partial(run_in_child, config_file=file)
    with preemption.listening():
        rows = compare(plan, workdir, command, launch)
    print(comparison.to_markdown(rows))
    sys.stdout.flush()
    result = {"rows": [row.figures() for row in rows], "workdir": str(workdir)}
    print("RESULT " + json.dumps(result), flush=True)
    return 0


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "where cells and tables go", flag_values=values)
    flags.DEFINE_string("methods", "", "comma-separated methods", flag_values=values)
    flags.DEFINE_string("ablate", "", "comma-separated ablations", flag_values=values)
    flags.DEFINE_string("rows", "", "a JSON file with rows of one's own", flag_values=values)
    flags.DEFINE_integer("seeds", 1, "repetitions", lower_bound=1, flag_values=values)


def compare(
    plan: Plan, workdir: pathlib.Path, command: str, launch: Launch
) -> list[comparison.Row]:
    """Runs the cells that aren't finished, and writes the tables.

    Args:
        plan: the rows and their cells.
        workdir: where cells and tables go.
        command: what the user typed.
        launch: runs one cell: `run_cell`, or `run_in_child`.

    Returns:
        The table's rows.

    Raises:
        UserError: a cell can't be run.
        Preempted: asked to stop; what is done is kept.
    """
    busy = f"another process works on {workdir}: wait for it or give another --workdir"
    with storage.locked(workdir, busy):
        cells = list(plan.cells.values())
        for number, cell in enumerate(cells, 1):
            if is_finished(cell):
                continue
            _log.info("compare: %d of %d, %s", number, len(cells), cell.name)
            began = time.monotonic()
            launch(cell, command)
            _log.info("compare: %s took %.0f s", cell.name, time.monotonic() - began)
        rows = comparison.gather(plan)
        comparison.save_plan(plan, workdir)
        comparison.write(plan, rows, workdir)
    return rows


def is_finished(cell: Cell) -> bool:
    """Whether a cell's result is there, made with its very config."""
    try:
        record = storage.read_record(cell.workdir / "cell.json")
    except storage.DamagedFile:
        return False
    return record.get("config") == _digest(cell) and (cell.workdir / "result.json").exists()


def _digest(cell: Cell) -> str:
    return storage.digest_of_record(json.loads(json.dumps(flatten(cell.config))))


def run_cell(cell: Cell, command: str) -> None:
    """Makes a cell's result, in this process."""

    devices.set_up(cell.config.precision, deterministic=cell.config.deterministic)
    with Run(cell.workdir, cell.config, command) as run:
        if cell.kind == "experts":
            run_stages(run, "experts")
            result: dict[str, Any] = {"stage": "experts", **run.provenance()}
        elif cell.kind == "baseline":
            result = {**_measure_baseline(run, cell.baseline), **run.provenance()}
        else:
            result = run_stages(run, "evaluate") or {}
        result["peak_device_memory_mb"] = _peak_device_memory_mb()
        storage.write_text(cell.workdir / "result.json", json.dumps(result, indent=1))
        storage.write_record(cell.workdir / "cell.json", {"config": _digest(cell)})


def _measure_baseline(run, name: str) -> Mapping[str, Any]:
    """The figures of real images, by the same evaluation."""

    config = run.config
    with run.stage("prepare"):
        dataset = prepare(config)
    with run.stage("experts"):
        networks = None if name == "random" else _experts(config, dataset, run.workdir)
    with run.stage("evaluate"):
        return measure_baseline(
            config,
            dataset,
            run.workdir,
            name,
            real_networks=networks,
            teacher=lambda: get_teacher(config, dataset, run.workdir),
            provenance=run.origin(),
        )


def _experts(config, dataset, workdir: pathlib.Path):
    """The experts as baselines use them, trained if they aren't there."""

    tuning = Tuning(config, workdir)
    tuning.for_experts(dataset)
    store = open_experts(tuning.config, dataset, workdir)
    with MetricsWriter(workdir, tensorboard=False) as metrics:
        tuning.train_experts(dataset, store, metrics)
    return real_networks(tuning.config, dataset, store)


def _peak_device_memory_mb() -> int | None:
    """The most that an accelerator held, in MiB; None where it doesn't say."""
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.devices()]
    known = [peak for peak in peaks if peak is not None]
    return round(max(known) / 2**20) if known else None


def run_in_child(cell: Cell, command: str, *, config_file: str | None = None) -> None:
    """Makes a cell's result in a process of its own.

    Args:
        cell: which.
        command: what the user typed.
        config_file: run there first, for it may add methods, networks or sources of its own.

    Raises:
        UserError: the cell told why it can't be run.
        Preempted: this process is asked to stop, and the cell has saved.
    """
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_child, args=(cell, command, config_file), name=cell.name)
    child.start()
    asked = False
    while child.is_alive():
        child.join(0.2)
        if preemption.asked() and not asked:
            asked = True
            child.terminate()
    if preemption.asked():
        raise Preempted("asked to stop by SIGTERM")
    if child.exitcode == console.INTERRUPTED:
        raise KeyboardInterrupt
    if child.exitcode:
        raise UserError(f"{cell.name} ended with status {child.exitcode}: see the line above")


def _child(cell: Cell, command: str, config_file: str | None) -> None:
    _die_with_parent()
    console.speak_in_lines()

    def run() -> int:
        if config_file is not None:
            runpy.run_path(config_file)
        with preemption.listening():
            run_cell(cell, command)
        return 0

    sys.exit(console.exit_status(run, name=f"edf_jax ({cell.name})"))


def _die_with_parent() -> None:
    """A killed comparison leaves no cell at work, which would hold the cell's lock (Linux)."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
