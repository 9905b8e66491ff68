"""The command: `python -m edf_jax.main --config=configs/imagenette.py:ipc10 [flags]`."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import pathlib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from edf_jax import console
from edf_jax.errors import UserError

_USAGE = """\
usage: python -m edf_jax.main --config=configs/FILE.py:VARIANT[,key=value...] [flags]

Distils a dataset into a few synthetic images per class, and shows how well networks train on them.

  --config=FILE:VARIANT   what to do, such as configs/cluttered_digits.py:demo
  --config.KEY=VALUE      another value for a key, such as --config.distill.lr_img=500
  --workdir=FOLDER        the run's folder (default runs/<config>-<variant>[-<hash of overrides>]);
                          the same command continues there
  --stage=STAGE           stop after a stage: prepare, experts, distill, evaluate, report (or all);
                          teacher trains the network that labels images for evaluation
  --dry_run[=compile]     print the plan, and with =compile XLA's own memory figure; run nothing
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
    argv = list(sys.argv if argv is None else argv)
    if any(flag in argv[1:] for flag in ("--help", "-h", "-help", "--helpfull", "--helpshort")):
        print(_USAGE)
        return 0
    from edf_jax import hosts

    try:
        status = console.exit_status(lambda: _run(argv))
    except BaseException:
        if hosts.count() == 1:
            raise
        traceback.print_exc()
        status = 1
    return hosts.leave(status)


def _run(argv: list[str]) -> int:
    values = parse(argv, _define_flags)
    if values.dry_run not in ("", "plan", "compile"):
        raise UserError(f"--dry_run={values.dry_run}: say --dry_run or --dry_run=compile")
    from edf_jax import hosts
    from edf_jax.config import flatten, resolve

    hosts.check_flags(values.coordinator, values.num_processes, values.process_id)
    console.speak_in_lines()
    config = resolve(values.config)
    workdir = pathlib.Path(values.workdir or default_workdir(values)).expanduser()
    if values.dry_run:
        from edf_jax import plan

        print(plan.describe(config, workdir, compile=values.dry_run == "compile"))
        return 0
    from edf_jax import devices, expert_settings, preemption
    from edf_jax.run import Run
    from edf_jax.stages import run_stages

    expert_settings.check_part(config, values.stage)
    devices.set_up(config.precision, deterministic=config.deterministic)
    hosts.start(
        values.coordinator,
        values.num_processes,
        values.process_id,
        distributed=values.distributed,
    )
    hosts.check_same("the config, the workdir or the stage", [
        flatten(config), str(workdir), values.stage
    ])
    run = Run(workdir, config, "python -m edf_jax.main " + shlex.join(argv[1:]))
    with hosts.together():
        run.check()
        warnings = _check_plan(config, workdir)
    with preemption.listening(), run:
        result = run_stages(run, values.stage, warnings)
    if result is not None and hosts.is_first():
        _print_result(result)
    return 0


def _check_plan(config, workdir: pathlib.Path) -> tuple[str, ...]:
    """Refuses, before anything is written, what the plan tells to be impossible.

    Returns:
        The plan's warnings.
    """
    from edf_jax import metrics, parallel, plan, stages
    from edf_jax.data import describe_dataset

    if config.log.wandb_project:
        metrics.import_wandb()

    parallel.matching_mesh(config.parallel.trajectory, max(1, config.parallel.data))
    data = describe_dataset(config.data)
    if not data.available:
        raise UserError(data.advice)
    planned = plan.make_plan(config, data, workdir)
    plan.check_memory(planned)
    stages.check_files(config, data)
    return planned.warnings


def _print_result(result: dict) -> None:
    """The table for people on standard error, and last the line for programs."""
    from edf_jax.run_table import result_table

    print(result_table(result), file=sys.stderr)
    keys = ("random", "distilled", "best_on_held_out", "best_on_test", "full")
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
    flags.DEFINE_string("workdir", "", "the run's folder", flag_values=values)
    flags.DEFINE_enum(
        "stage",
        "all",
        ["all", "prepare", "teacher", "experts", "distill", "evaluate", "report"],
        "the stage to stop after",
        flag_values=values,
    )
    flags.DEFINE_string("dry_run", "", "print the plan", flag_values=values)
    flags.DEFINE_string("coordinator", "", "host:port of the first process", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "that run together", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "of this one, from 0", flag_values=values)
    flags.DEFINE_bool("distributed", False, "let JAX find the processes", flag_values=values)


