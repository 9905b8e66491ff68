"""Networks trained elsewhere: state dicts in PyTorch's names, as `.safetensors` or `.pth`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from edf_jax.models import torch_files, torch_layout
from edf_jax.models.network import Network
from edf_jax.models.registry import build_network
from edf_jax.runtime.errors import UserError

CAM_NETWORK = "ResNet18BNImageNet"
IMAGENET_CLASSES = 1000

# Under what name training scripts keep the weights in a checkpoint.
_CONTAINERS = ("state_dict", "model_state_dict", "model")


def read_state_dict(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a state dict by name, and a `.safetensors` file's metadata.

    Args:
        path: `.safetensors`, or a file of PyTorch's (read with weights-only loading).

    Raises:
        UserError: it is missing, damaged, holds more than tensors, or is no state dict.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)

    state = torch_files.read(path)
    for name in _CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state or not all(isinstance(k, str) for k in state):
        raise UserError(f"{path} is no state dict: it isn't a dict of tensors by name")
    return {k: torch_files.as_array(v, f"{k} in {path}") for k, v in state.items()}, {}


def _read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except Exception:  # The library's own kind, and NumPy's where it lacks a number type.
        raise UserError(f"{path} is damaged, truncated or no .safetensors file") from None


def load_cam_network(
    path: str | os.PathLike,
    *,
    image_shape: tuple[int, int, int],
    num_classes: Collection[int] = (IMAGENET_CLASSES,),
    convolution: Callable | None = None,
    dtype: Any = None,
) -> tuple[Network, jax.Array, dict]:
    """A ResNet-18 in torchvision's layout, whose class activation maps weigh pixel gradients.

    Args:
        path: its state dict, see `read_state_dict`.
        image_shape: `(H, W, C)` of the images that it will see.
        num_classes: the numbers of classes that will do.
        convolution: as in `build_network`.
        dtype: as in `build_network`.

    Returns:
        The network, `theta [P]`, and its batch-norm statistics.

    Raises:
        UserError: the file can't be read, or is of another network or number of classes.
    """
    state, _ = read_state_dict(path)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    stem = state.get("conv1.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] != image_shape[2]:
        raise UserError(
            f"{path} takes images of {stem.shape[1]} channels, the data has {image_shape[2]}"
        )
    head = state.get("fc.bias", state.get("classifier.bias"))
    found = len(head) if head is not None and head.ndim == 1 else IMAGENET_CLASSES
    if found not in num_classes:
        allowed = " or ".join(map(str, sorted(set(num_classes))))
        raise UserError(f"{path} has {found} classes, not {allowed}")
    network = build_network(
        CAM_NETWORK,
        num_classes=found,
        image_shape=image_shape,
        convolution=convolution,
        dtype=dtype,
    )
    theta, batch_stats = torch_layout.from_state_dict(network, state, source=str(path))
    return network, theta, batch_stats
