"""A dataset so small and easy that networks learn it in seconds, and a config for it."""

from __future__ import annotations

import dataclasses

import numpy as np

from edf_jax.config.resolve import default_config, resolve
from edf_jax.data import Dataset, DatasetInfo, Normalisation, Split
from edf_jax.distilled_set import DistilledSet
from edf_jax.methods.soft_labels import hard_labels

CLASSES = ("dark", "upper", "lower")


def make_dataset(*, train: int = 60, test: int = 30) -> Dataset:
    """8x8 images: dark ones, and ones with their upper or lower half light."""
    info = DatasetInfo(
        "halves", CLASSES, (8, 8, 3), Normalisation((0.5,) * 3, (0.25,) * 3), None, "halves"
    )
    return Dataset(_split(train, 0), _split(test, 1), info)


def _split(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 3
    images = rng.integers(0, 100, (count, 8, 8, 3)).astype(np.uint8)
    images[labels == 1, :4] += 150
    images[labels == 2, 4:] += 150
    return Split(images, labels)


def make_config(**values):
    """A resolved config with everything tiny."""
    tiny = {
        "model.width": 4,
        "model.depth": 1,
        "experts.num": 2,
        "experts.epochs": 2,
        "augment.strategy": "flip",
        "distill.ipc": 2,
        "distill.expert_epochs": 1,
        "distill.max_start_epoch": 1,
        "distill.current_max_start_epoch": 1,
        "evaluate.num": 2,
        "evaluate.epochs": 4,
        "evaluate.kd_epochs": 3,
        "evaluate.baseline_rates": "0.01,0.1",
        "teacher.epochs": 2,
        "teacher.batch": 16,
    }
    return resolve(default_config(**{**tiny, **values}))


def make_distilled(dataset: Dataset, *, alpha: float = 0.05, soft: bool = False) -> DistilledSet:
    """The first two training images of each class as if they were distilled."""
    order = np.argsort(dataset.train.labels, kind="stable").reshape(3, -1)[:, :2].reshape(-1)
    images = np.asarray(dataset.info.normalisation.apply(dataset.train.images[order]), np.float32)
    labels = hard_labels(dataset.train.labels[order], 3)
    if soft:
        labels = labels / 60
    return DistilledSet(images, labels, alpha, CLASSES, dataset.info.normalisation, 7)


def without_test_pixels(dataset: Dataset) -> Dataset:
    """The same with test images of which nothing can be learned."""
    noise = np.random.default_rng(9).integers(0, 255, dataset.test.images.shape).astype(np.uint8)
    labels = dataset.test.labels[::-1].copy()
    return dataclasses.replace(dataset, test=Split(noise, labels))
