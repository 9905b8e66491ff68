"""The command: `python -m edf_jax.main --config=configs/imagenette.py:ipc10 [flags]`."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import logging
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence

from absl import flags

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
  --help                  this text; docs/configs.md explains every key

A finished run ends in one line: RESULT {json}."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""
    argv = list(sys.argv if argv is None else argv)
    if any(flag in argv[1:] for flag in ("--help", "-h", "-help", "--helpfull", "--helpshort")):
        print(_USAGE)
        return 0
    try:
        return _run(argv)
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"edf_jax: {message}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int:
    values = parse(argv, _define_flags)
    from edf_jax.config import resolve

    if values.dry_run not in ("", "plan", "compile"):
        raise UserError(f"--dry_run={values.dry_run}: say --dry_run or --dry_run=compile")
    config = resolve(values.config)
    workdir = pathlib.Path(values.workdir or _default_workdir(values))
    if values.dry_run:
        from edf_jax import plan

        print(plan.describe(config, workdir, compile=values.dry_run == "compile"))
        return 0
    from edf_jax import devices
    from edf_jax.run import Run
    from edf_jax.stages import run_stages

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("edf_jax").setLevel(logging.INFO)
    devices.set_up(config.precision, deterministic=config.deterministic)
    command = "python -m edf_jax.main " + shlex.join(argv[1:])
    with Run(workdir, config, command) as run:
        result = run_stages(run, values.stage)
    if result is not None:
        _print_result(result)
    return 0


def _print_result(result: dict) -> None:
    """The table for people on standard error, and last the line for programs."""
    from edf_jax.run_table import result_table

    print(result_table(result), file=sys.stderr)
    keys = ("random", "distilled", "best_on_test", "full")
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

    from edf_jax.config import unknown_key, use_method

    values = flags.FlagValues()
    argv = [argv[0], *(_found_config(flag) for flag in argv[1:])]
    define(values)
    own = [*values]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    argv = ["--dry_run=plan" if flag in ("--dry_run", "-dry_run") else flag for flag in argv]
    if not any(flag.lstrip("-").startswith("config=") for flag in argv[1:]):
        raise UserError("give --config=configs/FILE.py:VARIANT (see --help)")
    try:
        rest = values(argv)
    except UserError:
        raise
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        if name.startswith("config."):
            raise UserError(unknown_key(name.removeprefix("config."))) from None
        near = difflib.get_close_matches(name, ["config", *own], 1)
        hint = f"; did you mean --{near[0]}?" if near else " (see --help)"
        raise UserError(f"there is no flag --{name}{hint}") from None
    except KeyError as error:
        raise UserError(unknown_key(str(error.args[0]).split("'")[-2] if error.args else "")) from None
    except (flags.Error, AttributeError, TypeError, ValueError, OSError, SyntaxError) as error:
        raise UserError(str(error) or type(error).__name__) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag (see --help)")
    if "method" in values["config"].override_values:
        use_method(values.config, values.config.method, given=given_keys(values))
    return values


def given_keys(values: flags.FlagValues) -> set[str]:
    """The config keys that the user gave, in the variant or as flags."""
    _, *pairs = values["config"].config_filename.partition(":")[2].split(",")
    return {pair.partition("=")[0] for pair in pairs} | set(values["config"].override_values)


def _found_config(flag: str) -> str:
    """A `--config=` flag whose file is there: as given, or that of the installed package."""
    name, separator, value = flag.partition("=")
    if name.lstrip("-") != "config" or not separator:
        return flag
    file, colon, variant = value.partition(":")
    if pathlib.Path(file).is_file():
        return flag
    parts = pathlib.PurePath(file).parts
    package = importlib.util.find_spec("edf_jax._configs")
    if len(parts) == 2 and parts[0] == "configs" and package is not None:
        for folder in package.submodule_search_locations or ():
            path = pathlib.Path(folder) / parts[1]
            if path.is_file():
                return f"{name}={path}{colon}{variant}"
    raise UserError(f"there is no config file {file}")


def _default_workdir(values: flags.FlagValues) -> str:
    """`runs/<config>-<variant>[-<8 hex of the overrides>]`."""
    file, _, variant = values["config"].config_filename.partition(":")
    name, *pairs = variant.split(",")
    overrides = sorted([*pairs, *(f"{k}={v}" for k, v in values["config"].override_values.items())])
    workdir = f"runs/{pathlib.Path(file).stem}" + (f"-{name}" if name else "")
    if overrides:
        workdir += "-" + hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    return workdir


def console() -> None:
    """The installed command `edf_jax`."""
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())


if __name__ == "__main__":
    console()
