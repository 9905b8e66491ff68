"""Labelled images from any source, each read when it is asked for and kept nowhere."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np

from edf_jax.data import Split, load_dataset
from edf_jax.data.decode import ImageSettings, decode
from edf_jax.data.load import check_settings, find_cache_dir, open_source
from edf_jax.data.sources import Listing


@dataclasses.dataclass(frozen=True)
class UndecodedImages:
    """One split.

    Attributes:
        labels: int32 `[N]`.
        read: from a position to its pixels, uint8 `[H, W, C]`; raises `Unreadable` or `OSError`.
        name: from a position to a path, or words for people.
    """

    labels: np.ndarray
    read: Callable[[int], np.ndarray]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Collection:
    """A dataset.

    Attributes:
        class_names: by label.
        imagenet_indices: ILSVRC-2012 class of each label, or None.
        train: training images.
        test: test images.
    """

    class_names: tuple[str, ...]
    imagenet_indices: tuple[int, ...] | None
    train: UndecodedImages
    test: UndecodedImages


def open_collection(data_config, resolution: int, *, colour: bool = False) -> Collection:
    """The images that `data_config` asks for, at another resolution; decodes none.

    Args:
        data_config: as `edf_jax.data.load_dataset` takes it.
        resolution: height and width; 0 for each image's own.
        colour: whether grey images get three channels.

    Raises:
        UserError: the data is not there or not usable.
    """
    data_config = copy.deepcopy(data_config)
    data_config.resolution = resolution or data_config.resolution
    if data_config.source == "cluttered_digits":
        dataset = load_dataset(data_config)
        info = dataset.info
        train, test = (
            _of_split(split, name)
            for split, name in ((dataset.train, "train"), (dataset.test, "test"))
        )
        return Collection(info.class_names, info.imagenet_indices, train, test)
    check_settings(data_config)
    source = open_source(data_config, find_cache_dir(data_config))
    settings = ImageSettings(
        resolution=resolution,
        resize=data_config.resize,
        antialias=data_config.antialias,
        channels=3 if colour else source.channels,
        upright=source.upright,
    )
    train, test = (_of_listing(listing, settings) for listing in (source.train, source.test))
    return Collection(source.class_names, source.imagenet_indices, train, test)


def _of_split(split: Split, name: str) -> UndecodedImages:
    return UndecodedImages(
        split.labels, lambda i: split.images[i], lambda i: f"{name} image {i}"
    )


def _of_listing(listing: Listing, settings: ImageSettings) -> UndecodedImages:
    return UndecodedImages(
        listing.labels, lambda i: decode(listing.read(i), settings)[0], listing.name
    )
