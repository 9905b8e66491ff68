"""GSAM steps against the official optimiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edf_jax.methods import gsam
from edf_jax.models import torch_layout
from edf_jax.training import losses
from tests.parity import reference, reference_networks
from tests.parity.reference_networks import nhwc


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_are_the_official_ones(dtype):
    settings, arrays = reference.meta()["gsam"], reference.load_npz("gsam")
    network = reference_networks.build(settings, nhwc(arrays["x0"]).shape[1:])

    optimiser = optax.chain(
        optax.add_decayed_weights(settings["weight_decay"]),
        optax.sgd(settings["lr"], momentum=settings["momentum"]),
    )

    @jax.jit
    def step(theta, state, images, labels):
        def loss_fn(theta):
            return losses.hard_cross_entropy(network.apply(theta, images, train=True), labels), ()

        loss, _, direction = gsam.gsam_gradient(
            jax.value_and_grad(loss_fn, has_aux=True),
            theta,
            rho=settings["rho"],
            alpha=settings["alpha"],
            adaptive=settings["adaptive"],
            eps=settings["perturb_eps"],
        )
        updates, state = optimiser.update(direction, state, theta)
        return optax.apply_updates(theta, updates), state, loss

    with jax.enable_x64(True):
        theta = torch_layout.from_torch_flat(network, arrays["initial_params"]).astype(dtype)
        state = optimiser.init(theta)
        start = np.asarray(torch_layout.to_torch_flat(network, theta), np.float64)
        for i in range(settings["steps"]):
            images = jnp.asarray(nhwc(arrays[f"x{i}"]), dtype)
            labels = jnp.asarray(arrays[f"y{i}"], jnp.int32)
            theta, state, loss = step(theta, state, images, labels)
            expected = arrays[f"params_after{i}"]
            moved = torch_layout.to_torch_flat(network, theta)
            errors = {
                "loss": reference.relative_error(loss, arrays[f"loss{i}"]),
                "parameters": reference.relative_error(moved, expected),
            }
            way = reference.relative_error(moved - start, expected - start)
            for name, error in {**errors, "way": way}.items():
                print(f"relative error {name} after step {i} {dtype}: {error:.2e}")
            assert max(errors.values()) < 1e-4
            assert way < reference.WAY_TOLERANCE
