"""The networks that the fixtures' settings name."""

from __future__ import annotations

from edf_jax.models import Network, build_network
from edf_jax.models.convolution import choose_convolution


def build(settings: dict, image_shape: tuple[int, int, int]) -> Network:
    """The network of a section of `meta.json`, for images `(H, W, C)`, computed as in a run."""
    return build_network(
        settings["arch"],
        num_classes=settings["num_classes"],
        image_shape=image_shape,
        width=settings["net_width"],
        depth=settings["net_depth"],
        norm=settings["norm"],
        activation=settings["act"],
        pooling=settings["pooling"],
        convolution=choose_convolution(),
    )


def nhwc(images):
    """Images `[N, C, H, W]` as `[N, H, W, C]`."""
    return images.transpose(0, 2, 3, 1)
