"""The command that sets methods, baselines or ablations side by side, on equal terms.

    python -m edf_jax.compare --config=configs/cluttered_digits.py:ipc10 \\
        --methods=random,mtt,datm,edf --seeds=3

Every run of the grid has a folder of its own, and a process of its own, so that its memory is its
own. Experts are trained once for all runs that can share them.
"""

# ruff: noqa: E402
from __future__ import annotations

from edf_jax.runtime import preemption

if __name__ == "__main__":
    # Before the imports, which take seconds.
    preemption.listen()

import concurrent.futures
import ctypes
import functools
import json
import logging
import multiprocessing
import pathlib
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from edf_jax.config.flags import Given, run_command
from edf_jax.config.resolve import METHODS, autos, flatten, resolve, set_keys
from edf_jax.data.coresets import BASELINES, WITHOUT_EXPERTS
from edf_jax.evaluate.real_baselines import trained_experts
from edf_jax.evaluate.stage import measure_baseline
from edf_jax.experts.train import open_experts
from edf_jax.report import comparison
from edf_jax.runs.files import RunFiles
from edf_jax.runs.folder import OF_A_GRID, Run, locked, refuse_foreign
from edf_jax.runs.grid import ABLATIONS, Grid, GridRun, make_grid, names_of
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runs.prepare import prepare
from edf_jax.runtime import console, devices, storage
from edf_jax.runtime.errors import UserError
from edf_jax.stages import check_plan, run_stages
from edf_jax.tune import budget
from edf_jax.tune.tuning import Tuning

_USAGE = f"""\
usage: python -m edf_jax.compare --config=configs/FILE.py:VARIANT[,key=value...] [flags]

Runs a table: each method with the same experts, where they allow it, and the same evaluation.

  --config=FILE:VARIANT   as in edf_jax.main; likewise --config.KEY=VALUE, for all runs
  --methods=A,B,...       of {', '.join(METHODS)};
                          and real images: {', '.join(BASELINES)}
  --ablate=A,B,...        EDF without a part, or with other values: {', '.join(ABLATIONS)}
  --rows=FILE             rows of your own, JSON: {{"label": {{"method": "mtt", "distill.lr_img":
                          300}}, ...}}; a label that is there already gets these values
  --seeds=N               repetitions that differ in all but the experts (default 1)
  --workdir=FOLDER        where runs and tables go; the same command continues there
                          (default runs/compare-<config>-<variant>[-<hash>])

Writes table.md, table.csv, table.tex, table.png and curves.png there (python -m edf_jax.report
FOLDER shows the table again), and ends in one line: RESULT {{json}}."""

