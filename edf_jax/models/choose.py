"""The networks that a run trains: by name, and the pools that papers of the field use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edf_jax.models import Network, build_network, open_options
from edf_jax.models.convolution import choose_convolution
from edf_jax.runtime import devices

# The distilling network's name in a list.
MATCHED = "matched"

# The pools of the dataset condensation codes (Zhao et al., 2006.05929; MTT, 2203.11932), and the
# architectures of cross-architecture tables.
POOLS: dict[str, tuple[str, ...]] = {
    "architectures": (MATCHED, "ResNet18", "VGG11", "AlexNet", "ViT"),
    "width": ("ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"),
    "depth": ("ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"),
    "norm": ("ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"),
    "activation": ("ConvNetAS", "ConvNetAR", "ConvNetAL"),
    "pooling": ("ConvNetNP", "ConvNetMP", "ConvNetAP"),
}


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """The names with every pool in place of its name, each once, in order."""
    expanded: dict[str, None] = {}
    for name in names:
        expanded.update(dict.fromkeys(POOLS.get(name, (name,))))
    return tuple(expanded)


def network_for(
    config,
    info,
    name: str = MATCHED,
    *,
    width: int = 0,
    batch_norm: bool = False,
    num_classes: int | None = None,
) -> Network:
    """A network by name, for a dataset's images and classes.

    Args:
        config: resolved.
        info: the dataset's `DatasetInfo`.
        name: from the registry; `MATCHED` or '' is the distilling network, with `model.*`.
        width: its channels, where it takes them and its name doesn't say; 0 is its own.
        batch_norm: whether it has batch norm, where it can choose and its name doesn't say.
        num_classes: another number than the dataset's.

    Raises:
        UserError: there is no such network, or it doesn't fit the images.
    """
    model = config.model
    options: dict[str, Any] = {}
    if name in (MATCHED, ""):
        name = model.name
        keys = ("width", "depth", "norm", "activation", "pooling")
        options = {key: model[key] for key in keys if model[key]}
    free = open_options(name)
    if width and "width" in free:
        options["width"] = width
    if batch_norm and "norm" in free and "norm" not in options:
        options["norm"] = "batch"
    return build_network(
        name,
        num_classes=num_classes or info.num_classes,
        image_shape=info.image_shape,
        convolution=choose_convolution(model.convolution),
        dtype=devices.compute_dtype(config.precision),
        **options,
    )
