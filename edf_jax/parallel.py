"""Work spread over devices: trajectories, a student's batch, independent networks.

How many trajectories an iteration matches is part of the algorithm; a mesh only places the work,
and gives one device's numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from edf_jax.errors import UserError

TRAJECTORY, DATA, NETWORK = "trajectory", "data", "network"


def matching_mesh(trajectory: int, data: int) -> Mesh | None:
    """The devices of a distillation: trajectories along one axis, a batch's images along another.

    Args:
        trajectory: devices over which trajectories are spread.
        data: devices over which a student's batch is split.

    Returns:
        The mesh, or None where one device is enough.

    Raises:
        UserError: there are fewer devices.
    """
    if trajectory * data == 1:
        return None
    devices = jax.devices()
    if trajectory * data > len(devices):
        raise UserError(
            f"parallel.trajectory={trajectory} times parallel.data={data} needs "
            f"{trajectory * data} devices, but there are {len(devices)}"
        )
    grid = np.asarray(devices[: trajectory * data]).reshape(trajectory, data)
    return Mesh(grid, (TRAJECTORY, DATA))


def share_of_columns(rows: jax.Array, axis: str, size: int) -> jax.Array:
    """This device's columns of `rows [..., b]`, filled up with zeros to a multiple of `size`."""
    width = -(-rows.shape[-1] // size)
    padding = [(0, 0)] * (rows.ndim - 1) + [(0, width * size - rows.shape[-1])]
    return lax.dynamic_slice_in_dim(
        jnp.pad(rows, padding), lax.axis_index(axis) * width, width, rows.ndim - 1
    )


def over_networks(function: Callable) -> Callable:
    """`function` of arrays stacked along a leading axis of networks, spread over all devices.

    Args:
        function: takes and returns trees of arrays whose leading axis runs over networks, each
            network independent of the others.

    Returns:
        A function of the same arguments and results; the results are on all devices. Where the
        networks don't divide evenly, the last is computed more than once.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return function
    mesh = Mesh(np.asarray(devices), (NETWORK,))

    def spread(*arguments):
        count = jax.tree.leaves(arguments)[0].shape[0]
        padded = -(-count // len(devices)) * len(devices)
        positions = jnp.minimum(jnp.arange(padded), count - 1)
        results = jax.shard_map(
            function, mesh=mesh, in_specs=P(NETWORK), out_specs=P(NETWORK), check_vma=False
        )(*jax.tree.map(lambda x: x[positions], arguments))
        everywhere = jax.sharding.NamedSharding(mesh, P())
        return jax.tree.map(
            lambda x: lax.with_sharding_constraint(x[:count], everywhere), results
        )

    return spread
