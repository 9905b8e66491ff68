"""The soft cross-entropy against the official one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from edf_jax.training import losses
from tests.parity import reference


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_is_the_official_one(dtype):
    arrays = reference.load_npz("soft_cross_entropy")
    with jax.enable_x64(True):
        loss = losses.soft_cross_entropy(
            jnp.asarray(arrays["logits"], dtype), jnp.asarray(arrays["targets"], dtype)
        )
    error = reference.relative_error(loss, arrays["loss"])
    print(f"relative error soft_cross_entropy {dtype}: {error:.2e}")
    assert loss.dtype == dtype
    assert error < 1e-5
