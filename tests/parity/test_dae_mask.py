"""The weight of discriminative area enhancement against the official one."""

from __future__ import annotations

import re

import numpy as np

from edf_jax.methods.dae import dae_weight
from tests.parity import reference


def test_weights_are_the_official_ones():
    arrays = reference.load_npz("dae_mask")
    names = [name for name in arrays if name.startswith("mask")]
    assert names
    for name in names:
        beta, threshold = map(float, re.fullmatch(r"mask_beta(.+)_threshold(.+)", name).groups())
        weight = np.asarray(dae_weight(arrays["maps"], beta, threshold))
        error = reference.relative_error(weight.transpose(0, 3, 1, 2), arrays[name])
        print(f"relative error {name}: {error:.2e}")
        assert error < 1e-6
