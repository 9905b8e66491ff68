"""The official codes' evaluation, by their own command line.

    python -m edf_jax.evaluate --lr_dir=lr_best.pt --data_dir=images_best.pt \\
        --label_dir=labels_best.pt --dataset=ImageNet --subset=imagenette --data_path=/data/imagenet
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from edf_jax.config import official
from edf_jax.config.resolve import default_config, resolve
from edf_jax.evaluate.foreign import (
    add_official_flags,
    evaluate_set,
    official_values,
    run_in_flags,
)
from edf_jax.methods.dsa import FULL_STRATEGY
from edf_jax.runs.statistics import interval_text, mean_text
from edf_jax.runtime import console, storage

_DESCRIPTION = """\
Trains networks from scratch on a set of the official codes (EDF, DATM, PAD) and tests them, with
the flags of their evaluation.py. Prints a figure, and last one line: RESULT {json}."""
# What this command calls a config's keys.
_FLAGS = {
    "data.path": "data_path",
    "data.cache_dir": "cache_dir",
    "data.zca": "zca",
    "augment.strategy": "dsa_strategy",
    "evaluate.num": "num",
    "evaluate.epochs": "epoch_eval_train",
    "evaluate.batch": "batch_train",
}
_TOLD = {
    "data.resolution": "res",
    "data.subset": "subset",
    "evaluate.distilled": "data_dir",
    "evaluate.baseline_rates": "lr_net",
    "model.name": "model",
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(
        prog="python -m edf_jax.evaluate", description=_DESCRIPTION, allow_abbrev=False
    )

    def add(name: str, told: str, **options) -> None:
        parser.add_argument(f"--{name}", help=told, **options)

    add_official_flags(parser)
    add("dataset", "CIFAR10, CIFAR100, Tiny or ImageNet (default CIFAR10)", default="CIFAR10")
    add("subset", "of ImageNet (default imagenette)", default="imagenette")
    add("data_path", "where the real images lie (default: their source's own place)", default="")
    add("res", "side of the images (default the dataset's, 128 for ImageNet)", type=int, default=0)
    add("zca", "the images are ZCA-whitened", action="store_true")
    add("model", "network to train (default ConvNet, of the depth for the images' size)")
    add("epoch_eval_train", "epochs (default 1000; one more is run)", type=int, default=1000)
    add("batch_train", "batch size (default 128)", type=int, default=128)
    add("dsa_strategy", "DSA's ops (default all six)", default=FULL_STRATEGY)
    add("num", "networks (default 5)", type=int, default=5)
    add("seed", "fixes everything random (default 0)", type=int, default=0)
    add("cache_dir", "where prepared images lie (default: the user's cache)", default="")
    add("out", "a file for all figures as JSON")
    return parser.parse_args(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    options = _parse(arguments)
    values = {key: getattr(options, flag) for key, flag in _FLAGS.items()}
    values |= official.data_of(options.dataset, options.subset) | official_values(options)
    if options.res:
        values["data.resolution"] = options.res
    # The set says how many images it has.
    common = {"seed": options.seed, "distill.ipc": 1, "evaluate.baselines": ""}
    result = evaluate_set(resolve(default_config(), **common, **values), options.model)
    if options.out:
        storage.write_text(pathlib.Path(options.out), json.dumps(result, indent=1) + "\n")
    row = result["rows"][0]
    figure = f"{mean_text(row['mean'], row['std'])} ({interval_text(row['interval'])})"
    print(f"test accuracy of {row['network']}, %: {figure}, {row['num_eval']} networks", flush=True)
    shown = ("network", "labels", "mean", "std", "num_eval", "rate", "rate_from")
    print("RESULT " + json.dumps({name: row[name] for name in shown}), flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""
    return run_in_flags(
        lambda: _run(arguments), {**_FLAGS, **_TOLD}, name="edf_jax.evaluate"
    )


if __name__ == "__main__":
    sys.exit(main())
