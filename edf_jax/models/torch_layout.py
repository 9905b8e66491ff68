"""Parameters in and out of PyTorch's names, order and layout.

The only place that knows both layouts. PyTorch holds convolution kernels as `[out, in, h, w]`,
linear kernels as `[out, in]` and the affine map of a layer norm as `[C, H, W]`; here they are
`[h, w, in, out]`, `[in, out]` and `[H, W, C]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.errors import UserError

if TYPE_CHECKING:
    from edf_jax.models.network import Network

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of the parameter or statistic at `path` in the module."""
    _, *modules, leaf = path
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def _axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    """The axes of our layout in PyTorch's order."""
    if path[-1] == "kernel":
        return (3, 2, 0, 1) if ndim == 4 else (1, 0)
    if path[-1] in ("scale", "bias") and ndim == 3:
        return (2, 0, 1)
    return tuple(range(ndim))


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch's layout of a leaf with our `shape`."""
    return tuple(shape[axis] for axis in _axes(path, len(shape)))


def _to_ours(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(np.argsort(_axes(path, tensor.ndim)))


def _to_torch(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(leaf.transpose(_axes(path, leaf.ndim)))


def from_torch(network: Network, tensors: Sequence[np.ndarray]) -> jax.Array:
    """`theta [P]` of parameter tensors in PyTorch's order and layout.

    Raises:
        UserError: where the number of tensors or a shape is not the network's.
    """
    return jnp.concatenate(
        [
            jnp.asarray(_to_ours(path, tensor).reshape(-1))
            for tensor, (_, _, path, _) in zip(
                _checked(network, network.param_table, tensors), network.param_table
            )
        ]
    )


def to_torch(network: Network, theta: jax.Array) -> list[np.ndarray]:
    """The parameter tensors of `theta [P]` in PyTorch's order and layout."""
    theta = np.asarray(theta)
    tensors, start = [], 0
    for _, _, path, shape in network.param_table:
        end = start + math.prod(shape)
        tensors.append(_to_torch(path, theta[start:end].reshape(shape)))
        start = end
    return tensors


def from_torch_flat(network: Network, flat: np.ndarray) -> jax.Array:
    """`theta [P]` of a vector of PyTorch's parameters, each raveled in PyTorch's layout.

    Raises:
        UserError: where the vector's length is not the network's number of parameters.
    """
    flat = np.asarray(flat)
    if flat.shape != (network.num_params,):
        raise UserError(
            f"{network.name} has {network.num_params} parameters, the vector's shape is "
            f"{flat.shape}: is it of another network, width, depth or number of classes?"
        )
    tensors, start = [], 0
    for _, shape, _, _ in network.param_table:
        end = start + math.prod(shape)
        tensors.append(flat[start:end].reshape(shape))
        start = end
    return from_torch(network, tensors)


def to_torch_flat(network: Network, theta: jax.Array) -> np.ndarray:
    """The inverse of `from_torch_flat`."""
    return np.concatenate([tensor.reshape(-1) for tensor in to_torch(network, theta)])


def _checked(network: Network, table: Sequence, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
    tensors = [np.asarray(tensor) for tensor in tensors]
    if len(tensors) != len(table):
        raise UserError(
            f"{network.name} has {len(table)} tensors of this kind, {len(tensors)} were given: "
            "are they of another network, norm or depth?"
        )
    for tensor, (name, shape, _, _) in zip(tensors, table):
        if tensor.shape != shape:
            raise UserError(
                f"{name} of {network.name} has shape {shape}, the one given has {tensor.shape}: "
                "are they of another width, resolution or number of classes?"
            )
    return tensors
