"""Which network the class activation maps are asked of, and for which classes."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from edf_jax.config.resolve import default_config, resolve
from edf_jax.distill.cam_network import choose_cam_network, import_cam_network
from edf_jax.matching.iteration import Learnable
from edf_jax.matching.pixel_weight import make_weight
from edf_jax.methods import gradcam
from edf_jax.models import build_network, torch_layout
from edf_jax.models.pretrained import CAM_NETWORK
from tests import tiny


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


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_the_maps_of_all_experts_are_averaged(tmp_path, method):
    store = tiny.made_up_experts(tmp_path / "experts")
    network, initial = tiny.network(), tiny.initial_set()
    values = Learnable(jnp.asarray(initial.images), jnp.asarray(initial.labels), jnp.float32(1))
    key = jax.random.key(3)
    config = tiny.config("edf", **{"cam.method": method, "cam.network": "experts"})
    cam = choose_cam_network(config, tiny.dataset(), network, store, lambda: pytest.fail("asked"))
    assert cam.name.startswith("all 3 experts")
    maps, weight = make_weight(config, cam)(values, key)

    def functions(theta):
        return lambda x: network.features(theta, x), lambda maps: network.classify(theta, maps)

    classes = jnp.argmax(values.labels, axis=-1)
    single = []
    for expert in range(3):
        halves = functions(jnp.asarray(store.snapshot(expert, 4)))
        single.append(
            gradcam.class_activation_maps(method, *halves, values.images, classes, key=key)
        )
    mean = np.mean(single, axis=0)
    mean -= mean.min((1, 2), keepdims=True)
    np.testing.assert_allclose(maps, mean / mean.max((1, 2), keepdims=True), atol=1e-4)
    assert maps.min() == 0 and maps.max() > 0.99 and weight.max() > 1
