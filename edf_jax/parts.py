"""The parts that methods are made of: small functions, each chosen by its name in a config.

A new idea is one more entry here (or in `augment`, `gradcam`, `synthetic`, where its like lives)
and a method that names it; see `docs/extending.md`.

References:
  MTT (2203.11932), TESLA (2211.10586), FTD (2211.11004), DATM (2310.05773), PAD (2408.03360), EDF
  (2410.17193).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from edf_jax import matching, schedules


def start_epoch_bound(iteration: int, first: int, last: int, expansion_end: int) -> int:
    """The bound that start epochs stay below, growing from `first` to `last` (DATM).

    Args:
        iteration: the outer iteration.
        first: the bound at iteration 0.
        last: the bound from `expansion_end` on.
        expansion_end: an iteration.
    """
    return min(first + int((last - first) * iteration / expansion_end), last)


# `distill.start_schedule`: (config.distill, iteration) -> the bound that start epochs stay below.
START_BOUNDS: dict[str, Callable[[Any, int], int]] = {
    "fixed": lambda options, iteration: options.max_start_epoch,
    "sequential": lambda options, iteration: start_epoch_bound(
        iteration,
        options.current_max_start_epoch,
        options.max_start_epoch,
        options.expansion_end,
    ),
}

# `distill.loss_mask`: config.distill -> which parameters count in the matching loss.
LOSS_MASKS: dict[str, Callable[[Any], matching.Selection | None]] = {
    "none": lambda options: None,
    "cpd": lambda options: matching.common_pattern_dropout(options.drop),
    "deep_layers": lambda options: matching.deep_layers(options.depth_ratio),
}


class Labels(NamedTuple):
    """What becomes of the synthetic images' labels.

    Attributes:
        one_hot: they start as the images' classes, not as what experts say of them.
        learned: the outer optimiser moves them.
        of_target: every iteration takes those that its target snapshot gives the images.
    """

    one_hot: bool = False
    learned: bool = False
    of_target: bool = False


# `distill.labels`.
LABELS = {
    "hard": Labels(one_hot=True),
    "soft_fixed": Labels(),
    "soft_target": Labels(of_target=True),
    "soft_learned": Labels(learned=True),
}

# `distill.gradient`: whether it follows how each step depends on the steps before.
THROUGH_STEPS = {"exact": True, "tesla": False}

# `experts.schedule`: zero-based epoch -> the share of each class, by difficulty, that it shows.
EXPERT_SCHEDULES: dict[str, Callable[[int], schedules.Share]] = {
    "all": lambda epoch: schedules.EVERYTHING,
    "pad": schedules.pad_share,
}
