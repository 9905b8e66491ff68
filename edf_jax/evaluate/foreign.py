"""Anyone's set measured by one command: no run, no experts, and the official codes' flags."""

from __future__ import annotations

import argparse
import logging
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from edf_jax.config.resolve import SCHEMA, resolve
from edf_jax.data import describe_dataset
from edf_jax.evaluate import labelled_images
from edf_jax.evaluate.stage import evaluate_run
from edf_jax.models.choose import network_for
from edf_jax.runs.prepare import prepare
from edf_jax.runtime import console, devices
from edf_jax.runtime.errors import UserError

_log = logging.getLogger("edf_jax")
# A network as its name says.
_PLAIN_MODEL = {
    "model.width": 0,
    "model.depth": 0,
    "model.norm": "",
    "model.activation": "",
    "model.pooling": "",
}


def add_official_flags(parser: argparse.ArgumentParser) -> None:
    """The flags with which the official codes' evaluations are told of a set."""
    for name, what in {"data": "images", "label": "labels", "lr": "learned rate"}.items():
        parser.add_argument(f"--{name}_dir", default="", help=f"a .pt file with the {what}")
    parser.add_argument(
        "--dsa", default="True", choices=("True", "False"), help="augment (default True)"
    )
    parser.add_argument("--lr_net", default="", help="a rate, where the set comes without one")


def official_values(
    options: argparse.Namespace, distilled: str | None = None
) -> dict[str, Any]:
    """The config keys that the official flags set.

    Args:
        options: with the flags of `add_official_flags`.
        distilled: of a command that takes a set in other forms too, that flag.

    Raises:
        UserError: one of the three files isn't given, or two sets are.
    """
    files = [options.data_dir, options.label_dir, options.lr_dir]
    if any(files) == bool(distilled) or any(files) and not all(files):
        other = "" if distilled is None else ", or --distilled"
        raise UserError(f"give the set once: --data_dir, --label_dir and --lr_dir{other}")
    values: dict[str, Any] = {"evaluate.distilled": distilled or ",".join(files)}
    if options.dsa == "False":
        values["evaluate.augment"] = "none"
    if options.lr_net and any(files):
        _log.info("--lr_net=%s isn't used: the rate is that of --lr_dir", options.lr_net)
    elif options.lr_net:
        values["evaluate.baseline_rates"] = options.lr_net
    return values


def evaluate_set(config, model: str | None = None) -> dict[str, Any]:
    """Figures of a set from elsewhere.

    Args:
        config: resolved; `evaluate.distilled` says which set.
        model: the network to train; None is the one that the set was distilled with, where the
            set says, else that of the config.

    Returns:
        See `edf_jax.evaluate.stage.evaluate_run`.

    Raises:
        UserError: the data or the set is not there, or they don't fit.
    """
    devices.set_up(config.precision, deterministic=config.deterministic)
    planned = describe_dataset(config.data)
    if not planned.available:
        raise UserError(planned.advice)
    # Before any image is prepared.
    labelled_images.check(config.evaluate.distilled, planned)
    with_model(config, {}, model, planned)
    dataset = prepare(config)
    subject = labelled_images.read(config.evaluate.distilled, dataset.info)
    config = with_model(config, subject.config, model, dataset.info)
    with tempfile.TemporaryDirectory() as folder:
        return evaluate_run(config, dataset, [], pathlib.Path(folder))


def with_model(config, own: Mapping[str, Any], model: str | None, info):
    """The config with the right network as its own: the one that a learned rate is used on.

    That is the network that the set was distilled with; of a set that doesn't say, whichever is
    asked for.
    """
    told = {name: own[name] for name in own if name.startswith("model.") and name in SCHEMA}
    asked = {} if model is None else {**_PLAIN_MODEL, "model.name": model}
    if not told:
        return resolve(config, **asked)
    matched = resolve(config, **told)
    if model is None or network_for(resolve(config, **asked), info) == network_for(matched, info):
        return matched
    return resolve(matched, **{"evaluate.networks": model})


def run_in_flags(
    command: Callable[[], int], flags: Mapping[str, str], *, name: str
) -> int:
    """Runs a command whose mistakes are told by its own flags, not by config keys.

    Args:
        command: returns its status.
        flags: of a config key, the flag that sets it.
        name: begins the line.
    """

    def run() -> int:
        console.speak_in_lines()
        try:
            return command()
        except UserError as error:
            told = str(error).replace("config key ", "")
            for key, flag in flags.items():
                told = re.sub(rf"(--config\.)?\b{re.escape(key)}\b", f"--{flag}", told)
            raise UserError(told) from error

    return console.exit_status(run, name=name)
