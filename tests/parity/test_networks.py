"""Every architecture against the official implementation's logits."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from edf_jax.models import Network, build_network, torch_layout
from tests.parity import reference

_CASES = reference.load_json("networks")
_SETTINGS = ("width", "depth", "norm", "activation", "pooling")


def _build(spec: dict, input_shape: list[int]) -> Network:
    _, channels, height, width = input_shape
    stem = "ImageNet" if "imagenet" in spec.get("stem", "") else ""
    return build_network(
        spec["family"] + stem,
        num_classes=spec["num_classes"],
        image_shape=(height, width, channels),
        **{key: spec[key] for key in _SETTINGS if key in spec},
    )


def _weights(case: dict) -> list[np.ndarray]:
    """Parameters and running statistics by the fixtures' rule, in the order of `params`."""
    generator = reference.standard_normals(case["weights_k"])
    tensors = []
    for name, shape in case["params"]:
        z = generator.standard_normal(shape)
        if name.endswith("running_var"):
            z = np.exp(0.1 * z)
        elif len(shape) > 1:
            z = z * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(".weight"):
            z = 1 + 0.1 * z
        else:
            z = 0.1 * z
        tensors.append(z.astype(np.float32))
    return tensors


@pytest.mark.parametrize("name", _CASES)
def test_logits_are_the_official_implementations(name):
    case = _CASES[name]
    network = _build(case["spec"], case["input_shape"])
    shapes = torch_layout.torch_shapes(network)
    assert [(name, list(shape)) for name, shape in shapes.items()] == [
        (parameter, list(shape)) for parameter, shape in case["params"]
    ]

    weights = _weights(case)
    count = len(network.param_table)
    theta = torch_layout.from_torch(network, weights[:count])
    batch_stats = torch_layout.stats_from_torch(network, weights[count:])
    images = reference.standard_normals(case["input_k"]).standard_normal(case["input_shape"])
    images = images.astype(np.float32).transpose(0, 2, 3, 1)
    logits = jax.jit(network.apply)(theta, images, batch_stats)

    error = reference.relative_error(logits, case["logits"])
    print(f"relative error {name}: {error:.2e}")
    assert error < reference.meta()["networks"].get(name, {}).get("logits_rtol", 1e-4)
