"""Real images chosen to stand for their classes: what a distilled set has to beat.

Each function takes features and gives positions, class by class, `ipc` of each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edf_jax.errors import UserError

# `real_soft` is the random images with soft labels.
BASELINES = ("random", "herding", "k_centre", "real_soft")


def herding(features: np.ndarray, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Positions of the images whose running mean follows the class's mean, `[C * ipc]`.

    Each next image is the one that brings the mean of those chosen nearest to the class's mean.

    Args:
        features: `[N, F]`.
        labels: `[N]`.
        ipc: images per class.

    Raises:
        UserError: a class has fewer.

    References:
        Welling, "Herding Dynamical Weights to Learn" (ICML 2009); Rebuffi et al., iCaRL
        (1611.07725), algorithm 4.
    """

    def choose(points: np.ndarray) -> list[int]:
        mean, total = points.mean(axis=0), np.zeros(points.shape[1])
        chosen: list[int] = []
        for count in range(1, ipc + 1):
            distances = np.linalg.norm(mean - (total + points) / count, axis=1)
            distances[chosen] = np.inf
            chosen.append(int(np.argmin(distances)))
            total += points[chosen[-1]]
        return chosen

    return _by_class(features, labels, ipc, choose)


def k_centre(features: np.ndarray, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Positions of images that leave no other far from all of them, `[C * ipc]`.

    Greedy: first the image nearest to the class's mean, then always the one farthest from those
    chosen, which is at most twice as bad as the best choice.

    Args:
        features: `[N, F]`.
        labels: `[N]`.
        ipc: images per class.

    Raises:
        UserError: a class has fewer.

    References:
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
        Approach" (1708.00489), algorithm 1.
    """

    def choose(points: np.ndarray) -> list[int]:
        chosen = [int(np.argmin(np.linalg.norm(points - points.mean(axis=0), axis=1)))]
        nearest = np.linalg.norm(points - points[chosen[0]], axis=1)
        while len(chosen) < ipc:
            nearest[chosen] = -np.inf
            chosen.append(int(np.argmax(nearest)))
            distances = np.linalg.norm(points - points[chosen[-1]], axis=1)
            nearest = np.minimum(nearest, distances)
        return chosen

    return _by_class(features, labels, ipc, choose)


def _by_class(
    features: np.ndarray,
    labels: np.ndarray,
    ipc: int,
    choose: Callable[[np.ndarray], list[int]],
) -> np.ndarray:
    positions = []
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        if len(members) < ipc:
            raise UserError(f"class {label} has {len(members)} training images, {ipc} are wanted")
        positions.append(members[choose(np.asarray(features[members], np.float64))])
    return np.concatenate(positions)
