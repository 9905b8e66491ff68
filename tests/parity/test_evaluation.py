"""The training of evaluated networks against the official recipe."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.evaluate import plain
from edf_jax.models import torch_layout
from edf_jax.training import loop as training
from edf_jax.training import losses
from tests.parity import reference, reference_networks
from tests.parity.reference_networks import nhwc


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_after_each_epoch_are_the_official_ones(dtype):
    settings, arrays = reference.meta()["evaluation"], reference.load_npz("evaluation")
    network = reference_networks.build(settings, nhwc(arrays["images"]).shape[1:])
    recipe = training.Recipe(
        network,
        losses.soft_cross_entropy,
        training.sgd(settings["momentum"], settings["weight_decay"]),
        lambda key, images: images,
        lambda images: images,
        int(settings["batch"]),
    )

    @jax.jit
    def train(state, images, labels, schedule, epoch, order):
        this = jax.tree.map(lambda x: x[epoch][None], schedule)
        # Only the order of the images is the file's.
        with mock.patch.object(jax.random, "permutation", lambda *_: order):
            return training.train_epochs(recipe, state, images, labels, this, jax.random.key(0))

    with jax.enable_x64(True):
        theta = torch_layout.from_torch_flat(network, arrays["initial_params"]).astype(dtype)
        _, batch_stats = network.init(jax.random.key(0))
        batch_stats = jax.tree.map(lambda x: x.astype(dtype), batch_stats)
        state = training.TrainState(theta, batch_stats, recipe.optimiser.init(theta))
        images = jnp.asarray(nhwc(arrays["images"]), dtype)
        labels = jnp.asarray(arrays["labels"], dtype)
        schedule = plain.schedule(int(settings["epochs"]), jnp.asarray(settings["lr"], dtype))
        assert len(schedule.number) == settings["epochs_run"]
        start = np.float64(arrays["initial_params"])
        for epoch in range(len(schedule.number)):
            order = jnp.asarray(arrays[f"order{epoch}"])
            state, _ = train(state, images, labels, schedule, epoch, order)
            found = torch_layout.to_torch_flat(network, state.theta)
            expected = np.float64(arrays[f"params_after{epoch}"])
            error = reference.relative_error(found, expected)
            way = reference.relative_error(found - start, expected - start)
            print(f"relative error parameters after epoch {epoch} {dtype}: {error:.2e}")
            print(f"relative error way after epoch {epoch} {dtype}: {way:.2e}")
            assert state.theta.dtype == dtype
            assert error < 1e-4
            assert way < reference.WAY_TOLERANCE
