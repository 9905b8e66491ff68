"""Real images chosen to stand for their classes: what a distilled set has to beat.

Each function takes features or scores and gives positions, class by class, `ipc` of each.
"""

from __future__ import annotations

import numpy as np

from edf_jax.runtime.errors import UserError

# `real_soft` is the random images with soft labels, `rded` stitched crops (`methods.rded`),
# `downsampled` more random images, shrunk to as many bytes.
BASELINES = (
    "random", "herding", "k_centre", "el2n", "grand", "ccs", "rded", "real_soft", "downsampled",
)  # fmt: skip
# Those that ask no expert.
WITHOUT_EXPERTS = ("random", "rded", "downsampled")


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


def hardest(scores: np.ndarray, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Positions of the `ipc` images of each class with the highest scores, `[C * ipc]`.

    Args:
        scores: `[N]`, EL2N or GraNd (`edf_jax.experts.difficulty`).
        labels: `[N]`.
        ipc: images per class.

    Raises:
        UserError: a class has fewer.

    References:
        Paul et al., "Deep Learning on a Data Diet" (2107.07075). They keep most of the data; the
        few hardest images of a class are often mislabelled ones.
    """
    members = _members(labels, ipc)
    return np.concatenate([own[np.argsort(-scores[own], kind="stable")[:ipc]] for own in members])


def coverage(
    rng: np.random.Generator,
    scores: np.ndarray,
    labels: np.ndarray,
    ipc: int,
    *,
    prune: float = 0.3,
    strata: int = 50,
) -> np.ndarray:
    """Positions of images of every difficulty but the hardest (CCS), `[C * ipc]`.

    In each class the hardest share is left out, the range of the others' scores is cut into strata
    of one width, and each stratum gives as many random images as the others, or all that it has.

    Args:
        rng: draws them.
        scores: `[N]`, higher for harder images.
        labels: `[N]`.
        ipc: images per class.
        prune: the share left out; less where too few images would be left. 0.3 is what the paper
            takes for CIFAR-10 at its highest pruning rate.
        strata: how many; the paper's 50.

    Raises:
        UserError: a class has fewer than `ipc` images.

    References:
        Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates" (2210.15809),
        algorithm 1; there over all classes at once, here in each, so that each has `ipc`.
    """
    positions = []
    for members in _members(labels, ipc):
        order = members[np.argsort(scores[members], kind="stable")]
        kept = order[: max(ipc, len(order) - int(prune * len(order)))]
        edges = np.linspace(scores[kept[0]], scores[kept[-1]], strata + 1)
        stratum = np.searchsorted(edges[1:-1], scores[kept], side="right")
        budgets = _budgets(np.bincount(stratum, minlength=strata), ipc)
        for index in np.flatnonzero(budgets):
            positions.append(rng.permutation(kept[stratum == index])[: budgets[index]])
    return np.concatenate(positions)


def _budgets(sizes: np.ndarray, total: int) -> np.ndarray:
    """How many of `total` each stratum gives: an equal part of what is left, the smallest first."""
    budgets = np.zeros(len(sizes), int)
    for done, index in enumerate(np.argsort(sizes, kind="stable")):
        part = (total - budgets.sum()) // (len(sizes) - done)
        budgets[index] = min(sizes[index], part)
    return budgets


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