# Not __name__, which is "__main__" in the command.
_log = logging.getLogger("edf_jax.compare")
# Makes a run's result and leaves it in the run's folder.
Launch = Callable[[GridRun, str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `edf_jax.main` does."""
    return run_command(
        "edf_jax.compare", _USAGE, _define_flags, _run, argv, folder="compare-"
    )


def _run(given: Given) -> int:
    values = given.flags
    names = names_of(values.methods, values.ablate, values.rows)
    # All rows have the sizes that there is time for.
    resolved = resolve(values.config)
    sizes = flatten(budget.settle(resolved, given.workdir))
    set_keys(values.config, {k: sizes[k] for k in budget.KEYS if k in autos(flatten(resolved))})
    grid = make_grid(values.config, names, values.seeds, given.workdir)
    config_flag: Any = values["config"]
    file, _, _ = config_flag.config_filename.partition(":")
    launch = functools.partial(run_in_child, config_file=file)
    unfinished = [one for one in grid.runs.values() if not is_finished(one)]
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        for warning in child.submit(check_runs, unfinished, file).result():
            _log.warning("%s", warning)
    rows = compare(grid, given.workdir, given.command, launch)
    print(comparison.to_markdown(rows))
    sys.stdout.flush()
    result = {"rows": [row.figures() for row in rows], "workdir": str(given.workdir)}
    print("RESULT " + json.dumps(result), flush=True)
    return 0


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("methods", "", "comma-separated methods", flag_values=values)
    flags.DEFINE_string("ablate", "", "comma-separated ablations", flag_values=values)
    flags.DEFINE_string("rows", "", "a JSON file with rows of one's own", flag_values=values)
    flags.DEFINE_integer("seeds", 1, "repetitions", lower_bound=1, flag_values=values)


def compare(
    grid: Grid, workdir: pathlib.Path, command: str, launch: Launch
) -> list[comparison.Row]:
    """Makes the runs that aren't finished, and writes the tables.

    Args:
        grid: the rows and their runs.
        workdir: where runs and tables go.
        command: what the user typed.
        launch: makes one run: `run_here`, or `run_in_child`.

    Returns:
        The table's rows.

    Raises:
        UserError: a run can't be made.
        Preempted: asked to stop; what is done is kept.
    """
    refuse_foreign(workdir, OF_A_GRID)
    with locked(workdir):
        for number, one in enumerate(grid.runs.values(), 1):
            if is_finished(one):
                continue
            _log.info("compare: %d of %d, %s", number, len(grid.runs), one.name)
            began = time.monotonic()
            launch(one, command)
            _log.info("compare: %s took %.0f s", one.name, time.monotonic() - began)
        rows = comparison.gather(grid)
        comparison.save_grid(grid, workdir)
        comparison.write(grid, rows, workdir)
    return rows


def check_runs(runs: Sequence[GridRun], config_file: str) -> list[str]:
    """Refuses what a run would refuse, before any is at work; in a process of its own.

    Args:
        runs: those to be made.
        config_file: run first, for it may add methods, networks or sources of its own.

    Returns:
        The warnings of their plans.

    Raises:
        UserError: names the run.
    """
    runpy.run_path(config_file)
    warnings: dict[str, None] = {}
    for one in runs:
        devices.set_up(one.config.precision, deterministic=one.config.deterministic)
        try:
            warnings |= dict.fromkeys(check_plan(one.config, one.workdir))
        except UserError as error:
            raise UserError(f"{one.name}: {error}") from None
    return list(warnings)


def is_finished(one: GridRun) -> bool:
    """Whether a run's result is there, made with its very config."""
    try:
        record = storage.read_record(one.workdir / "cell.json")
    except storage.DamagedFile:
        return False
    try:
        return record.get("config") == _digest(one) and bool(RunFiles(one.workdir).result)
    except UserError as error:
        _log.warning("%s: made again", error)
        return False


def _digest(one: GridRun) -> str:
    return storage.digest_of_record(json.loads(json.dumps(flatten(one.config))))


def run_here(one: GridRun, command: str) -> None:
    """Makes a run's result, in this process."""
    devices.set_up(one.config.precision, deterministic=one.config.deterministic)
    with Run(one.workdir, one.config, command) as run:
        if one.kind == "experts":
            run_stages(run, "experts")
            result: dict[str, Any] = {"stage": "experts", **run.provenance()}
        elif one.kind == "baseline":
            result = {**_measure_baseline(run, one.baseline), **run.provenance()}
        else:
            result = run_stages(run, "evaluate") or {}
        result["peak_device_memory_mb"] = _peak_device_memory_mb()
        run.write_result(result)
        storage.write_record(one.workdir / "cell.json", {"config": _digest(one)})


def _measure_baseline(run: Run, name: str) -> dict[str, Any]:
    """The figures of real images, by the same evaluation."""
    config, workdir, networks = run.config, run.workdir, None
    with run.stage("prepare"):
        dataset = prepare(config)
    with run.stage("experts"):
        if name not in WITHOUT_EXPERTS:
            tuning = Tuning(config, workdir)
            tuning.for_experts(dataset)
            store = open_experts(tuning.config, dataset, workdir)
            with MetricsWriter(workdir, tensorboard=False) as metrics:
                tuning.train_experts(dataset, store, metrics)
            config = tuning.config
            networks = functools.partial(trained_experts, config, dataset, store)
    with run.stage("evaluate"):
        return measure_baseline(
            config, dataset, workdir, name, networks=networks, provenance=run.origin()
        )


def _peak_device_memory_mb() -> int | None:
    """The most that an accelerator held, in MiB; None where it doesn't say."""
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.devices()]
    known = [peak for peak in peaks if peak is not None]
    return round(max(known) / 2**20) if known else None


def run_in_child(one: GridRun, command: str, *, config_file: str | None = None) -> None:
    """Makes a run's result in a process of its own.

    Args:
        one: which.
        command: what the user typed.
        config_file: run there first, for it may add methods, networks or sources of its own.

    Raises:
        UserError: the run told why it can't be run.
        Preempted: this process is asked to stop, and the run has saved.
    """
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_child, args=(one, command, config_file), name=one.name)
    child.start()
    asked = False
    while child.is_alive():
        child.join(0.2)
        if preemption.asked() and not asked:
            asked = True
            child.terminate()
    if preemption.asked():
        preemption.stop()
    if child.exitcode == console.INTERRUPTED:
        raise KeyboardInterrupt
    if child.exitcode:
        raise UserError(f"{one.name} ended with status {child.exitcode}: see the line above")


def _child(one: GridRun, command: str, config_file: str | None) -> None:
    _die_with_parent()
    console.speak_in_lines()

    def run() -> int:
        if config_file is not None:
            runpy.run_path(config_file)
        with preemption.listening():
            run_here(one, command)
        return 0

    sys.exit(console.exit_status(run, name=f"edf_jax ({one.name})"))


def _die_with_parent() -> None:
    """A killed comparison leaves no run at work, which would hold its lock (Linux)."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
