"""Real images chosen to stand for their classes: what a distilled set has to beat.

Each function takes features and gives positions, class by class, `ipc` of each.
"""

from __future__ import annotations

import numpy as np

from edf_jax.runtime.errors import UserError

# `real_soft` is the random images with soft labels; `downsampled` more of them, shrunk to as many
# bytes.
BASELINES = ("random", "herding", "k_centre", "real_soft", "downsampled")
# Those that are chosen and labelled without a trained network.
NEED_NO_NETWORK = ("random", "downsampled")


def _members(labels: np.ndarray, ipc: int) -> list[np.ndarray]:
    """Positions of each class's images.

    Raises:
        UserError: a class has fewer than `ipc`.
    """
    members = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    for label, own in enumerate(members):
        if len(own) < ipc:
            raise UserError(
                f"class {label} has {len(own)} training images, {ipc} are wanted: lower "
                "distill.ipc"
            )
    return members


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
    positions = []
    for members in _members(labels, ipc):
        points = np.asarray(features[members], np.float64)
        mean, total = points.mean(axis=0), np.zeros(points.shape[1])
        chosen: list[int] = []
        for count in range(1, ipc + 1):
            distances = np.linalg.norm(mean - (total + points) / count, axis=1)
            distances[chosen] = np.inf
            chosen.append(int(np.argmin(distances)))
            total += points[chosen[-1]]
        positions.append(members[chosen])
    return np.concatenate(positions)


def k_centre(features: np.ndarray, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Positions of images that leave no other far from all of them, `[C * ipc]`.

    Greedy: first the image nearest to the class's mean, then always the one farthest from those
    chosen, which is at most twice as bad as the best choice. Arguments as in `herding`.

    References:
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
        Approach" (1708.00489), algorithm 1.
    """
    positions = []
    for members in _members(labels, ipc):
        points = np.asarray(features[members], np.float64)
        chosen = [int(np.argmin(np.linalg.norm(points - points.mean(axis=0), axis=1)))]
        nearest = np.linalg.norm(points - points[chosen[0]], axis=1)
        while len(chosen) < ipc:
            nearest[chosen] = -np.inf
            chosen.append(int(np.argmax(nearest)))
            nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        positions.append(members[chosen])
    return np.concatenate(positions)


def choose_random(rng: np.random.Generator, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Positions of `ipc` random images of each class in order, `[C * ipc]`.

    Raises:
        UserError: a class has fewer.
    """
    return np.concatenate([rng.permutation(own)[:ipc] for own in _members(labels, ipc)])


def choose_predicted_correctly(
    rng: np.random.Generator, labels: np.ndarray, predictions, num_experts: int, ipc: int
) -> np.ndarray:
    """Positions of `ipc` images of each class that the first experts classify correctly.

    Args:
        rng: shuffles each class.
        labels: `[N]`, true classes.
        predictions: `expert -> [N]` predicted classes, called for as many experts as needed.
        num_experts: how many there are.
        ipc: images per class.

    Returns:
        `[C * ipc]` positions, class by class. Where all experts together are right on too few
        images of a class, its other images fill up.
    """
    orders = [rng.permutation(own) for own in _members(labels, ipc)]
    chosen: list[list[int]] = [[] for _ in orders]
    for expert in range(num_experts):
        if all(len(members) == ipc for members in chosen):
            break
        predicted = np.asarray(predictions(expert))
        for order, members in zip(orders, chosen, strict=True):
            new = [i for i in order[predicted[order] == labels[order]] if i not in members]
            members.extend(new[: ipc - len(members)])
    for order, members in zip(orders, chosen, strict=True):
        members.extend([i for i in order if i not in members][: ipc - len(members)])
    return np.concatenate([np.asarray(members) for members in chosen])


def choose_near_centres(
    rng: np.random.Generator, features: np.ndarray, labels: np.ndarray, ipc: int
) -> np.ndarray:
    """Positions of the `ipc` images of each class that are nearest to k-means centres.

    Each class's features are clustered into `ipc` clusters, and each cluster gives the image
    nearest to its centre. Arguments as in `herding`; `rng` is for the first centres.

    References:
        Liu et al., "DREAM: Efficient Dataset Distillation by Representative Matching"
        (2302.14416).
    """
    from sklearn.cluster import KMeans

    positions = []
    for members in _members(labels, ipc):
        seed = int(rng.integers(2**31))
        distances = KMeans(ipc, n_init=1, random_state=seed).fit_transform(features[members])
        taken: list[int] = []
        for cluster in range(ipc):
            nearest = np.argsort(distances[:, cluster], kind="stable")
            taken.append(next(int(i) for i in nearest if i not in taken))
        positions.append(members[taken])
    return np.concatenate(positions)
