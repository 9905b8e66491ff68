"""What decides the experts' numbers, and which of their epochs are of use."""

from __future__ import annotations

import re
from typing import Any

from edf_jax.config.resolve import autos, flatten
from edf_jax.data import Dataset
from edf_jax.models import Network
from edf_jax.runtime.errors import UserError

# Experts trained at once where `experts.group` doesn't say.
_GROUP = 5
# What decides an expert's numbers after each epoch; with other values it is another expert.
_GROUPS = ("data.", "model.", "experts.")
_FREE = (
    "data.workers",
    "data.on_device",
    "data.cache_dir",
    "data.path",
    "data.held_out",  # in the dataset's fingerprint
    "experts.dir",
    "experts.share",
    "experts.num",
    "experts.epochs",
    "experts.keep",
    "experts.part",
    "experts.group",
    "experts.seed",
)
# What decides which epochs are needed; while it is open, all are kept.
_NEED = ("distill.min_start_epoch", "distill.max_start_epoch", "distill.expert_epochs")
# What only some choices of a part look at.
_ONLY_WITH = {
    "experts.optimizer": {"gsam": ("experts.rho", "experts.gsam_alpha", "experts.adaptive")},
    "experts.schedule": {
        "pad": (
            "experts.difficulty",
            "experts.difficulty_networks",
            "experts.difficulty_epochs",
        )
    },
}


def settings(config, dataset: Dataset, network: Network) -> dict[str, Any]:
    """All that decides the experts' numbers.

    Raises:
        UserError: one of them is still to be found from the data.
    """
    flat = flatten(config)
    for name in autos(flat):
        if name.startswith(_GROUPS) and name not in _FREE:
            raise UserError(f"{name}=auto is chosen by a run of edf_jax.main: give a number here")
    unread = {
        name
        for part, readers in _ONLY_WITH.items()
        for choice, names in readers.items()
        if flat[part] != choice
        for name in names
    }
    chosen = {
        name: value
        for name, value in flat.items()
        if name.startswith(_GROUPS) and name not in _FREE and name not in unread
    }
    return {
        **chosen,
        "seed": expert_seed(config),
        "precision": config.precision,
        "augment.strategy": config.augment.strategy,
        "dataset": dataset.info.fingerprint,
        "num_params": network.num_params,
    }


def group_size(config) -> int:
    """How many experts of a new store are trained together."""
    return config.experts.group or min(config.experts.num, _GROUP)


def part_of(config, groups: int) -> range:
    """The groups of experts that are to be trained here: all, or those of `experts.part`.

    Args:
        config: resolved.
        groups: how many there are.

    Raises:
        UserError: `experts.part` isn't one, or there are fewer groups than parts.
    """
    text = config.experts.part
    if not text:
        return range(groups)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"experts.part={text!r}: write I/N with I from 1 to N, such as 2/4")
    part, parts = int(match[1]) - 1, int(match[2])
    if parts > groups:
        raise UserError(
            f"experts.part={text!r}: the experts are trained in {groups} groups, which don't make "
            f"{parts} parts; lower experts.group or take fewer parts"
        )
    return range(part * groups // parts, (part + 1) * groups // parts)


def check_part(config, stage: str) -> None:
    """Refuses an `experts.part` that can't be had.

    Raises:
        UserError: it isn't one, or more than experts is asked for.
    """
    if config.experts.part:
        part_of(config, -(-config.experts.num // group_size(config)))
        for name in autos(flatten(config)):
            if name.startswith("experts."):
                raise UserError(
                    f"{name}=auto is found by looking at the experts, of which "
                    f"experts.part={config.experts.part!r} trains some: give a number"
                )
        if stage != "experts":
            raise UserError(
                f"experts.part={config.experts.part!r} trains some of the experts, which is not "
                "enough to go on: add --stage=experts"
            )


def expert_seed(config) -> int:
    """What fixes the experts' randomness."""
    return config.seed if config.experts.seed < 0 else config.experts.seed


def wanted_epochs(config) -> set[int]:
    """The epochs that a store is to hold."""
    if config.experts.keep == "needed" and not set(_NEED) & set(autos(flatten(config))):
        return needed_epochs(config)
    return set(range(config.experts.epochs + 1))


def needed_epochs(config) -> set[int]:
    """The epochs that distillation can ask for, and the last."""
    starts = range(config.distill.min_start_epoch, config.distill.max_start_epoch)
    targets = (start + config.distill.expert_epochs for start in starts)
    return {*starts, *targets, config.experts.epochs}
