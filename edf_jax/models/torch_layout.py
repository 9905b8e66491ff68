"""Parameters in and out of PyTorch's names, order and layout.

The only place that knows both layouts. PyTorch holds convolution kernels as `[out, in, h, w]`,
linear kernels as `[out, in]` and the affine map of a layer norm as `[C, H, W]`; here they are
`[h, w, in, out]`, `[in, out]` and `[H, W, C]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from edf_jax.models.network import Network
from edf_jax.runtime.errors import UserError

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


def torch_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """PyTorch's name and shape of every parameter, then every statistic, in forward order."""
    table = network.param_table + network.stats_table
    return {torch_name(path): torch_shape(path, shape) for path, shape in table}


def _to_ours(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(np.argsort(_axes(path, tensor.ndim)))


def _to_torch(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(leaf.transpose(_axes(path, leaf.ndim)))


def from_torch(network: Network, tensors: Sequence[np.ndarray]) -> jax.Array:
    """`theta [P]` of parameter tensors in PyTorch's order and layout.

    Raises:
        UserError: where the number of tensors or a shape is not the network's.
    """
    tensors = _checked(network, network.param_table, tensors)
    return jnp.asarray(
        np.concatenate(
            [
                _to_ours(path, tensor).reshape(-1)
                for tensor, (path, _) in zip(tensors, network.param_table)
            ]
        )
    )


def to_torch(network: Network, theta: jax.Array) -> list[np.ndarray]:
    """The parameter tensors of `theta [P]` in PyTorch's order and layout."""
    vector = np.asarray(theta)
    tensors, start = [], 0
    for path, shape in network.param_table:
        end = start + math.prod(shape)
        tensors.append(_to_torch(path, vector[start:end].reshape(shape)))
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
    for path, shape in network.param_table:
        end = start + math.prod(shape)
        tensors.append(flat[start:end].reshape(torch_shape(path, shape)))
        start = end
    return from_torch(network, tensors)


def to_torch_flat(network: Network, theta: jax.Array) -> np.ndarray:
    """The inverse of `from_torch_flat`."""
    return np.concatenate([tensor.reshape(-1) for tensor in to_torch(network, theta)])


def stats_from_torch(network: Network, tensors: Sequence[np.ndarray]) -> dict:
    """Batch-norm statistics of running means and variances in PyTorch's order; `{}` of none.

    Raises:
        UserError: where the number of tensors or a shape is not the network's.
    """
    tensors = _checked(network, network.stats_table, tensors)
    return traverse_util.unflatten_dict(
        {path: jnp.asarray(tensor) for tensor, (path, _) in zip(tensors, network.stats_table)}
    )


def stats_to_torch(network: Network, batch_stats: dict) -> list[np.ndarray]:
    """Running means and variances in PyTorch's order; the inverse of `stats_from_torch`."""
    flat = traverse_util.flatten_dict(batch_stats)
    return [np.asarray(flat[path]) for path, _ in network.stats_table]


def to_state_dict(
    network: Network, theta: jax.Array, batch_stats: dict | None = None
) -> dict[str, np.ndarray]:
    """Parameters and batch-norm statistics by PyTorch's names and in its layout."""
    tensors = to_torch(network, theta) + stats_to_torch(network, batch_stats or {})
    names = torch_shapes(network)
    return dict(zip(names, tensors))


def from_state_dict(
    network: Network, state: Mapping[str, np.ndarray], *, source: str = "the file"
) -> tuple[jax.Array, dict]:
    """`theta [P]` and batch-norm statistics of PyTorch's tensors by name.

    Takes the names of the field's code and torchvision's (`downsample`, `fc`), with or without
    DataParallel's `module.` before them.

    Args:
        network: the network that the tensors are for.
        state: the tensors by name.
        source: what holds them, for the messages.

    Raises:
        UserError: where names are missing or unexpected, a shape is not the network's, or the
            number of classes is another.
    """
    expected = torch_shapes(network)
    found = {
        _our_name(name, expected): np.asarray(tensor)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    for problem, names in (
        ("lacks", [name for name in expected if name not in found]),
        ("has what the network does not:", [name for name in found if name not in expected]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{source} does not fit {network.name}: it {problem} {', '.join(names[:3])}{more}; "
                "is it of another network, norm or depth?"
            )
    head = [torch_name(path) for path, _ in network.param_table if path[0] == "head"][-2:]
    classes = found[head[0]].shape[0]
    if classes != network.num_classes and found[head[0]].shape[1:] == expected[head[0]][1:]:
        raise UserError(f"{source} has {classes} classes, the network {network.num_classes}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise UserError(
                f"{source} does not fit {network.name}: {name} has shape {found[name].shape} in it "
                f"and {shape} in the network; is it of another width or resolution?"
            )
    theta = from_torch(network, [found[torch_name(path)] for path, _ in network.param_table])
    statistics = [found[torch_name(path)] for path, _ in network.stats_table]
    return theta, stats_from_torch(network, statistics)


def _our_name(name: str, expected: Mapping[str, tuple[int, ...]]) -> str:
    name = name.removeprefix("module.")
    if name in expected:
        return name
    torchvision = name.replace(".downsample.", ".shortcut.")
    if torchvision.startswith("fc."):
        torchvision = "classifier." + torchvision.removeprefix("fc.")
    return torchvision if torchvision in expected else name


def _checked(network: Network, table: Sequence, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
    # Half-precision files become float32, the dtype of parameters.
    tensors = [np.asarray(tensor) for tensor in tensors]
    tensors = [t.astype(np.promote_types(t.dtype, np.float32), copy=False) for t in tensors]
    if len(tensors) != len(table):
        raise UserError(
            f"{network.name} has {len(table)} tensors of this kind, {len(tensors)} were given: "
            "are they of another network, norm or depth?"
        )
    for tensor, (path, ours) in zip(tensors, table):
        name, shape = torch_name(path), torch_shape(path, ours)
        if tensor.shape != shape:
            raise UserError(
                f"{name} of {network.name} has shape {shape}, the one given has {tensor.shape}: "
                "are they of another width, resolution or number of classes?"
            )
    return tensors
