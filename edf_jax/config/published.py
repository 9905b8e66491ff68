"""The published settings by dataset and IPC, and what other datasets take of them.

`published.json` holds the official EDF configs' values under their own names (with the slips of
those files put right: IPCs that say 50, a beta that is text). This module translates the names.

References:
    Wang et al., EDF (2410.17193), official code.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from edf_jax.config.resolve import parse_variant
from edf_jax.data.subsets import comp_dd_categories
from edf_jax.runtime.errors import UserError

# The official names of what is the same value here.
_SAME = {
    "Iteration": "distill.iterations",
    "act_threshold": "cam.threshold",
    "batch_syn": "distill.batch_syn",
    "batch_train": "evaluate.batch",
    "beta": "cam.beta",
    "current_max_start_epoch": "distill.current_max_start_epoch",
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
    "res": "data.resolution",
    "syn_steps": "distill.syn_steps",
    "threshold": "distill.threshold",
    "zca": "data.zca",
}
# The official values that are what a method gives anyway stay 'auto', so that another method can
# be chosen for the same settings.
_DIFFERENT: dict[str, dict[Any, dict[str, Any]]] = {
    "Sequential_Generation": {True: {}, False: {"distill.start_schedule": "fixed"}},
    "pix_init": {"samples_predicted_correctly": {}, "real": {"distill.init": "real"}},
    # An ImageNet ResNet-18 is what cam.network=auto takes where its weights are given.
    "model_name": {"ResNet18": {}, "ConvNet": {"cam.network": "expert"}},
}
# What the official script never reads, and the CAM layer, which follows from the network.
_UNUSED = ("loss_threshold_low", "loss_threshold_high", "target_layer_deep")
# The official code's values where a row has no such key.
_WHERE_ABSENT = {"distill.drop": 0.0, "model.name": "ConvNet"}

# PAD's share of first parameters left out, published for CIFAR-10 (2408.03360).
_PAD = {
    ipc: {"distill.depth_ratio": share} for ipc, share in (("1", 0.0), ("10", 0.5), ("50", 0.25))
}
_IMAGENET = {"data.source": "folder", "data.resolution": 128}
# An official network that goes by the resolution when that is the user's to choose.
_DEPTH_BY_RESOLUTION = {"model.name": "ConvNet"}
# Mirrored digits are not digits.
_NO_FLIP = {"augment.strategy": "color_crop_cutout_scale_rotate"}
_SMALL = {**_DEPTH_BY_RESOLUTION, "data.zca": False}


@dataclasses.dataclass(frozen=True)
class _Group:
    """A dataset's configs.

    Attributes:
        values: dotted keys that say what the data is, and override the settings.
        settings_of: the row of `published.json`.
        published: whether that row is this dataset's own.
    """

    values: Mapping[str, Any]
    settings_of: str
    published: bool = True


def _subset(name: str) -> _Group:
    return _Group({**_IMAGENET, "data.subset": name}, name)


_GROUPS = {
    **{
        name: _subset(name)
        for name in (
            "imagenette",
            "imagewoof",
            "imagemeow",
            "imageyellow",
            "imagefruit",
            "imagesquawk",
        )
    },
    "imagenet100": _Group({**_IMAGENET, "data.subset": "imagenet100"}, "imagenette", False),
    "cifar10": _Group(
        {"data.source": "tfds", "data.name": "cifar10", "data.resolution": 32}, "cifar-10"
    ),
    "cifar100": _Group(
        {"data.source": "tfds", "data.name": "cifar100", "data.resolution": 32}, "cifar-100"
    ),
    "tinyimagenet": _Group({"data.source": "folder", "data.name": "tiny_imagenet"}, "tinyimagenet"),
    "fashion_mnist": _Group(
        {"data.source": "idx", "data.name": "fashion_mnist", "data.resolution": 28, **_SMALL},
        "cifar-10",
        False,
    ),
    "mnist": _Group(
        {
            "data.source": "tfds",
            "data.name": "mnist",
            "data.resolution": 28,
            **_SMALL,
            **_NO_FLIP,
        },
        "cifar-10",
        False,
    ),
    "svhn": _Group(
        {
            "data.source": "tfds",
            "data.name": "svhn_cropped",
            "data.resolution": 32,
            **_SMALL,
            **_NO_FLIP,
        },
        "cifar-10",
        False,
    ),
    "folder": _Group({**_IMAGENET, **_DEPTH_BY_RESOLUTION}, "imagenette", False),
}

# Comp-DD's categories without published settings, and the nearest of those with: an animal for
# animals, things for things.
_NEAREST_CATEGORY = {
    "fish": "bird",
    "snake": "bird",
    "insect": "bird",
    "round": "car",
    "music": "car",
}

_UNPUBLISHED_IPCS = ("1", "10", "50")


@functools.cache
def rows() -> dict[str, dict[str, dict[str, Any]]]:
    """`published.json`: official names and values by dataset and IPC."""
    text = importlib.resources.files(__package__).joinpath("published.json").read_text("utf-8")
    return json.loads(text)


def settings(dataset: str, ipc: str) -> dict[str, Any]:
    """The published settings as dotted keys of ours.

    Args:
        dataset: a name in `rows()`.
        ipc: images per class, in digits.
    """
    values = dict(_WHERE_ABSENT)
    for name, value in rows()[dataset][ipc].items():
        if name in _SAME:
            values[_SAME[name]] = value
        elif name not in _UNUSED:
            values |= _DIFFERENT[name][value]
    return values


def _variants_of(group: _Group) -> dict[str, dict[str, Any]]:
    published = rows()[group.settings_of]
    return {
        f"ipc{ipc}": {
            **settings(group.settings_of, ipc),
            **(_PAD.get(ipc, {}) if group.settings_of == "cifar-10" and group.published else {}),
            **group.values,
            "published": group.published,
            "settings_of": f"{group.settings_of} ipc{ipc}",
        }
        for ipc in (published if group.published else _UNPUBLISHED_IPCS)
    }


def variants(dataset: str) -> dict[str, dict[str, Any]]:
    """The variants of a config file, each as dotted keys and values.

    Args:
        dataset: the config file's name without `.py`: a dataset, or `comp_dd`, whose variants are
            named by category, half and IPC (`bird_easy_ipc10`).

    Raises:
        UserError: there is no such dataset.
    """
    if dataset == "comp_dd":
        return {
            f"{subset}_{variant}": values
            for subset, group in _comp_dd().items()
            for variant, values in _variants_of(group).items()
        }
    if dataset not in _GROUPS:
        raise UserError(f"there are no settings for {dataset!r}")
    found = _variants_of(_GROUPS[dataset])
    if dataset == "cifar10":
        # The official files name five blocks, the papers' tables three.
        for name, values in list(found.items()):
            if values["model.name"] != "ConvNet":
                found[f"{name}_d3"] = {**values, "model.name": "ConvNetD3"}
    return found


def _comp_dd() -> dict[str, _Group]:
    groups = {}
    for category in comp_dd_categories():
        nearest = _NEAREST_CATEGORY.get(category, category)
        for half in ("easy", "hard"):
            name = f"{category}_{half}"
            groups[name] = dataclasses.replace(
                _subset(name), settings_of=f"{nearest}_{half}", published=nearest == category
            )
    return groups


def config(dataset: str, text: str, more: Mapping[str, Mapping[str, Any]] | None = None):
    """The config of `configs/<dataset>.py:<text>`.

    Args:
        dataset: as in `variants`.
        text: `<variant>[,key=value...]`.
        more: further variants.

    Raises:
        UserError: there is no such variant or key.
    """
    return parse_variant(text, {**variants(dataset), **(more or {})}, dataset)
