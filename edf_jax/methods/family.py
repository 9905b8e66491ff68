"""The parts that methods are made of: small functions, each chosen by its name in a config.

A new idea is one more entry here (or in `dsa`, `gradcam`, `soft_labels`, where its like lives)
and a method that names it; see `docs/extending.md`.

References:
  MTT (2203.11932), TESLA (2211.10586), FTD (2211.11004), DATM (2310.05773), PAD (2408.03360), EDF
  (2410.17193).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from edf_jax.methods import curriculum
from edf_jax.methods.cpd import Selection, common_pattern_dropout, deep_layers
from edf_jax.methods.curriculum import start_epoch_bound
from edf_jax.methods.parametrisation.frequency import frequency
from edf_jax.methods.parametrisation.mirror import mirror
from edf_jax.methods.parametrisation.multi_formation import multi_formation
from edf_jax.methods.parametrisation.pixels import pixels
from edf_jax.methods.parametrisation.stored import Parametrisation

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
LOSS_MASKS: dict[str, Callable[[Any], Selection | None]] = {
    "none": lambda options: None,
    "cpd": lambda options: common_pattern_dropout(options.drop),
    "deep_layers": lambda options: deep_layers(options.depth_ratio),
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

# `distill.parametrisation`: its factor -> how synthetic images are stored.
PARAMETRISATIONS: dict[str, Callable[[int], Parametrisation]] = {
    "pixels": pixels,
    "multi_formation": multi_formation,
    "frequency": frequency,
    "mirror": mirror,
}


def parametrisation(options) -> Parametrisation:
    """How a config stores synthetic images.

    Args:
        options: `config.distill`.
    """
    return PARAMETRISATIONS[options.parametrisation](options.parametrisation_factor)


def num_images(options, num_classes: int) -> int:
    """How many synthetic images a student sees, those decoded from `ipc` stored ones per class.

    Args:
        options: `config.distill`.
        num_classes: of the data.
    """
    return options.ipc * num_classes * parametrisation(options).images


# `experts.schedule`: zero-based epoch -> the share of each class, by difficulty, that it shows.
EXPERT_SCHEDULES: dict[str, Callable[[int], curriculum.Share]] = {
    "all": lambda epoch: curriculum.EVERYTHING,
    "pad": curriculum.pad_share,
}


# What the methods of the family are: the parts of the loop that each chooses, and the numbers that
# come with it. A part stands where a config says 'auto'; a number stands unless the user, or the
# config's variant for this method, gives another (`edf_jax.config.resolve`).
_HARD_LABELS: dict[str, Any] = {
    "experts.optimizer": "sgd",
    "experts.schedule": "all",
    "augment.crop_ratio": 0.125,
    "distill.start_schedule": "fixed",
    "distill.min_start_epoch": 0,
    "distill.threshold": 0.0,
    "distill.loss_mask": "none",
    "distill.labels": "hard",
    "distill.pixel_weight": "none",
    "distill.gradient": "exact",
    "distill.init": "real",
}


_LEARNED_LABELS: dict[str, Any] = {
    "experts.optimizer": "gsam",
    "experts.schedule": "all",
    "augment.crop_ratio": 0.125,
    "distill.start_schedule": "sequential",
    "distill.loss_mask": "none",
    "distill.labels": "soft_learned",
    "distill.pixel_weight": "none",
    "distill.gradient": "exact",
    "distill.init": "predicted_correctly",
}


METHODS: dict[str, dict[str, Any]] = {
    "mtt": {**_HARD_LABELS, "evaluate.batch": 256},
    "tesla": {
        **_HARD_LABELS,
        "distill.labels": "soft_target",
        "distill.gradient": "tesla",
        "evaluate.batch": 256,
    },
    "ftd": {**_HARD_LABELS, "experts.optimizer": "gsam", "distill.average": 0.9995},
    "datm": _LEARNED_LABELS,
    "pad": {**_LEARNED_LABELS, "experts.schedule": "pad", "distill.loss_mask": "deep_layers"},
    "edf": {
        **_LEARNED_LABELS,
        "augment.crop_ratio": 0.25,
        "distill.loss_mask": "cpd",
        "distill.pixel_weight": "dae",
    },
}
