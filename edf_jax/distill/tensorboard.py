"""What a run shows while it distils: the images, their activation maps, how values spread."""

from __future__ import annotations

import numpy as np

from edf_jax.distilled_set import DistilledSet
from edf_jax.runs import pictures
from edf_jax.runs.metrics import MetricsWriter

_STAGE = "evaluate"
_MOST_CLASSES, _MOST_PER_CLASS = 10, 10


def show_set(
    metrics: MetricsWriter, step: int, distilled: DistilledSet, maps: np.ndarray | None = None
) -> None:
    """Sends a set to TensorBoard: a grid with a row a class, maps over it, and distributions.

    Args:
        metrics: where to.
        step: the iteration.
        distilled: the set; its images are grouped by the class that they began as.
        maps: `[n, H, W]` activation maps in [0, 1], where there are some.
    """
    num_classes = len(distilled.class_names)
    began_as = np.arange(len(distilled.images)) * num_classes // len(distilled.images)
    rows = pictures.choose(
        began_as, num_classes, per_class=_MOST_PER_CLASS, classes=_MOST_CLASSES
    )
    shown, columns = np.concatenate(rows), max(len(row) for row in rows)
    pixels = distilled.pixels
    metrics.images(step, _STAGE, "distilled", _grid(pixels[shown], columns))
    if maps is not None:
        overlaid = pictures.overlay(pixels[shown], maps[shown])
        metrics.images(step, _STAGE, "activation_maps", _grid(overlaid, columns))
    metrics.histogram(step, _STAGE, "pixels", pixels)
    exponents = np.exp(distilled.labels - distilled.labels.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    metrics.histogram(step, _STAGE, "label_probabilities", probabilities)


def _grid(images: np.ndarray, columns: int) -> np.ndarray:
    return pictures.tile(images, columns)[..., :3]
