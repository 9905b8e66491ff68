"""Class activation maps against torchcam's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.methods import gradcam
from edf_jax.models import torch_layout
from tests.parity import reference, reference_networks
from tests.parity.reference_networks import nhwc


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["grad_cam", "smooth_grad_cam_pp"])
def test_maps_are_the_official_ones(method, dtype):
    settings, arrays = reference.meta()["cam"], reference.load_npz("cam")
    network = reference_networks.build(settings, nhwc(arrays["x"]).shape[1:])
    with jax.enable_x64(True):
        images = jnp.asarray(nhwc(arrays["x"]), dtype)
        noise = jnp.asarray(np.moveaxis(arrays["smooth_noise"], 2, -1), dtype)
        theta = torch_layout.from_torch_flat(network, arrays["params"]).astype(dtype)
        _, batch_stats = network.init(jax.random.key(0))
        classes = jnp.asarray(settings["classes"])

        @jax.jit
        def compute(theta, images, noise):
            features = functools.partial(network.features, theta, batch_stats=batch_stats)
            classify = functools.partial(network.classify, theta, batch_stats=batch_stats)
            extra = (noise,) if method == "smooth_grad_cam_pp" else ()
            maps = getattr(gradcam, method)(features, classify, images, classes, *extra)
            return maps, gradcam.resize_maps(maps, images.shape[1:3])

        results = compute(theta, images, noise)
    for name, result in zip((method, f"{method}_up"), results):
        error = reference.relative_error(result, arrays[name])
        print(f"relative error {name} {dtype}: {error:.2e}")
        assert result.dtype == dtype
        assert error < 1e-4
