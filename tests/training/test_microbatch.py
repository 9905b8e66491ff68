"""A batch in parts is the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.models import build_network
from edf_jax.training import loop as training
from edf_jax.training import losses, microbatch


def _network(norm="instance"):
    return build_network(
        "ConvNet", num_classes=3, image_shape=(8, 8, 3), width=4, depth=1, norm=norm
    )


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_sums_and_rows_of_parts_are_the_batchs(parts):
    batch = {"x": jnp.arange(7.0), "y": jnp.arange(14.0).reshape(7, 2)}

    def function(_, part):
        return {"sum": jnp.sum(part["x"]), "products": part["y"].T @ part["y"]}, 2 * part["y"]

    totals, rows = microbatch.summed(function, batch, parts)
    np.testing.assert_allclose(totals["sum"], 21)
    np.testing.assert_allclose(totals["products"], batch["y"].T @ batch["y"])
    np.testing.assert_array_equal(rows, 2 * batch["y"])


def test_shares_of_a_mean_add_up_to_it_where_a_part_counts_for_nothing():
    logits = jax.random.normal(jax.random.key(0), (6, 3))
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    mask = jnp.array([1, 1, 1, 0, 0, 0])
    weights = microbatch.weights_of(mask, 6)
    shares = [
        microbatch.share_of_mean(
            lambda m, part=part: losses.hard_cross_entropy(logits[part], labels[part], m),
            weights[part],
        )
        for part in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    assert float(shares[2]) == 0
    np.testing.assert_allclose(
        sum(shares), losses.hard_cross_entropy(logits, labels, mask), rtol=1e-6
    )
    np.testing.assert_allclose(microbatch.weights_of(None, 4), np.full(4, 0.25))


def test_only_batches_larger_than_a_cache_are_cut():
    # Its first convolution's result is 1 KiB an image.
    assert microbatch.count_parts(_network(), 256, "cpu") == 1
    assert microbatch.count_parts(_network(), 1280, "cpu") == 1
    assert microbatch.count_parts(_network(), 1281, "cpu") == 2
    assert microbatch.count_parts(_network(), 1281, "gpu") == 1
    assert microbatch.count_parts(_network("batch"), 1281, "cpu") == 1


@pytest.mark.parametrize("gsam", [None, training.Gsam(0.05, 0.3, True)])
def test_a_training_step_in_parts_is_the_step(gsam, monkeypatch):
    recipe = training.Recipe(
        _network(),
        losses.hard_cross_entropy,
        training.sgd(0.9, 1e-3),
        lambda _, x: x,
        lambda x: x,
        5,
        gsam,
    )
    with jax.enable_x64(True):
        theta, _ = recipe.network.init(jax.random.key(0))
        theta = theta.astype(jnp.float64)
        state = training.TrainState(theta, {}, recipe.optimiser.init(theta))
        images = jax.random.normal(jax.random.key(1), (5, 8, 8, 3), jnp.float64)
        labels, mask = jnp.array([0, 1, 2, 0, 0]), jnp.array([1, 1, 1, 1, 0], bool)
        found = []
        for bytes_of_cache in (2**20, 2100):
            monkeypatch.setattr(microbatch, "_CACHE_BYTES", bytes_of_cache)
            found.append(
                training.train_step(
                    recipe, state, images, labels, mask, jax.random.key(2), jnp.asarray(0.1)
                )
            )
        (whole, loss), (cut, cut_loss) = found
        np.testing.assert_allclose(cut_loss, loss, rtol=1e-10)
        np.testing.assert_allclose(cut.theta, whole.theta, rtol=1e-9, atol=1e-12)
        assert float(jnp.max(jnp.abs(whole.theta - theta))) > 1e-3
