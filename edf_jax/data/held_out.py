"""Training images set aside from everything, to choose among sets by."""

from __future__ import annotations

import dataclasses

import numpy as np

from edf_jax.data.dataset import Dataset, Split
from edf_jax.data.sources import digest_of
from edf_jax.runtime.errors import UserError


def hold_out(dataset: Dataset, share: float, *, copies: int = 1) -> Dataset:
    """The dataset with a share of each class's training images set aside as `held_out`.

    The same ones every time, whatever the run's seed. Normalisation stays as it was measured.

    Args:
        dataset: its training images are copied into memory.
        share: of each class, in (0, 1); at least one image of a class is held out and one kept.
        copies: of each sample the training images hold, one copy of all samples after the other;
            those of a sample stay together.

    Raises:
        UserError: a class has fewer than two samples.
    """
    train = dataset.train
    samples = len(train.labels) // copies
    labels = train.labels[:samples]
    rng = np.random.default_rng(0)
    held = np.zeros(samples, bool)
    for label in range(dataset.info.num_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) == 1:
            raise UserError(
                f"data.held_out={share:g} leaves no training image of class "
                f"{dataset.info.class_names[label]!r}, which has one: set it to 0"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[: max(count, 0)]] = True
    chosen = np.tile(held, copies)
    kept, apart = (
        Split(np.ascontiguousarray(train.images[rows]), train.labels[rows])
        for rows in (~chosen, chosen)
    )
    fingerprint = digest_of([dataset.info.fingerprint, "held out", float(share)])
    info = dataclasses.replace(dataset.info, fingerprint=fingerprint)
    return Dataset(kept, dataset.test, info, apart)
