"""Real images: any source -> `Dataset(train, test, info)`."""

from __future__ import annotations

import hashlib
import json

from edf_jax.data import cluttered_digits
from edf_jax.data.dataset import Dataset, DatasetInfo, Split
from edf_jax.data.normalisation import IMAGENET, Normalisation
from edf_jax.errors import UserError

__all__ = ["Dataset", "DatasetInfo", "Normalisation", "Split", "load_dataset"]


def load_dataset(data_config, *, progress=None) -> Dataset:
    """Reads or makes the dataset that `data_config` asks for.

    Args:
      data_config: an object with the attributes of `config.data`.
      progress: called with (images done, images in all).

    Raises:
      UserError: the data is not there or not usable.
    """
    if data_config.source == "cluttered_digits":
        return _load_cluttered_digits(data_config, progress)
    raise UserError(f"data.source={data_config.source!r} is unknown; one of: cluttered_digits.")


def _load_cluttered_digits(data_config, progress) -> Dataset:
    settings = {
        "resolution": data_config.resolution,
        "difficulty": data_config.difficulty,
        "composites": data_config.composites,
        "test_composites": data_config.test_composites,
        "seed": data_config.seed,
    }
    train, test = cluttered_digits.make_splits(**settings, progress=progress)
    content = {**settings, "version": cluttered_digits.VERSION}
    content["sources"] = cluttered_digits.sources_digest()
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    info = DatasetInfo(
        name="cluttered_digits",
        class_names=cluttered_digits.CLASS_NAMES,
        image_shape=train[0].shape[1:],
        normalisation=IMAGENET,
        imagenet_indices=None,
        fingerprint=fingerprint,
    )
    return Dataset(Split(*train), Split(*test), info)
