"""Which network the class activation maps are asked of, and for which classes."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from edf_jax.config.resolve import default_config, resolve
from edf_jax.distill.cam_network import import_cam_network
from edf_jax.models import build_network, torch_layout
from edf_jax.models.pretrained import CAM_NETWORK


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with an untrained ResNet-18 of ImageNet's classes."""
    network = build_network(CAM_NETWORK, num_classes=1000, image_shape=(32, 32, 3))
    state = torch_layout.to_state_dict(network, *jax.jit(network.init)(jax.random.key(0)))
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file({name: np.asarray(tensor, order="C") for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize(("classes", "asked"), [("own", (0, 217)), ("official", None)])
def test_an_imagenet_network_is_asked_for_the_images_classes_or_the_official_code_s(
    weights, classes, asked
):
    info = types.SimpleNamespace(
        imagenet_indices=(0, 217), image_shape=(32, 32, 3), num_classes=2
    )
    config = resolve(default_config(**{"cam.weights": str(weights), "cam.classes": classes}))
    network = import_cam_network(config, info)
    assert network.class_indices == asked
    assert ("asked for classes 0 to 1" in network.name) == (classes == "official")
