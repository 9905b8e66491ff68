"""Controls of CPD: what they leave out, and what they divide by."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from edf_jax.matching.gradient import matching_loss
from edf_jax.methods.cpd import common_pattern_dropout
from experiments import controls

_RNG = np.random.default_rng(0)
_THETA, _START, _TARGET = (jnp.asarray(_RNG.standard_normal(1000), jnp.float32) for _ in range(3))


def test_a_random_share_is_left_out_and_another_in_the_next_iteration():
    select = controls.random_dropout(0.25)
    one, other = (np.asarray(select((_THETA - t) ** 2)) for t in (_TARGET, _START))
    assert one.sum() == other.sum() == 750
    assert (one != other).mean() > 0.2
    smallest = np.sort(np.asarray((_THETA - _TARGET) ** 2))[:250]
    left_out = np.asarray((_THETA - _TARGET) ** 2)[~one]
    assert left_out.mean() > 5 * smallest.mean()


def test_the_rescaled_loss_is_all_distances_over_the_way_that_cpd_keeps():
    loss = matching_loss(_THETA, _START, _TARGET, controls.rescaled(0.25))
    kept = np.asarray(common_pattern_dropout(0.25)((_THETA - _TARGET) ** 2))
    distances = np.float64(_THETA - _TARGET) ** 2
    travelled = np.float64(_START - _TARGET) ** 2
    np.testing.assert_allclose(loss, distances.sum() / travelled[kept].sum(), rtol=1e-5)
