"""The command that scores anyone's distilled images on a subset of Comp-DD.

    python -m edf_jax.comp_dd.evaluate --data_path=/data/imagenet --distilled=logged_files/bird \\
        --category=bird --subset=easy --model=ConvNetD5
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from edf_jax import stages
from edf_jax.comp_dd import find_comp_dd
from edf_jax.config import files
from edf_jax.config.resolve import SCHEMA, resolve
from edf_jax.data import describe_dataset
from edf_jax.evaluate import labelled_images
from edf_jax.evaluate.stage import evaluate_run
from edf_jax.models.choose import network_for
from edf_jax.report.tables import result_table
from edf_jax.runs.prepare import prepare
from edf_jax.runtime import console, devices, storage
from edf_jax.runtime.errors import UserError

_DESCRIPTION = """\
Trains networks from scratch on distilled images of a Comp-DD subset, and tests them on ImageNet's
validation images of its ten classes. Prints a table, and last one line: RESULT {json}."""
# What this command calls a config's keys.
_FLAGS = {
    "data.path": "data_path",
    "data.resolution": "im_size",
    "data.cache_dir": "cache_dir",
    "evaluate.distilled": "distilled",
    "evaluate.num": "num",
    "evaluate.epochs": "epochs",
    "evaluate.batch": "batch",
    "evaluate.protocol": "protocol",
    "evaluate.baselines": "baselines",
}
# A network as its name says.
_PLAIN_MODEL = {
    "model.width": 0,
    "model.depth": 0,
    "model.norm": "",
    "model.activation": "",
    "model.pooling": "",
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(
        prog="python -m edf_jax.comp_dd.evaluate", description=_DESCRIPTION, allow_abbrev=False
    )

    def add(name: str, told: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=told, **options)

    add("data_path", "ImageNet: train/<WordNet id>/*, val/<WordNet id>/*", required=True)
    add(
        "distilled",
        "a run, a .safetensors or .npz file, the .pt files of the official code (their folder or "
        "images_best.pt), or a folder of images",
        required=True,
    )
    add("category", "bird, car, dog, fish, snake, insect, round or music", required=True)
    add("subset", "easy or hard", required=True)
    add("model", "network to train (default: the one that the images were distilled with)")
    add("im_size", "side of the images, pixels (default 128)", type=int, default=128)
    add("num", "networks (default 5)", type=int, default=5)
    add("epochs", "epochs of each (default 1000)", type=int, default=1000)
    add("batch", "batch size (default 128)", type=int, default=128)
    add("protocol", "plain, rded or sre2l (default plain)", default="plain")
    add("baselines", "real images beside: random, herding, k_centre (default none)", default="")
    add("seed", "fixes everything random (default 0)", type=int, default=0)
    add("cache_dir", "where prepared images lie (default: the user's cache)", default="")
    add("out", "a file for all figures as JSON")
    return parser.parse_args(arguments)


def make_config(options: argparse.Namespace):
    """The config that a command asks for, resolved.

    Raises:
        UserError: there is no such subset, or a value is impossible.
    """
    subset = find_comp_dd(options.category, options.subset)
    values = {key: getattr(options, flag) for key, flag in _FLAGS.items()}
    return resolve(files.load("comp_dd", f"{subset.name}_ipc1"), **{"seed": options.seed, **values})


def evaluate(config, model: str | None = None) -> dict[str, Any]:
    """Figures of a distilled set on a Comp-DD subset, by the protocols of `edf_jax.evaluate`.

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
    stages.check_files(config, planned)
    _with_model(config, {}, model, planned)
    dataset = prepare(config)
    subject = labelled_images.read(config.evaluate.distilled, dataset.info)
    config = _with_model(config, subject.config, model, dataset.info)
    with tempfile.TemporaryDirectory() as folder:
        return evaluate_run(config, dataset, [], pathlib.Path(folder))


def _with_model(config, own: Mapping[str, Any], model: str | None, info):
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




def _run(options: argparse.Namespace) -> int:
    config = make_config(options)
    result = evaluate(config, options.model)
    result = {"category": options.category, "subset": options.subset, **result}
    if options.out:
        storage.write_text(pathlib.Path(options.out), json.dumps(result, indent=1) + "\n")
    print(result_table(result))
    sys.stdout.flush()
    row = result["rows"][0]
    shown = ("network", "protocol", "mean", "std", "num_eval", "rate", "rate_from")
    line = {"category": options.category, "subset": options.subset}
    line |= {name: row[name] for name in shown}
    print("RESULT " + json.dumps(line), flush=True)
    return 0


def _in_flags(message: str) -> str:
    """A message about config keys as one about this command's flags."""
    message = message.replace("config key ", "")
    for key, flag in {**_FLAGS, "evaluate.networks": "model", "model.name": "model"}.items():
        message = re.sub(rf"(--config\.)?\b{re.escape(key)}\b", f"--{flag}", message)
    return message


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""

    def run() -> int:
        try:
            options = _parse(arguments)
            console.speak_in_lines()
            return _run(options)
        except UserError as error:
            raise UserError(_in_flags(str(error))) from error

    return console.exit_status(run, name="edf_jax.comp_dd.evaluate")


if __name__ == "__main__":
    sys.exit(main())
