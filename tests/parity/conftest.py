"""Parity is measured in true float32, which a run computes in unless told otherwise."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def _true_float32():
    # By itself a GPU would multiply in TF32, a TPU in bfloat16.
    with jax.default_matmul_precision("highest"):
        yield
