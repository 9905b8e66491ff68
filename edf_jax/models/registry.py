"""Networks by the names of the field."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from edf_jax.errors import UserError
from edf_jax.models.convnet import ConvNetFeatures, default_depth
from edf_jax.models.layers import FlattenHead
from edf_jax.models.network import Classifier, Network

_NORMS = {"instancenorm": "instance", "batchnorm": "batch", "layernorm": "layer",
          "groupnorm": "group4", "group": "group4"}


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
    m = re.fullmatch(r"convnet(?:d(\d+))?", name.lower())
    if not m:
        raise UserError(f"unknown network {name!r}")
    height, image_width, _ = image_shape
    depth = depth or int(m.group(1) or default_depth(height, image_width))
    body = ConvNetFeatures(
        width=width or 128, depth=depth, norm=_NORMS.get(norm or "instance", norm or "instance"),
        activation=activation or "relu", pooling=pooling or "avg",
        convolution=convolution, dtype=dtype,
    )
    module = Classifier(body=body, head=FlattenHead(num_classes, dtype=dtype))
    return Network(name, module, num_classes, tuple(image_shape))


def network_names() -> tuple[str, ...]:
    return ("ConvNet",)
