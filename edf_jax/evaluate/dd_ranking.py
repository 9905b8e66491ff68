"""DD-Ranking's scores, which take labels and augmentation out of a comparison.

An accuracy says as much about the labels' teacher and the augmentation as about the images. The
label-robust score (LRS) weighs how far hard labels alone bring a network back to the real data's
accuracy (HLR, hard label recovery) against what is won over random real images by the same
protocol (IOR, improvement over random). The augmentation-robust score (ARS) weighs what is won
over random real images with the protocol's augmentation against what is won without any.

References:
  Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation" (2505.13300), and its
  documentation.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean of several networks and its deviation, in percent."""

    mean: float
    std: float = 0.0

    def minus(self, other: Estimate) -> Estimate:
        """The difference of independent measurements."""
        return Estimate(self.mean - other.mean, math.hypot(self.std, other.std))


class Score(NamedTuple):
    """A score in [0, 100] and its parts.

    Attributes:
        value: the score.
        std: to first order, from its parts' deviations.
        first: IOR of the LRS; the gain with augmentation of the ARS; percentage points.
        second: HLR of the LRS; the gain without augmentation of the ARS; percentage points.
    """

    value: float
    std: float
    first: Estimate
    second: Estimate


def normalise(alpha: float) -> float:
    """`100 (e^alpha - e^-1) / (e - e^-1)`: from [-1, 1] to [0, 100]."""
    return 100 * (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(
    real_hard: Estimate, distilled_hard: Estimate, distilled: Estimate, random: Estimate
) -> Score:
    """LRS, of `alpha = (IOR - HLR) / 2` in fractions of one.

    Args:
        real_hard: accuracy of all real data with hard labels.
        distilled_hard: of the distilled images with hard labels.
        distilled: of the distilled set by the protocol.
        random: of as many random real images by the same protocol.
    """
    improvement, recovery = distilled.minus(random), real_hard.minus(distilled_hard)
    return _score((improvement.mean - recovery.mean) / 2, improvement, recovery)


def augmentation_robust(
    distilled: Estimate, random: Estimate, distilled_plain: Estimate, random_plain: Estimate
) -> Score:
    """ARS, of `beta = (gain with augmentation + gain without) / 2` in fractions of one.

    Args:
        distilled: accuracy of the distilled set by the protocol.
        random: of as many random real images by the same protocol.
        distilled_plain: of the distilled set without augmentation.
        random_plain: of the random images without augmentation.
    """
    augmented, plain = distilled.minus(random), distilled_plain.minus(random_plain)
    return _score((augmented.mean + plain.mean) / 2, augmented, plain)


def _score(alpha: float, first: Estimate, second: Estimate) -> Score:
    std = math.hypot(first.std, second.std) / 2
    slope = 100 * math.exp(alpha / 100) / (math.e - math.exp(-1))
    return Score(normalise(alpha / 100), slope * std / 100, first, second)