def parse(argv: list[str], define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """A command's flags and `--config`, every fault of theirs a `UserError`.

    absl by itself prints a traceback for an unknown config key.

    Args:
        argv: with the program's name first.
        define: adds the command's own flags.

    Returns:
        The flags; `config` is not resolved yet, but has the numbers of its method.
    """
    from ml_collections import config_flags

    values = flags.FlagValues()
    argv = [argv[0], *_normalised(argv[1:])]
    define(values)
    own = ["config", *values]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    files = [flag.partition("=")[2] for flag in argv[1:] if flag.startswith("--config=")]
    if len(files) != 1:
        raise UserError("give --config=configs/FILE.py:VARIANT once (see --help)")
    for flag in argv[1:]:
        if flag.startswith("--config."):
            _check_key(flag[9:].partition("=")[0])
    try:
        logging.disable(logging.WARNING)
        rest = values(argv)
    except Exception as error:
        raise UserError(_fault(error, files[0].partition(":")[0], own)) from error
    except SystemExit as error:
        raise UserError(f"config file {files[0]} ends the program ({error})") from error
    finally:
        logging.disable(logging.NOTSET)
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag (see --help)")
    config = values.config
    if not hasattr(config, "items"):
        raise UserError(f"get_config() of {files[0]} returns no config: see edf_jax.config")
    if "method" in _config_flag(values).override_values:
        from edf_jax.config import use_method

        use_method(config, config.method, given=given_keys(values))
    return values


def _normalised(argv: Sequence[str]) -> list[str]:
    """Flags as `--name=value`, `--config` with the file that is there, `--dry_run` with a value."""
    normal = []
    waiting = iter(argv)
    for flag in waiting:
        if flag.startswith("-") and not flag.startswith("--"):
            flag = "-" + flag
        if flag in ("--config", "--workdir", "--stage"):
            value = next(waiting, None)
            if value is None:
                raise UserError(f"{flag} has no value (see --help)")
            flag = f"{flag}={value}"
        if flag.partition("=")[0] in ("--flagfile", "--undefok"):
            raise UserError(f"there is no flag {flag.partition('=')[0]} (see --help)")
        if flag.startswith("--config="):
            flag = _found_config(flag)
        normal.append("--dry_run=plan" if flag == "--dry_run" else flag)
    return normal


def _check_key(name: str) -> None:
    from edf_jax.config import SCHEMA, unknown_key

    if any(key.startswith(f"{name}.") for key in SCHEMA):
        raise UserError(f"--config.{name} is a group of keys: say which (see docs/configs.md)")
    if name not in SCHEMA:
        raise UserError(unknown_key(name))


def _fault(error: Exception, config_file: str, own: list[str]) -> str:
    """What is wrong with the command, or with the file that makes its config."""
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(error.flagname, own, 1)
        hint = f"; did you mean --{near[0]}?" if near else " (see --help)"
        return f"there is no flag --{error.flagname}{hint}"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SyntaxError):
        where = f", line {error.lineno}" if error.lineno else ""
        return f"config file {config_file}{where}: {type(error).__name__}: {error.msg}"
    # ml_collections passes some errors on as the text of their traceback.
    told = (str(error).strip() or type(error).__name__).splitlines()[-1]
    key = re.match(r"flag --config\.([\w.]+)=(.*?): ", told)
    if key is not None:
        from edf_jax.config import SCHEMA

        kind = SCHEMA[key[1]].kind.__name__
        return f"config key {key[1]}={key[2]!r} must be of type {kind}"
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == config_file
    ]
    if lines:
        return f"config file {config_file}, line {lines[-1]}: {type(error).__name__}: {told}"
    return told if isinstance(error, flags.Error) else f"config file {config_file}: {told}"


def given_keys(values: flags.FlagValues) -> set[str]:
    """The config keys that the user gave, in the variant or as flags."""
    flag = _config_flag(values)
    _, *pairs = flag.config_filename.partition(":")[2].split(",")
    return {pair.partition("=")[0] for pair in pairs} | set(flag.override_values)


def _config_flag(values: flags.FlagValues) -> Any:
    return values["config"]


def _found_config(flag: str) -> str:
    """A `--config=` flag whose file is there: as given, or that of the installed package."""
    name, separator, value = flag.partition("=")
    if name.lstrip("-") != "config" or not separator:
        return flag
    file, colon, variant = value.partition(":")
    if pathlib.Path(file).is_file():
        return flag
    parts = pathlib.PurePath(file).parts
    if len(parts) == 2 and parts[0] == "configs":
        package = pathlib.Path(__file__).parent
        # Installed they are the package `edf_jax._configs`; in a checkout they lie beside it.
        for folder in (package / "_configs", package.parent / "configs"):
            if (folder / parts[1]).is_file():
                return f"{name}={folder / parts[1]}{colon}{variant}"
    raise UserError(f"there is no config file {file}")


def default_workdir(values: flags.FlagValues, prefix: str = "") -> str:
    """`runs/<prefix><config>-<variant>[-<8 hex of the overrides>]`."""
    flag = _config_flag(values)
    file, _, variant = flag.config_filename.partition(":")
    name, *pairs = variant.split(",")
    overrides = sorted([*pairs, *(f"{k}={v}" for k, v in flag.override_values.items())])
    workdir = f"runs/{prefix}{pathlib.Path(file).stem}" + (f"-{name}" if name else "")
    if overrides:
        workdir += "-" + hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    return workdir


if __name__ == "__main__":
    sys.exit(main())
