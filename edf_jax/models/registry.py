"""Networks by the names of the field."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from edf_jax.models import classic, initialisation
from edf_jax.models.convnet import ConvNetFeatures, default_depth
from edf_jax.models.layers import ACTIVATIONS, POOLINGS, FlattenHead, PoolHead
from edf_jax.models.network import Classifier, Network
from edf_jax.models.resnet import ResNetFeatures
from edf_jax.models.vit import ViTFeatures, ViTHead
from edf_jax.runtime.errors import UserError

_NAMES = [
    "ConvNet",
    *(f"ConvNetD{depth}" for depth in range(1, 9)),
    *(f"ConvNetW{width}" for width in (32, 64, 128, 256, 512, 1024)),
    *(f"ConvNet{activation}" for activation in ("AS", "AR", "AL", "ASwish", "ASwishBN")),
    *(f"ConvNet{norm}" for norm in ("NN", "BN", "LN", "IN", "GN")),
    *(f"ConvNet{pooling}" for pooling in ("NP", "MP", "AP")),
    "MLP",
    "LeNet",
    "AlexNet",
    "VGG11",
    "VGG11BN",
    *(f"ResNet{depth}{norm}" for depth in (18, 34, 50) for norm in ("", "BN")),
    "ResNet18_AP",
    "ResNet18BN_AP",
    *(f"ResNet{depth}{norm}ImageNet" for depth in (18, 34, 50) for norm in ("", "BN")),
    "ViT",
]

# What an unknown name is told of.
_USUAL = ("ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18", "ViT")

# The values of the field's command lines, by the option that takes them.
_ALIASES = {
    "norm": {
        "instancenorm": "instance",
        "batchnorm": "batch",
        "layernorm": "layer",
        "groupnorm": "group4",
        "group": "group4",
    },
    "activation": {"leakyrelu": "leaky_relu"},
    "pooling": {"avgpooling": "avg", "maxpooling": "max"},
}
_CHOICES = {
    "norm": ("instance", "batch", "layer", "group<number of groups>", "none"),
    "activation": tuple(ACTIVATIONS),
    "pooling": tuple(POOLINGS),
}

Modules = tuple[nn.Module, nn.Module]


def _convnet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    common: dict[str, Any],
    *,
    width: int = 128,
    depth: int | None = None,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "avg",
) -> Modules:
    body = ConvNetFeatures(
        width=width,
        depth=depth or default_depth(*image_shape[:2]),
        norm=norm,
        activation=activation,
        pooling=pooling,
        **common,
    )
    return body, FlattenHead(num_classes, dtype=common["dtype"])


def _mlp(
    image_shape: tuple[int, int, int],
    num_classes: int,
    common: dict[str, Any],
    *,
    width: int = 128,
) -> Modules:
    head = classic.PerceptronHead(num_classes, (width, width), dtype=common["dtype"])
    return classic.Identity(), head


def _lenet(image_shape: tuple[int, int, int], num_classes: int, common: dict[str, Any]) -> Modules:
    head = classic.PerceptronHead(num_classes, (120, 84), dtype=common["dtype"])
    return classic.LeNetFeatures(**common), head


def _alexnet(
    image_shape: tuple[int, int, int], num_classes: int, common: dict[str, Any]
) -> Modules:
    head = FlattenHead(num_classes, layer="fc", dtype=common["dtype"])
    return classic.AlexNetFeatures(**common), head


def _vgg11(
    image_shape: tuple[int, int, int],
    num_classes: int,
    common: dict[str, Any],
    *,
    width: int = 64,
    norm: str = "instance",
) -> Modules:
    body = classic.VGG11Features(width=width, norm=norm, **common)
    return body, PoolHead(num_classes, dtype=common["dtype"])


def _resnet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    common: dict[str, Any],
    *,
    layers: int,
    width: int = 64,
    norm: str = "instance",
    imagenet_stem: bool = False,
    average_pooling: bool = False,
) -> Modules:
    body = ResNetFeatures(
        depth=layers,
        width=width,
        norm=norm,
        imagenet_stem=imagenet_stem,
        average_pooling=average_pooling,
        **common,
    )
    head = FlattenHead if average_pooling else PoolHead
    return body, head(num_classes, dtype=common["dtype"])


def _vit(
    image_shape: tuple[int, int, int],
    num_classes: int,
    common: dict[str, Any],
    *,
    width: int = 192,
    depth: int = 6,
) -> Modules:
    height, image_width, _ = image_shape
    # The largest patch that tiles the image and leaves at least seven a side: 4 at 28 and 32, 8 at
    # 64, 16 at 128.
    common_sizes = range(1, max(1, min(height, image_width) // 7) + 1)
    patch = max(size for size in common_sizes if math.gcd(height, image_width) % size == 0)
    heads = max(1, width // 64)
    if width % heads:
        raise UserError(f"a ViT's width is a multiple of its {heads} heads, {width} is not")
    body = ViTFeatures(width=width, depth=depth, heads=heads, patch=patch, **common)
    return body, ViTHead(num_classes, dtype=common["dtype"])


@dataclasses.dataclass(frozen=True)
class _Family:
    """How the names of a family are read, and what builds its modules.

    Attributes:
        stem: the names' beginning, in capitals.
        build: makes body and head of the image shape, number of classes, settings common to all
            modules, and its own.
        options: which of `build_network`'s settings it takes.
        suffixes: what a name may add, and the setting that it makes.
        sizes: whether a name may add `D<depth>` and `W<width>`.
        draw: makes initial parameters.
    """

    stem: str
    build: Callable[..., Modules]
    options: tuple[str, ...] = ()
    suffixes: Mapping[str, tuple[str, Any]] = dataclasses.field(default_factory=dict)
    sizes: bool = False
    draw: Callable[..., jax.Array] = initialisation.torch_default

    def parse(self, bare: str) -> dict[str, Any] | None:
        """The settings that a name in capitals makes; None where it is not of this family."""
        part = "|".join([*self.suffixes, *(("[DW][1-9][0-9]*",) if self.sizes else ())])
        if not re.fullmatch(f"{self.stem}({part})*" if part else self.stem, bare):
            return None
        settings: dict[str, Any] = {}
        for text in re.findall(part, bare.removeprefix(self.stem)) if part else ():
            if text in self.suffixes:
                option, value = self.suffixes[text]
            else:
                option, value = {"D": "depth", "W": "width"}[text[0]], int(text[1:])
            if settings.setdefault(option, value) != value:
                return None
        return settings


_CONVNET_SUFFIXES = {
    "ASWISH": ("activation", "swish"),
    "AS": ("activation", "sigmoid"),
    "AR": ("activation", "relu"),
    "AL": ("activation", "leaky_relu"),
    "NN": ("norm", "none"),
    "BN": ("norm", "batch"),
    "LN": ("norm", "layer"),
    "IN": ("norm", "instance"),
    "GN": ("norm", "group4"),
    "NP": ("pooling", "none"),
    "MP": ("pooling", "max"),
    "AP": ("pooling", "avg"),
}
_RESNET_SUFFIXES = {
    "BN": ("norm", "batch"),
    "IMAGENET": ("imagenet_stem", True),
    "AP": ("average_pooling", True),
}
_FAMILIES = [
    _Family(
        "CONVNET",
        _convnet,
        ("width", "depth", "norm", "activation", "pooling"),
        _CONVNET_SUFFIXES,
        sizes=True,
    ),
    _Family("MLP", _mlp, ("width",)),
    _Family("LENET", _lenet),
    _Family("ALEXNET", _alexnet),
    _Family("VGG11", _vgg11, ("width", "norm"), {"BN": ("norm", "batch")}),
    *(
        _Family(
            f"RESNET{layers}",
            functools.partial(_resnet, layers=layers),
            ("width", "norm"),
            _RESNET_SUFFIXES,
        )
        for layers in (18, 34, 50)
    ),
    _Family("VIT", _vit, ("width", "depth"), draw=initialisation.transformer),
]


def register_network(
    name: str, build: Callable[..., Modules], *, options: Sequence[str] = ()
) -> None:
    """Adds a network to the registry; one of that name is replaced.

    Args:
        name: of letters and digits; it is found in any case.
        build: makes the body, which maps images to a feature map, and the head, which maps that to
            logits, of `(image_shape, num_classes, common, **settings)`. `common` holds
            `convolution` and `dtype`, for every layer that takes them.
        options: which of `width`, `depth`, `norm`, `activation` and `pooling` it takes as settings.

    Raises:
        ValueError: the name has other letters.
    """
    if not name.isalnum():
        raise ValueError(f"network name {name!r} must be of letters and digits")
    added = _Family(_bare(name), build, tuple(options))
    _FAMILIES[:] = [added, *(family for family in _FAMILIES if family.stem != added.stem)]
    if name not in _NAMES:
        _NAMES.append(name)


def network_names() -> tuple[str, ...]:
    """The registry's names; a ConvNet's suffixes may also be combined, as in `ConvNetD4W64BN`."""
    return tuple(_NAMES)


def open_options(name: str) -> tuple[str, ...]:
    """`build_network`'s options that the network takes and its name leaves open.

    Raises:
        UserError: there is no such network.
    """
    family, settings = _parse(name)
    return tuple(option for option in family.options if option not in settings)


def build_network(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    width: int | None = None,
    depth: int | None = None,
    norm: str | None = None,
    activation: str | None = None,
    pooling: str | None = None,
    convolution: Callable | None = None,
    dtype: Any = None,
) -> Network:
    """Builds a network by its name in the dataset distillation literature.

    Args:
        name: one of `network_names()` in any case, e.g. "ConvNet" (depth by resolution),
            "ConvNetD5", "ConvNetW256", "ConvNetBN", "ResNet18", "ResNet18ImageNet".
        num_classes: the number of logits.
        image_shape: `(H, W, C)`.
        width: channels of a ConvNet's blocks (128), of a VGG's or ResNet's first stage (64), of an
            MLP's hidden layers (128) or of a ViT's tokens (192).
        depth: blocks of a ConvNet (as many as leave about 4x4) or of a ViT (6).
        norm: "instance", "batch", "layer", "group<groups>" or "none"; for ConvNets, VGG, ResNets.
        activation: "relu", "sigmoid", "leaky_relu" or "swish"; for ConvNets.
        pooling: "avg", "max" or "none"; for ConvNets.
        convolution: stands for `lax.conv_general_dilated`, with the same arguments.
        dtype: compute dtype, where it is not to follow the parameters and images.

    Raises:
        UserError: where the name is unknown, a setting does not belong to the network or
            contradicts its name, or the images are too small for it.
    """
    family, settings = _parse(name)
    given = {
        "width": width,
        "depth": depth,
        "norm": norm,
        "activation": activation,
        "pooling": pooling,
    }
    for option, value in given.items():
        if value is None:
            continue
        if option not in family.options:
            raise UserError(f"network {name!r} has no {option} to set: leave it out")
        value = _checked(name, option, value)
        if settings.setdefault(option, value) != value:
            raise UserError(
                f"the name of network {name!r} says {option} {settings[option]}, its {option} is "
                f"set to {value}: change one of them"
            )
    rows, columns, channels = (int(size) for size in image_shape)
    image_shape = rows, columns, channels
    common = {"convolution": convolution, "dtype": None if dtype is None else jnp.dtype(dtype)}
    body, head = family.build(image_shape, num_classes, common, **settings)
    _check_groups(name, body)
    module = Classifier(body, head)
    network = Network(_canonical(name), module, num_classes, image_shape, family.draw)
    try:
        fits = min(network.feature_shape) > 0
    except (TypeError, ValueError):  # Of layers that are given nothing.
        fits = False
    if not fits:
        raise UserError(
            f"images of {image_shape[0]}x{image_shape[1]} are too small for network {name!r}: "
            "its poolings leave nothing of them; take a smaller depth or larger images"
        )
    return network


def _bare(name: str) -> str:
    return name.replace("_", "").upper()


def _canonical(name: str) -> str:
    return next((known for known in _NAMES if _bare(known) == _bare(name)), name)


def _parse(name: str) -> tuple[_Family, dict[str, Any]]:
    for family in _FAMILIES:
        settings = family.parse(_bare(name))
        if settings is not None:
            return family, settings
    by_bare = {_bare(known): known for known in _NAMES}
    near = difflib.get_close_matches(_bare(name), by_bare, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(by_bare[match] for match in near)}?"
    else:
        hint = f"there are {', '.join(_USUAL)} and others (edf_jax.models.network_names())"
    raise UserError(f"unknown network {name!r}: {hint}")


def _checked(name: str, option: str, value: Any) -> Any:
    """The setting in our own words."""
    if option in ("width", "depth"):
        if int(value) != value or value < 1:
            raise UserError(f"{option} {value} of network {name!r} is not a positive whole number")
        return int(value)
    word = str(value).lower()
    word = _ALIASES[option].get(word, word)
    grouped = option == "norm" and re.fullmatch("group[1-9][0-9]*", word)
    if word not in _CHOICES[option] and not grouped:
        raise UserError(
            f"{option} {value!r} of network {name!r} is unknown: take one of "
            + ", ".join(_CHOICES[option])
        )
    return word


def _check_groups(name: str, body: nn.Module) -> None:
    norm = getattr(body, "norm", "")
    if norm.startswith("group") and body.width % int(norm.removeprefix("group")):
        raise UserError(
            f"network {name!r} of width {body.width} cannot be cut into the groups of norm "
            f"{norm!r}: take a width that they divide"
        )
