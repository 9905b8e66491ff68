"""What several networks' accuracies say: mean, deviation, and how sure the mean is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Accuracies:
    """Test accuracies of several networks, in percent.

    Attributes:
        values: one a network.
        num_images: how many images they were tested on.
        after_last_epoch: one a network, where `values` are the best of several epochs.
        held_out: one a network, on held-out training images where there are any.
    """

    values: tuple[float, ...]
    num_images: int
    after_last_epoch: tuple[float, ...] | None = None
    held_out: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over networks, ddof 0 as the field reports it."""
        return float(np.std(self.values))

    def figures(self) -> dict[str, Any]:
        """Everything as JSON holds it; `interval` is the 95% interval of the mean."""
        figures = {**_summary(self.values), "num_eval": len(self.values)}
        figures |= {"accuracies": list(self.values), "num_images": self.num_images}
        if self.after_last_epoch is not None:
            summary = _summary(self.after_last_epoch)
            figures |= {f"last_epoch_{name}": value for name, value in summary.items()}
        return figures


def _summary(values: Sequence[float]) -> dict[str, Any]:
    mean, std = float(np.mean(values)), float(np.std(values))
    interval = interval95(mean, std, len(values))
    return {"mean": mean, "std": std, "interval": None if interval is None else list(interval)}


def interval95(mean: float, std: float, count: int) -> tuple[float, float] | None:
    """The 95% interval of a mean by Student's t; None for fewer than two values.

    Args:
        mean: of the values.
        std: theirs, with ddof 0.
        count: how many there are.
    """
    from scipy.special import stdtrit

    if count < 2:
        return None
    # std / sqrt(count - 1) is the sample deviation over sqrt(count).
    half = float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count - 1)
    return mean - half, mean + half


def mean_text(mean: float, std: float | None) -> str:
    """Mean and deviation as people read them."""
    return f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}")


def interval_text(interval: Sequence[float] | None) -> str:
    """An interval as people read it, a dash where there is none."""
    return "–" if interval is None else "{:.1f} to {:.1f}".format(*interval)
