"""Labels averaged over the experts that are right, against the official code."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from edf_jax.methods.soft_labels import average_labels
from tests.parity import reference


def test_labels_are_the_official_ones_where_an_expert_is_right():
    arrays = reference.load_npz("soft_labels")
    ours = average_labels(
        jnp.asarray(arrays["expert_logits"]), jnp.asarray(arrays["true_labels"])
    )
    known = arrays["correct_count"] > 0
    error = reference.relative_error(ours[known], arrays["averaged"][known])
    print(f"relative error soft labels: {error:.2e}")
    assert known.any()
    assert error < 1e-5


def test_labels_are_the_mean_of_all_experts_where_the_official_ones_are_undefined():
    arrays = reference.load_npz("soft_labels")
    ours = average_labels(
        jnp.asarray(arrays["expert_logits"]), jnp.asarray(arrays["true_labels"])
    )
    unknown = arrays["correct_count"] == 0
    assert np.isnan(arrays["averaged"][unknown]).all()
    means = arrays["expert_logits"].mean(axis=0)
    np.testing.assert_allclose(np.asarray(ours)[unknown], means[unknown], rtol=1e-5, atol=1e-6)
