"""The command: `python -m edf_jax.main --config=configs/imagenette.py:ipc10 [flags]`."""

# ruff: noqa: E402
from __future__ import annotations

from edf_jax.runtime import preemption

if __name__ == "__main__":
    # Before the imports, which take seconds.
    preemption.listen()

import json
import pathlib
import sys
import traceback
from collections.abc import Sequence

from absl import flags

from edf_jax.config.flags import Given, run_command
from edf_jax.config.resolve import flatten, resolve
from edf_jax.experts.settings import check_part
from edf_jax.plan import ahead, plan
from edf_jax.report import tables
from edf_jax.runs import metrics
from edf_jax.runs.folder import Run
from edf_jax.runtime import devices, processes
from edf_jax.runtime.errors import UserError
from edf_jax.stages import check_plan, run_stages
from edf_jax.tune import budget

_USAGE = """\
usage: python -m edf_jax.main --config=configs/FILE.py:VARIANT[,key=value...] [flags]

Distils a dataset into a few synthetic images per class, and shows how well networks train on them.

  --config=FILE:VARIANT   what to do, such as configs/cluttered_digits.py:demo
  --cfg=FILE.yaml         in place of --config: a file of the official codes; says our names
  --config.KEY=VALUE      another value for a key, such as --config.distill.lr_img=500
  --workdir=FOLDER        the run's folder (default runs/<config>-<variant>[-<hash of overrides>]);
                          the same command continues there
  --stage=STAGE           stop after a stage: prepare, experts, distill, evaluate, report (or all);
                          teacher trains the network that labels images for evaluation
  --dry_run[=compile]     print the plan, and with =compile XLA's own memory figure; run nothing
  --target=DEVICE         with --dry_run=compile: what a run takes on h100, rtx4090, v5e, ... that
                          isn't here, or on so many of them, as h100x4
  --coordinator=HOST:PORT --num_processes=N --process_id=I
                          process I of N that run together; the first is at HOST
  --distributed           let JAX find the processes that run together (TPU pods); those that one
                          srun starts find each other without it, unless --num_processes=1
  --help                  this text; docs/configs.md explains every key

A finished run ends in one line: RESULT {json}.

Exit status: 0 done; 2 something to mend, told in one line; 75 stopped by SIGTERM with all saved,
130 by Ctrl-C, 76 by the loss of another of its processes: the same command continues."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""
    try:
        status = run_command("edf_jax.main", _USAGE, _define_flags, _run, argv)
    except BaseException:
        if processes.count() == 1:
            raise
        traceback.print_exc()
        status = 1
    return processes.leave(status)


def _run(given: Given) -> int:
    values, workdir = given.flags, given.workdir
    if values.dry_run not in ("", "plan", "compile"):
        raise UserError(f"--dry_run={values.dry_run}: say --dry_run or --dry_run=compile")
    if values.target and values.dry_run != "compile":
        raise UserError(f"--target={values.target} goes with --dry_run=compile")
    place = (values.coordinator, values.num_processes, values.process_id)
    processes.check_flags(*place)
    config = resolve(values.config)
    if values.dry_run:
        config = budget.settle(config, workdir, measure=False)
        if values.target:
            print(ahead.describe(config, workdir, values.target))
        else:
            print(plan.describe(config, workdir, compile=values.dry_run == "compile"))
        return 0

    check_part(config, values.stage)
    devices.set_up(
        config.precision,
        deterministic=config.deterministic,
        join=lambda: processes.start(*place, distributed=values.distributed),
    )
    processes.check_same(
        "the config, the workdir, the stage or JAX's environment",
        [flatten(config), str(workdir), values.stage, devices.numerics()],
    )
    config = budget.settle(config, workdir)
    run = Run(workdir, config, given.command)
    with processes.in_every_process():
        run.check()
        warnings = check_plan(config, workdir)
    with run:
        result = run_stages(run, values.stage, warnings)
    if result is not None and processes.is_first():
        _print_result(result)
    return 0


def _print_result(result: dict) -> None:
    """The table for people on standard error, and last the line for programs."""

    lines = tables.warnings(metrics.read_metrics(pathlib.Path(result["workdir"]), "distill"))
    print("\n".join([tables.result_table(result), *lines]), file=sys.stderr)
    chosen = ("best_on_held_out", "best_on_test", "paper_statistic")
    keys = ("random", "initial", "distilled", *chosen, "full")
    figures = {
        f"{k}_{f}": round(result[f"{k}_{f}"], 3)
        for k in keys
        for f in ("mean", "std")
        if f"{k}_{f}" in result
    }
    line = {**figures, "seconds": result["seconds"], "workdir": result["workdir"]}
    sys.stderr.flush()
    print("RESULT " + json.dumps(line), flush=True)


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "stage",
        "all",
        ["all", "prepare", "teacher", "experts", "distill", "evaluate", "report"],
        "the stage to stop after",
        flag_values=values,
    )
    flags.DEFINE_string("dry_run", "", "print the plan", flag_values=values)
    flags.DEFINE_string("target", "", "the device to compile for", flag_values=values)
    flags.DEFINE_string("coordinator", "", "host:port of the first process", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "that run together", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "of this one, from 0", flag_values=values)
    flags.DEFINE_bool("distributed", False, "let JAX find the processes", flag_values=values)


if __name__ == "__main__":
    sys.exit(main())
