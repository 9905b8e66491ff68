"""Labelled images from any source, each read when it is asked for and kept nowhere."""

from __future__ import annotations

import copy
import dataclasses

from edf_jax.data import Split, load_dataset
from edf_jax.data.decode import ImageSettings, decode
from edf_jax.data.load import check_settings, find_cache_dir, open_source
from edf_jax.data.sources import Listing, Source


def open_images(data_config, resolution: int, *, colour: bool = False) -> Source:
    """The images that `data_config` asks for, at another resolution; decodes none.

    Args:
        data_config: as `edf_jax.data.load_dataset` takes it.
        resolution: height and width; 0 for each image's own.
        colour: whether grey images get three channels.

    Returns:
        A source whose listings read pixels, uint8 `[H, W, C]`, or raise `Unreadable` or `OSError`.

    Raises:
        UserError: the data is not there or not usable.
    """
    data_config = copy.deepcopy(data_config)
    data_config.resolution = resolution or data_config.resolution
    if data_config.source == "cluttered_digits":
        return _made(data_config)
    check_settings(data_config)
    source = open_source(data_config, find_cache_dir(data_config))
    settings = ImageSettings(
        resolution=resolution,
        resize=data_config.resize,
        antialias=data_config.antialias,
        channels=3 if colour else source.channels,
        upright=source.upright,
    )

    def decoded(listing: Listing) -> Listing:
        return dataclasses.replace(listing, read=lambda i: decode(listing.read(i), settings)[0])

    return dataclasses.replace(
        source,
        channels=settings.channels,
        train=decoded(source.train),
        test=decoded(source.test),
    )


def _made(data_config) -> Source:
    dataset = load_dataset(data_config)
    info = dataset.info

    def listing(split: Split, name: str) -> Listing:
        read = split.images.__getitem__
        return Listing(split.labels, read, lambda i: f"{name} image {i}", info.fingerprint)

    train, test = listing(dataset.train, "train"), listing(dataset.test, "test")
    return Source(info.name, info.class_names, info.image_shape[-1], train, test)
