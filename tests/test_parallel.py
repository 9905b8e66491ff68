"""A mesh places the work and changes no number."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax import parallel
from edf_jax.errors import UserError


@pytest.fixture(scope="module")
def rows():
    """`[dtype, mesh, relative error, arrays compared]` from a process of eight devices."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.parallel_child"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-9), ("float32", 1e-3)])
def test_every_mesh_gives_one_devices_loss_and_gradients(rows, dtype, bound):
    chosen = [row for row in rows if row[0] == dtype]
    assert {tuple(row[1]) for row in chosen} >= {(8, 1), (1, 8), (4, 2)}
    for _, mesh, error, compared in chosen:
        print(f"relative error {dtype} mesh {mesh}: {error:.1e}")
        assert error < bound and compared == 4


def test_more_devices_than_there_are_is_told_in_one_line():
    count = len(jax.devices()) + 1
    with pytest.raises(UserError, match=f"needs {count} devices, but there are {count - 1}"):
        parallel.matching_mesh(count, 1)


def test_one_device_needs_no_mesh():
    assert parallel.matching_mesh(1, 1) is None


def test_shares_of_a_batch_cover_it_and_are_filled_with_zeros():
    rows = jnp.arange(1, 6).reshape(1, 5)
    shares = jax.vmap(
        lambda _: parallel.share_of_columns(rows, "data", 2), axis_name="data"
    )(jnp.zeros(2))
    np.testing.assert_array_equal(shares[:, 0], [[1, 2, 3], [4, 5, 0]])
