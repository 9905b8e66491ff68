"""Which training images an epoch shows, by class and difficulty.

References:
  Li et al., "Prioritize Alignment in Dataset Distillation" (2408.03360): from easy to hard.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Share(NamedTuple):
    """Of each class in order of difficulty, the part from `first` to `last`, both in [0, 1]."""

    first: float
    last: float


EVERYTHING = Share(0.0, 1.0)


def pad_share(epoch: int) -> Share:
    """PAD's schedule from easy to hard.

    Args:
        epoch: zero-based. Up to 20 it shows a growing share of the easiest images, up to 40 all,
            then fewer and fewer of the easiest.
    """
    if epoch <= 20:
        return Share(0.0, 0.75 + 0.25 * epoch / 20)
    if epoch <= 40:
        return EVERYTHING
    return Share(0.1 if epoch <= 60 else 0.2, 1.0)


def chosen_by(share: Share, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The positions of a share of every class, in rising order, int32.

    Args:
        share: which.
        scores: `[N]`, higher is harder.
        labels: `[N]`.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(scores[members], kind="stable")]
        chosen.append(members[int(share.first * len(members)) : int(share.last * len(members))])
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def start_epoch_bound(iteration: int, first: int, last: int, expansion_end: int) -> int:
    """The bound that start epochs stay below, growing from `first` to `last` (DATM).

    Args:
        iteration: the outer iteration.
        first: the bound at iteration 0.
        last: the bound from `expansion_end` on.
        expansion_end: an iteration.
    """
    return min(first + int((last - first) * iteration / expansion_end), last)
