"""The schema of a config: every key with its default, meaning and check."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from edf_jax import augment, gradcam
from edf_jax.devices import PRECISIONS
from edf_jax.errors import UserError
from edf_jax.models import network_names

AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        default: its value unless a config says otherwise; decides the type too.
        meaning: one line, with units.
        source: where the default comes from.
        choices: the allowed values, where they are few.
        at_least: smallest allowed number.
        below: numbers must be less than this.
        positive: numbers must be over zero.
    """

    default: Any
    meaning: str
    source: str = ""
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    below: float | None = None
    positive: bool = False

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        kind = type(self.default)
        if kind is bool or isinstance(value, bool):
            if type(value) is not kind:
                return f"must be of type {kind.__name__}"
        elif kind is float:
            if not isinstance(value, (int, float)):
                return "must be a number"
        elif not isinstance(value, kind):
            return f"must be of type {kind.__name__}"
        if self.choices and value not in self.choices:
            near = difflib.get_close_matches(str(value), self.choices, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"must be one of {', '.join(self.choices)}{hint}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value != value or value in (float("inf"), float("-inf")):
                return "must be a finite number"
            if self.positive and value <= 0:
                return "must be over 0"
            if self.at_least is not None and value < self.at_least:
                return f"must be at least {self.at_least}"
            if self.below is not None and value >= self.below:
                return f"must be below {self.below}"
        return None


_PUBLISHED = "EDF (2410.17193), official code"

SCHEMA: dict[str, Key] = {
    "seed": Key(0, "fixes everything random", at_least=0, below=2**31),
    "method": Key("edf", "fills every part that is 'auto'", choices=()),
    "precision": Key("float32", "what the networks compute in", choices=PRECISIONS),
    "deterministic": Key(False, "bit-identical runs on a GPU, somewhat slower"),
    # Real data.
    "data.source": Key(
        "cluttered_digits",
        "where images come from",
        choices=("cluttered_digits", "tfds", "folder", "idx", "npz"),
    ),
    "data.name": Key("", "the set's name, as its source knows it"),
    "data.path": Key("", "folder or file that holds it; '' looks where its source keeps it"),
    "data.subset": Key("", "a named choice of classes, such as 'imagenette' or 'bird_easy'"),
    "data.class_list": Key("", "a text file with one class a line, instead of a named subset"),
    "data.resolution": Key(32, "side of the square images in pixels; 0 keeps theirs", at_least=0),
    "data.zca": Key(False, "ZCA whitening instead of mean and deviation"),
    "data.resize": Key("squash", "how other shapes become square", choices=("squash", "crop")),
    "data.antialias": Key(True, "antialiased bilinear resizing; False is the older codes'"),
    "data.cache_dir": Key("", "where prepared images lie; '' is the user's cache folder"),
    "data.workers": Key(0, "threads that decode; 0 is one per core", at_least=0),
    "data.seed": Key(0, "fixes built-in composites", at_least=0),
    "data.difficulty": Key(
        0.5, "cluttered digits: 0 large on plain, 1 small on busy", at_least=0.0, below=1.0001
    ),
    "data.composites": Key(1, "cluttered digits: training images per digit sample", at_least=1),
    "data.test_composites": Key(1, "cluttered digits: test images per sample", at_least=1),
    # The network that experts, students and evaluation share.
    "model.name": Key("ConvNet", "from the registry; ConvNet's depth follows the resolution"),
    "model.width": Key(128, "channels of each block", _PUBLISHED, at_least=1),
    "model.depth": Key(0, "blocks; 0 follows the resolution (3 at 32, 4 at 64, 5 at 128)", at_least=0),
    "model.norm": Key("", "normalisation; '' is the name's own (instance)"),
    "model.activation": Key("", "activation; '' is the name's own (relu)"),
    "model.pooling": Key("", "pooling; '' is the name's own (avg)"),
    "model.convolution": Key(
        AUTO, "how convolutions are computed", choices=(AUTO, "platform", "matmul")
    ),
    # Augmentation.
    "augment.strategy": Key(
        augment.FULL_STRATEGY, "DSA's ops, of which a minibatch gets one", "DSA (2102.08259)"
    ),
    "augment.crop_ratio": Key(
        0.25, "largest shift over the side, student and evaluation", _PUBLISHED, at_least=0.0, below=1.0
    ),
    # Experts.
    "experts.num": Key(100, "K, how many", _PUBLISHED, at_least=1),
    "experts.epochs": Key(100, "E, epochs of each", _PUBLISHED, at_least=1),
    "experts.batch": Key(256, "batch size", _PUBLISHED, at_least=1),
    "experts.lr": Key(0.01, "learning rate", _PUBLISHED, positive=True),
    "experts.momentum": Key(0.0, "SGD momentum", _PUBLISHED, at_least=0.0, below=1.0),
    "experts.weight_decay": Key(0.0, "SGD weight decay", _PUBLISHED, at_least=0.0),
    "experts.optimizer": Key(AUTO, "the step", choices=(AUTO, "sgd", "gsam")),
    "experts.rho": Key(0.01, "GSAM's ascent radius", _PUBLISHED, at_least=0.0),
    "experts.gsam_alpha": Key(0.3, "GSAM's alpha", _PUBLISHED, at_least=0.0),
    "experts.adaptive": Key(True, "GSAM's ascent scaled by the weights", _PUBLISHED),
    "experts.crop_ratio": Key(
        0.125, "largest shift over the side in expert training", _PUBLISHED, at_least=0.0, below=1.0
    ),
    "experts.group": Key(0, "experts trained at once; 0 chooses", at_least=0),
    "experts.keep": Key("all", "snapshots kept on disk", choices=("all", "needed")),
    "experts.dir": Key("", "a store of experts to share; '' is in the run's folder"),
    # Distillation.
    "distill.ipc": Key(10, "synthetic images per class", at_least=1),
    "distill.iterations": Key(10000, "last outer iteration (they start from 0)", _PUBLISHED, at_least=0),
    "distill.syn_steps": Key(40, "N, the student's steps", _PUBLISHED, at_least=1),
    "distill.batch_syn": Key(1000, "synthetic images in a student's batch", _PUBLISHED, at_least=1),
    "distill.expert_epochs": Key(2, "M, epochs from start to target", _PUBLISHED, at_least=1),
    "distill.min_start_epoch": Key(0, "earliest start epoch", _PUBLISHED, at_least=0),
    "distill.current_max_start_epoch": Key(
        20, "the bound of start epochs at the first iteration", _PUBLISHED, at_least=1
    ),
    "distill.max_start_epoch": Key(40, "the bound of start epochs at the end", _PUBLISHED, at_least=1),
    "distill.expansion_end": Key(
        3000, "iteration at which the bound is the last", _PUBLISHED, at_least=1
    ),
    "distill.start_schedule": Key(
        AUTO, "whether the bound grows", choices=(AUTO, "sequential", "fixed")
    ),
    "distill.lr_img": Key(1000.0, "rate of the images", _PUBLISHED, at_least=0.0),
    "distill.lr_y": Key(2.0, "rate of the label logits", _PUBLISHED, at_least=0.0),
    "distill.lr_lr": Key(1e-5, "rate of the student's rate", _PUBLISHED, at_least=0.0),
    "distill.lr_teacher": Key(0.01, "alpha at the start", _PUBLISHED, positive=True),
    "distill.momentum_img": Key(0.5, "momentum of the images", _PUBLISHED, at_least=0.0, below=1.0),
    "distill.momentum_y": Key(0.9, "momentum of the labels", _PUBLISHED, at_least=0.0, below=1.0),
    "distill.momentum_lr": Key(0.5, "momentum of alpha", _PUBLISHED, at_least=0.0, below=1.0),
    "distill.threshold": Key(
        1.5, "matching losses over it change nothing; 0 is no gate", _PUBLISHED, at_least=0.0
    ),
    "distill.loss_mask": Key(
        AUTO, "which parameters count", choices=(AUTO, "none", "cpd", "deep_layers")
    ),
    "distill.drop": Key(0.25, "CPD's share of smallest losses left out", _PUBLISHED, at_least=0.0, below=1.0),
    "distill.depth_ratio": Key(
        0.5, "deep_layers' share of first parameters left out", "PAD (2408.03360)", at_least=0.0, below=1.0
    ),
    "distill.labels": Key(
        AUTO, "what labels are", choices=(AUTO, "hard", "soft_fixed", "soft_learned")
    ),
    "distill.pixel_weight": Key(AUTO, "weight of pixel gradients", choices=(AUTO, "none", "dae")),
    "distill.gradient": Key(AUTO, "through the student's steps", choices=(AUTO, "exact", "tesla")),
    "distill.init": Key(
        AUTO, "first images", choices=(AUTO, "predicted_correctly", "real", "noise", "centres")
    ),
    "distill.trajectories": Key(1, "expert trajectories averaged in an iteration", at_least=1),
    "distill.eval_every": Key(500, "iterations between evaluations", _PUBLISHED, at_least=1),
    "distill.save_every": Key(100, "iterations between resumable checkpoints", at_least=1),
    "distill.select": Key("last", "the set that the result is about", choices=("last", "test", "heldout")),
    # Class activation maps.
    "cam.network": Key(
        AUTO, "whose maps; auto takes imported weights if given", choices=(AUTO, "expert", "trained", "imported")
    ),
    "cam.weights": Key("", "file with a ResNet-18's weights (.pth, .safetensors)"),
    "cam.method": Key("grad_cam", "how maps are made", choices=tuple(gradcam.METHODS)),
    "cam.every": Key(100, "iterations between maps (the paper's interval)", _PUBLISHED, at_least=1),
    "cam.beta": Key(1.0, "DAE's addition where the map is high", _PUBLISHED, at_least=0.0),
    "cam.threshold": Key(0.0, "DAE's fixed threshold; 0 is the map's mean", _PUBLISHED, at_least=0.0, below=1.0),
    # Evaluation.
    "evaluate.networks": Key("", "comma-separated names; '' is the distilling network"),
    "evaluate.num": Key(5, "networks trained from scratch", at_least=1),
    "evaluate.epochs": Key(1000, "E_eval; one more is run", _PUBLISHED, at_least=1),
    "evaluate.batch": Key(128, "batch size", _PUBLISHED, at_least=1),
    "evaluate.momentum": Key(0.9, "SGD momentum", _PUBLISHED, at_least=0.0, below=1.0),
    "evaluate.weight_decay": Key(5e-4, "SGD weight decay", _PUBLISHED, at_least=0.0),
    "evaluate.during_num": Key(1, "networks of the evaluations during distillation", _PUBLISHED, at_least=1),
    "evaluate.during_epochs": Key(0, "their E_eval; 0 is evaluate.epochs", at_least=0),
    "evaluate.baseline_rates": Key(
        "0.001,0.003,0.01,0.03", "rates tried for the random baseline, on held-out training images"
    ),
    "evaluate.full_epochs": Key(
        0, "epochs on all real data for the upper reference; 0 takes the experts' last accuracy", at_least=0
    ),
    # The rest.
    "log.tensorboard": Key(True, "write TensorBoard events"),
    "log.wandb_project": Key("", "Weights & Biases project; '' is none"),
    "parallel.trajectory": Key(1, "devices over which trajectories are spread", at_least=1),
    "parallel.data": Key(1, "devices over which a student's batch is split", at_least=1),
}

# What a method of the family is: the parts of the loop it chooses.
METHODS: dict[str, dict[str, str]] = {
    "mtt": {
        "experts.optimizer": "sgd",
        "distill.start_schedule": "fixed",
        "distill.loss_mask": "none",
        "distill.labels": "hard",
        "distill.pixel_weight": "none",
        "distill.gradient": "exact",
        "distill.init": "real",
    },
}
METHODS["tesla"] = {**METHODS["mtt"], "distill.labels": "soft_fixed", "distill.gradient": "tesla"}
METHODS["ftd"] = {**METHODS["mtt"], "experts.optimizer": "gsam"}
METHODS["datm"] = {
    **METHODS["ftd"],
    "distill.start_schedule": "sequential",
    "distill.labels": "soft_learned",
    "distill.init": "predicted_correctly",
}
METHODS["edf"] = {**METHODS["datm"], "distill.loss_mask": "cpd", "distill.pixel_weight": "dae"}
SCHEMA["method"] = dataclasses.replace(SCHEMA["method"], choices=tuple(METHODS))

# Keys that may change between sittings of one run.
FREE = ("evaluate.", "log.", "distill.iterations", "distill.select", "parallel.", "data.workers")


def default_config(**values: Any):
    """A config with every default, and dotted keys set: `default_config(**{"distill.ipc": 1})`."""
    import ml_collections

    config = ml_collections.ConfigDict()
    for name, key in SCHEMA.items():
        group, _, leaf = name.rpartition(".")
        if group and group not in config:
            config[group] = ml_collections.ConfigDict()
        (config[group] if group else config)[leaf] = key.default
    set_keys(config, values)
    return config


def set_keys(config, values: Mapping[str, Any]) -> None:
    """Sets dotted keys.

    Raises:
        UserError: a key isn't in the schema.
    """
    for name, value in values.items():
        if name not in SCHEMA:
            raise UserError(unknown_key(name))
        group, _, leaf = name.rpartition(".")
        if type(SCHEMA[name].default) is float and type(value) is int:
            value = float(value)
        (config[group] if group else config)[leaf] = value


def unknown_key(name: str) -> str:
    """The line about a key that there isn't, with the nearest one."""
    near = difflib.get_close_matches(name, SCHEMA, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else "; see docs/configs.md for all keys"
    return f"config has no key {name}{hint}"


def flatten(config) -> dict[str, Any]:
    """A config as `{dotted key: value}`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat.update({f"{name}.{leaf}": v for leaf, v in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def parse_variant(text: str, variants: Mapping[str, Mapping[str, Any]], config_name: str):
    """The config of `<variant>[,key=value...]`.

    Args:
        text: what follows the colon in `--config=file.py:text`.
        variants: dotted keys and their values, by variant.
        config_name: the file's name, for messages.

    Raises:
        UserError: there is no such variant or key, or a value isn't of its key's type.
    """
    name, *pairs = text.split(",")
    if name not in variants:
        near = difflib.get_close_matches(name, variants, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"configs/{config_name}.py has no variant {name!r} (it has {', '.join(variants)}){hint}"
        )
    config = default_config(**variants[name])
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"config variant {text!r}: write {pair!r} as key=value")
        set_keys(config, {key: _parse_value(key, value)})
    return config


def _parse_value(name: str, text: str) -> Any:
    if name not in SCHEMA:
        raise UserError(unknown_key(name))
    kind = type(SCHEMA[name].default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise UserError(f"config key {name}={text!r} must be of type {kind.__name__}") from None


def resolve(config):
    """A checked copy in which every part that was 'auto' is what the method says.

    Raises:
        UserError: a key is unknown, or a value impossible by itself or beside the others.
    """
    flat = flatten(config)
    for name in flat:
        if name not in SCHEMA:
            raise UserError(unknown_key(name))
    for name, key in SCHEMA.items():
        if name not in flat:
            raise UserError(f"config key {name} is missing")
        fault: Callable | str | None = key.fault(flat[name])
        if fault:
            raise UserError(f"config key {name}={flat[name]!r} {fault}")
    for name, part in METHODS[flat["method"]].items():
        if flat[name] == AUTO:
            flat[name] = part
    _check_together(flat)
    return default_config(**flat)


def _check_together(flat: Mapping[str, Any]) -> None:
    """Refuses values that can't stand beside each other.

    Raises:
        UserError: says which and what would do.
    """
    last = flat["distill.max_start_epoch"] - 1 + flat["distill.expert_epochs"]
    if last > flat["experts.epochs"]:
        raise UserError(
            f"distill.max_start_epoch={flat['distill.max_start_epoch']} with "
            f"distill.expert_epochs={flat['distill.expert_epochs']} needs experts of {last} epochs, "
            f"but experts.epochs={flat['experts.epochs']}: lower the one or raise the other"
        )
    bounds = ["distill.max_start_epoch"]
    if flat["distill.start_schedule"] == "sequential":
        bounds.insert(0, "distill.current_max_start_epoch")
        if flat[bounds[0]] > flat[bounds[1]]:
            raise UserError(
                f"{bounds[0]}={flat[bounds[0]]} is over {bounds[1]}={flat[bounds[1]]}: lower it"
            )
    if flat["distill.min_start_epoch"] >= flat[bounds[0]]:
        raise UserError(
            f"distill.min_start_epoch={flat['distill.min_start_epoch']} leaves no start epoch "
            f"below {bounds[0]}={flat[bounds[0]]}: lower it"
        )
    augment.parse_strategy(flat["augment.strategy"])
    known = {name.lower() for name in network_names()}
    for name in [flat["model.name"], *filter(None, flat["evaluate.networks"].split(","))]:
        if name.strip().lower() not in known:
            near = difflib.get_close_matches(name, network_names(), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"there is no network {name!r}{hint}")
    baseline_rates(flat["evaluate.baseline_rates"])
    if flat["cam.network"] == "imported" and not flat["cam.weights"]:
        raise UserError("cam.network=imported needs cam.weights=FILE (a ResNet-18 state dict)")
    if flat["distill.trajectories"] % flat["parallel.trajectory"]:
        raise UserError(
            f"parallel.trajectory={flat['parallel.trajectory']} must divide "
            f"distill.trajectories={flat['distill.trajectories']}"
        )


def baseline_rates(text: str) -> tuple[float, ...]:
    """The rates of `evaluate.baseline_rates`.

    Raises:
        UserError: it isn't a comma-separated list of positive numbers.
    """
    try:
        rates = tuple(float(rate) for rate in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(
            f"evaluate.baseline_rates={text!r} must be comma-separated positive numbers"
        )
    return rates
