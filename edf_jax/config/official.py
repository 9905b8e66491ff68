"""The official codes' YAML files as configs: `--cfg=FILE.yaml` stands for `--config`.

Each name of theirs is told with ours. A name that isn't known ends in one line, since a setting
that is passed over in silence gives another experiment.

References:
    The configs of EDF (arXiv 2410.17193), DATM (2310.05773) and PAD (2408.03360).
"""

from __future__ import annotations

import logging
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from edf_jax.config.resolve import SCHEMA, parse_variant
from edf_jax.runtime.errors import UserError

_log = logging.getLogger("edf_jax")
# Names with one key of ours.
SAME = {
    "Iteration": "distill.iterations",
    "Momentum_y": "distill.momentum_y",
    "act_threshold": "cam.threshold",
    "batch_syn": "distill.batch_syn",
    "batch_train": "evaluate.batch",
    "beta": "cam.beta",
    "current_max_start_epoch": "distill.current_max_start_epoch",
    "data_path": "data.path",
    "depth_ratio": "distill.depth_ratio",
    "dsa_strategy": "augment.strategy",
    "epoch_eval_train": "evaluate.epochs",
    "eval_it": "distill.eval_every",
    "expansion_end_epoch": "distill.expansion_end",
    "expert_epochs": "distill.expert_epochs",
    "interval": "cam.every",
    "ipc": "distill.ipc",
    "loss_threshold": "distill.drop",
    "lr_img": "distill.lr_img",
    "lr_lr": "distill.lr_lr",
    "lr_teacher": "distill.lr_teacher",
    "lr_y": "distill.lr_y",
    "max_start_epoch": "distill.max_start_epoch",
    "min_start_epoch": "distill.min_start_epoch",
    "model": "model.name",
    "num_eval": "evaluate.during_num",
    "res": "data.resolution",
    "syn_steps": "distill.syn_steps",
    "threshold": "distill.threshold",
    "train_epochs": "experts.epochs",
    "zca": "data.zca",
}
# Names whose values are called otherwise here; other values can't be had.
OTHERWISE: dict[str, dict[Any, dict[str, Any]]] = {
    "Sequential_Generation": {
        True: {"distill.start_schedule": "sequential"},
        False: {"distill.start_schedule": "fixed"},
    },
    "dsa": {True: {}, False: {"augment.strategy": "none"}},
    "eval_mode": {"S": {}},
    # An ImageNet ResNet-18 is what cam.network=auto takes where its weights are given.
    "model_name": {"ResNet18": {"cam.network": "auto"}, "ConvNet": {"cam.network": "expert"}},
    "no_aug": {False: {}},
    "pix_init": {
        "samples_predicted_correctly": {"distill.init": "predicted_correctly"},
        "real": {"distill.init": "real"},
        "noise": {"distill.init": "noise"},
    },
    "teacher_label": {False: {"distill.labels": "hard"}},
    "texture": {False: {}},
}
# What no script of theirs reads, or what changes no figure: names of runs, where and how things
# are kept, whether iteration 0 is evaluated, and the CAM layer, which follows from the network.
# Their experts are read by `edf_jax.convert`.
UNREAD = {
    "Initial_Step",
    "Initialize_Label_Model",
    "Initialize_Label_Model_Dir",
    "Initialize_Label_With_Another_Model",
    "Label_Model_Timestamp",
    "batch_real",
    "buffer_path",
    "canvas_samples",
    "canvas_size",
    "device",
    "ema_decay",
    "force_save",
    "learn_end_epoch",
    "load_all",
    "loss_ratio",
    "loss_threshold_high",
    "loss_threshold_low",
    "lr_init",
    "max_experts",
    "max_files",
    "name",
    "parall_eva",
    "project",
    "record_loss",
    "skip_first_eva",
    "target_layer_deep",
}
# Where a file has no such name. (The official default of loss_threshold keeps nothing.)
_DEFAULTS = {"loss_threshold": 0.0, "num_eval": 1, "Sequential_Generation": True}
_DATASETS: dict[str, dict[str, Any]] = {
    name: {"data.source": "tfds", "data.name": name, "data.resolution": 32}
    for name in ("cifar10", "cifar100")
} | {"tiny": {"data.source": "folder", "data.name": "tiny_imagenet", "data.resolution": 64}}


def data_of(dataset: str, subset: str = "imagenette") -> dict[str, Any]:
    """Our keys for a dataset as the official codes name it.

    Args:
        dataset: `CIFAR10`, `CIFAR100`, `Tiny`, `ImageNet`, or a subset of ImageNet.
        subset: of ImageNet.
    """
    name = re.sub(r"[-_]", "", dataset.lower())
    if name.startswith("tiny"):
        name = "tiny"
    if name in _DATASETS:
        return _DATASETS[name]
    chosen = subset if name == "imagenet" else dataset
    return {"data.source": "folder", "data.subset": chosen.lower(), "data.resolution": 128}


def translate(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each official name the keys of ours that it sets; none where nothing depends on it.

    Args:
        settings: what a file holds, but for `dataset` and `subset`.

    Raises:
        UserError: a name isn't known, or its value can't be had here.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if name in SAME:
            found[name] = {SAME[name]: _number(name, value)}
        elif name in OTHERWISE:
            if value not in OTHERWISE[name]:
                known = ", ".join(map(repr, OTHERWISE[name]))
                raise UserError(f"{name}: {value!r} can't be had here; {known} can")
            found[name] = OTHERWISE[name][value]
        elif name in UNREAD:
            found[name] = {}
        else:
            raise UserError(f"{name} is no setting of the official codes'")
    return found


def _number(name: str, value: Any) -> Any:
    """YAML takes 1e-05 for a word, as it takes the `beta: '1.0s'` of one official file."""
    kind = SCHEMA[SAME[name]].kind
    if kind not in (int, float) or not isinstance(value, str):
        return value
    begins = re.match(r"[+-]?[\d.]+(e[+-]?\d+)?", value.strip(), re.IGNORECASE)
    try:
        return kind(float(begins[0])) if begins else value
    except ValueError:
        return value


def read(path: pathlib.Path) -> dict[str, Any]:
    """An official file's settings as keys and values of ours; says on standard error which.

    Raises:
        UserError: it can't be read, or holds something else.
    """
    import yaml

    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--cfg={path} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told):
        raise UserError(f"--cfg={path} isn't an official config, which is 'name: value' a line")
    dataset = str(told.pop("dataset", "CIFAR10"))
    settings = {**_DEFAULTS, **told}
    data = data_of(dataset, str(settings.pop("subset", "imagenette")))
    try:
        found = {"dataset": data, **translate(settings)}
    except UserError as error:
        raise UserError(f"--cfg={path}: {error}") from None
    for name, values in found.items():
        ours = ", ".join(f"{key}={value}" for key, value in values.items())
        print(f"{name}: {ours or 'nothing depends on it here'}", file=sys.stderr)
    named = re.search(r"ipc[_-]?(\d+)", path.stem, re.IGNORECASE)
    if named and "ipc" in told and int(named[1]) != told["ipc"]:
        _log.warning(
            "%s holds ipc: %s, as two official files wrongly do; add --config.distill.ipc=%s if "
            "its name is right", path, told["ipc"], named[1],
        )  # fmt: skip
    return {key: value for values in found.values() for key, value in values.items()}


def get_config(text: str):
    """The config of `PATH.yaml[,key=value...]`, as those in `configs/` give theirs."""
    path, _, _ = text.partition(",")
    return parse_variant(text, {path: read(pathlib.Path(path).expanduser())}, "official")
