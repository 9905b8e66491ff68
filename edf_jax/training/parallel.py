"""Work spread over devices: trajectories, a student's batch, independent networks.

How many trajectories an iteration matches is part of the algorithm; a mesh only places the work,
and gives one device's numbers up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from edf_jax.runtime import devices
from edf_jax.runtime import processes as hosts
from edf_jax.runtime.errors import UserError

TRAJECTORY, DATA, NETWORK = "trajectory", "data", "network"


def matching_mesh(trajectory: int, data: int) -> Mesh | None:
    """The devices of a distillation: trajectories along one axis, a batch's images along another.

    Args:
        trajectory: devices over which trajectories are spread.
        data: devices over which a student's batch is split.

    Returns:
        The mesh, or None where one device is enough. Of several processes each has an equal part
        of it.

    Raises:
        UserError: there are fewer devices, or they don't spread evenly over processes.
    """
    if trajectory * data == 1:
        return None
    present = devices.all_devices()
    if trajectory * data > len(present):
        raise UserError(
            f"parallel.trajectory={trajectory} times parallel.data={data} needs "
            f"{trajectory * data} devices, but there are {len(present)}"
        )
    chosen = _of_every_process(present, trajectory * data)
    return Mesh(np.asarray(chosen).reshape(trajectory, data), (TRAJECTORY, DATA))


def _of_every_process(present: Sequence[jax.Device], total: int) -> list[jax.Device]:
    processes = jax.process_count()
    each, rest = divmod(total, processes)
    of_process = [[d for d in present if d.process_index == p][:each] for p in range(processes)]
    if rest or any(len(own) < each for own in of_process):
        raise UserError(
            f"parallel.trajectory times parallel.data is {total}, which {processes} processes with "
            f"{len(present)} devices can't share evenly: take a multiple of {processes}"
        )
    return [device for own in of_process for device in own]


def from_first(arrays: Any, mesh: Mesh | None) -> Any:
    """The first process's arrays, on all devices of a mesh.

    Args:
        arrays: a tree; in the other processes only the shapes and types matter.
        mesh: None is all devices.

    Returns:
        The tree as it is where there is one process, else arrays that all devices hold.
    """
    if hosts.count() == 1:
        return arrays
    holders = jax.devices() if mesh is None else list(mesh.devices.flat)
    rows = Mesh(np.asarray(holders), ("row",))
    placed = NamedSharding(rows, P("row"))
    own = [device for device in holders if device.process_index == jax.process_index()]

    def spread(leaf) -> jax.Array:
        leaf = np.asarray(leaf)[None]
        nothing = np.zeros_like(leaf)
        parts = [
            jax.device_put(leaf if device == holders[0] else nothing, device) for device in own
        ]
        shape = (len(holders), *leaf.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, placed, parts)

    return _sum_of_rows(rows)(jax.tree.map(spread, arrays))


@functools.cache
def _sum_of_rows(mesh: Mesh) -> Callable:
    def total(tree):
        return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), tree)

    return jax.jit(total, out_shardings=NamedSharding(mesh, P()))


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
    present = devices.all_devices()
    if len(present) == 1:
        return function
    mesh = Mesh(np.asarray(present), (NETWORK,))

    def spread(*arguments):
        count = jax.tree.leaves(arguments)[0].shape[0]
        padded = -(-count // len(present)) * len(present)
        positions = jnp.minimum(jnp.arange(padded), count - 1)
        results = jax.shard_map(
            function, mesh=mesh, in_specs=P(NETWORK), out_specs=P(NETWORK), check_vma=False
        )(*jax.tree.map(lambda x: x[positions], arguments))
        everywhere = NamedSharding(mesh, P())
        return jax.tree.map(
            lambda x: lax.with_sharding_constraint(x[:count], everywhere), results
        )

    return spread
