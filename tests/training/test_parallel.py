"""A mesh places the work and changes no number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax import models
from edf_jax.config import resolve as config
from edf_jax.matching.placement import place
from edf_jax.runtime import devices
from edf_jax.runtime.errors import UserError
from edf_jax.training import parallel


@pytest.fixture(scope="module")
def rows():
    """`[dtype, placement, relative error, arrays compared]` from a process of eight devices.

    A placement is devices along trajectories and data, and trajectories mapped at once.
    """
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
def test_every_placement_gives_one_devices_loss_and_gradients(rows, dtype, bound):
    chosen = [row for row in rows if row[0] == dtype]
    assert (4, 2, 2) in {tuple(row[1]) for row in chosen}
    for _, placement, error, compared in chosen:
        print(f"relative error {dtype} placement {placement}: {error:.1e}")
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


_CORES = """
import jax
from edf_jax.runtime import devices
devices.set_up("float32")
print(jax.device_count(), devices.available_cores())
"""


@pytest.mark.parametrize(("flags", "expected"), [("", None), ("device_count=3", 3)])
def test_each_core_is_a_device_unless_flags_say_how_many(flags, expected):
    name = "--xla_force_host_platform_"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags and name + flags}
    finished = subprocess.run(
        [sys.executable, "-c", _CORES], capture_output=True, text=True, env=environment, check=True
    )
    count, cores = map(int, finished.stdout.split())
    assert count == (expected or min(cores, 16))


def test_a_batch_is_split_over_cores_only_where_it_can_be():
    def shares(batch=64, trajectory=1, norm="instance", **changes):
        changes = {"parallel.trajectory": trajectory, "distill.trajectories": trajectory, **changes}
        settings = config.resolve(config.default_config(**changes))
        network = models.build_network(
            "ConvNet", num_classes=4, image_shape=(8, 8, 3), width=4, depth=1, norm=norm
        )
        return place(settings, network, 1000, batch).data

    with mock.patch.object(devices, "all_devices", lambda: jax.devices()[:1] * 8):
        assert shares() == 8
        assert shares(trajectory=4) == 2
        assert shares(batch=13) == 3
        assert shares(batch=1) == 1
        assert shares(norm="batch") == 1
        assert shares(**{"distill.store": "everything"}) == 1
        assert shares(**{"parallel.data": 5}) == 5
        with mock.patch.object(devices, "platform", lambda: "gpu"):
            assert shares() == 1
