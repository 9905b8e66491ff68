"""A command's flags: `--config=FILE.py:VARIANT`, `--config.KEY=VALUE`, and the command's own.

`--cfg=FILE.yaml` is an official code's config, in place of `--config` (`edf_jax.config.official`).
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import pathlib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from edf_jax.config import files, official
from edf_jax.config.resolve import SCHEMA, unknown_key
from edf_jax.runtime import console, preemption, storage
from edf_jax.runtime.errors import UserError

_HELP = ("--help", "-h", "-help", "--helpfull", "--helpshort")


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user gave a command.

    Attributes:
        flags: all of them; `config` is not resolved.
        keys: the config keys among them, in the variant or as flags.
        workdir: the folder of that flag, or the default one.
        command: what was typed.
    """

    flags: flags.FlagValues
    keys: set[str]
    workdir: pathlib.Path
    command: str


def run_command(
    name: str,
    usage: str,
    define: Callable[[flags.FlagValues], None],
    run: Callable[[Given], int],
    argv: Sequence[str] | None = None,
    *,
    folder: str = "",
) -> int:
    """Runs a command that has a `--config`; `--help` prints its usage.

    Args:
        name: `python -m` takes it.
        usage: of `--help`.
        define: adds the command's own flags to `--config` and `--workdir`.
        run: the command itself; returns its status.
        argv: with the program's name first; the process's where None.
        folder: what the default workdir's name begins with.

    Returns:
        The exit status, 2 for a user's mistake, told in one line.
    """
    argv = list(sys.argv if argv is None else argv)

    def parsed() -> int:
        if any(flag in _HELP for flag in argv[1:]):
            print(usage)
            return 0
        values = parse(argv, define)
        console.speak_in_lines()
        workdir = pathlib.Path(values.workdir or default_workdir(values, folder)).expanduser()
        command = f"python -m {name} {shlex.join(argv[1:])}"
        return run(Given(values, given_keys(values), workdir, command))

    with preemption.listening():
        return console.exit_status(parsed)


def parse(argv: list[str], define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """A command's flags and `--config`, every fault of theirs a `UserError`.

    absl by itself prints a traceback for an unknown config key.

    Args:
        argv: with the program's name first.
        define: adds the command's own flags to `--config` and `--workdir`.

    Returns:
        The flags; `config` is not resolved yet.
    """
    from ml_collections import config_flags

    values = flags.FlagValues()
    argv = [argv[0], *_normalised(argv[1:])]
    flags.DEFINE_string("workdir", "", "where everything goes", flag_values=values)
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
    return values


def _normalised(argv: Sequence[str]) -> list[str]:
    """Flags as `--name=value`, `--config` with the file that is there, `--dry_run` with a value."""
    normal = []
    waiting = iter(argv)
    for flag in waiting:
        if flag.startswith("-") and not flag.startswith("--"):
            flag = "-" + flag
        if flag in ("--config", "--cfg", "--workdir", "--stage"):
            value = next(waiting, None)
            if value is None:
                raise UserError(f"{flag} has no value (see --help)")
            flag = f"{flag}={value}"
        if flag.partition("=")[0] in ("--flagfile", "--undefok"):
            raise UserError(f"there is no flag {flag.partition('=')[0]} (see --help)")
        if flag.startswith("--cfg="):
            flag = f"--config={official.__file__}:{flag.removeprefix('--cfg=')}"
        if flag.startswith("--config="):
            flag = _found_config(flag)
        key, _, value = flag.removeprefix("--config.").partition("=")
        if flag.startswith("--config.") and key in SCHEMA:
            flag = f"--config.{key}={SCHEMA[key].of_text(value)}" if "=" in flag else flag
        normal.append("--dry_run=plan" if flag == "--dry_run" else flag)
    return normal


def _check_key(name: str) -> None:

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
    path = pathlib.Path(file)
    if path.is_file():
        return flag
    found = files.find(path.stem) if path.parts == ("configs", f"{path.stem}.py") else None
    if found is None:
        raise UserError(f"there is no config file {file}")
    return f"{name}={found}{colon}{variant}"


def default_workdir(values: flags.FlagValues, prefix: str = "") -> str:
    """`runs/<prefix><config>-<variant>[-<8 hex of the overrides>]`."""
    flag = _config_flag(values)
    file, _, variant = flag.config_filename.partition(":")
    name, *pairs = variant.split(",")
    if name.endswith((".yaml", ".yml")):  # an official file's path
        parts = pathlib.PurePath(name).with_suffix("").parts
        name = "-".join(part for part in parts[-3:] if part not in ("/", "..", "configs"))
    overrides = sorted([*pairs, *(f"{k}={v}" for k, v in flag.override_values.items())])
    workdir = f"runs/{prefix}{pathlib.Path(file).stem}" + (f"-{name}" if name else "")
    if overrides:
        workdir += "-" + storage.fingerprint("\n".join(overrides).encode())[:8]
    return workdir
