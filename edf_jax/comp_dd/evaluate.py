"""The command that scores anyone's distilled images on a subset of Comp-DD.

    python -m edf_jax.comp_dd.evaluate --data_path=/data/imagenet --distilled=logged_files/bird \\
        --category=bird --subset=easy --model=ConvNetD5

The official command line works too: `--data_dir`, `--label_dir`, `--lr_dir`, `--lr_net`, `--dsa`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from edf_jax.comp_dd import find_comp_dd
from edf_jax.config import files
from edf_jax.config.resolve import AUTO, resolve
from edf_jax.evaluate.foreign import (
    add_official_flags,
    evaluate_set,
    official_values,
    run_in_flags,
)
from edf_jax.report.tables import result_table
from edf_jax.runtime import console, storage

_DESCRIPTION = """\
Trains networks from scratch on distilled images of a Comp-DD subset, and tests them on ImageNet's
validation images of its ten classes. Prints a table, and last one line: RESULT {json}."""
# What this command calls a config's keys.
_FLAGS = {
    "data.path": "data_path",
    "data.resolution": "im_size",
    "data.cache_dir": "cache_dir",
    "evaluate.num": "num",
    "evaluate.epochs": "epochs",
    "evaluate.batch": "batch",
    "evaluate.protocol": "protocol",
    "evaluate.labels": "labels",
    "evaluate.baselines": "baselines",
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
        default="",
    )
    add_official_flags(parser)
    add("category", "bird, car, dog, fish, snake, insect, round or music", required=True)
    add("subset", "easy or hard", required=True)
    add("model", "network to train (default: the one that the images were distilled with)")
    add("im_size", "side of the images, pixels (default 128)", type=int, default=128)
    add("num", "networks (default 5)", type=int, default=5)
    add("epochs", "epochs of each (default 1000)", type=int, default=1000)
    add("batch", "batch size (default 128)", type=int, default=128)
    add("protocol", "plain, rded or sre2l (default plain)", default="plain")
    add("labels", "own, hard or teacher (default the protocol's)", default=AUTO)
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
    values |= official_values(options, options.distilled)
    return resolve(files.load("comp_dd", f"{subset.name}_ipc1"), **{"seed": options.seed, **values})


def _run(options: argparse.Namespace) -> int:
    config = make_config(options)
    result = evaluate_set(config, options.model)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""
    flags = _FLAGS | {"evaluate.distilled": "distilled", "evaluate.baseline_rates": "lr_net"}
    flags |= {"evaluate.networks": "model", "model.name": "model"}
    return run_in_flags(
        lambda: _run(_parse(arguments)), flags, name="edf_jax.comp_dd.evaluate"
    )


if __name__ == "__main__":
    sys.exit(main())
