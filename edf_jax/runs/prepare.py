"""The stage of a run that loads the real images."""

from __future__ import annotations

import contextlib
import time

import numpy as np

from edf_jax.config.resolve import check_against_data
from edf_jax.data import Dataset, load_dataset
from edf_jax.runtime import preemption
from edf_jax.runtime.progress import Progress

# A loading that takes less shows no bar.
_SECONDS_UNTOLD = 5.0


def prepare(config) -> Dataset:
    """Loads the real images, and checks what only they can tell.

    Raises:
        UserError: they aren't there, or there are too few.
    """
    with contextlib.ExitStack() as stack:
        began, bar = time.monotonic(), None

        def show(done: int, total: int) -> None:
            nonlocal bar
            preemption.stop_if_asked()
            if bar is None and time.monotonic() - began > _SECONDS_UNTOLD:
                bar = stack.enter_context(Progress("prepare", total, "image", start=done))
            if bar is not None:
                bar.at(done, total)

        dataset = load_dataset(config.data, progress=show)
    counts = np.bincount(dataset.train.labels, minlength=dataset.info.num_classes)
    check_against_data(config, counts.tolist(), dataset.info.class_names)
    return dataset
