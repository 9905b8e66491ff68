"""What PyTorch's tasks share."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pytorch_layers import ConvNet
from benchmarks.sizes import CLASSES, Sizes


class Task:
    """One benchmark's work (see `benchmarks.child`).

    Attributes:
        sizes: of the work.
        problem: what both frameworks are given.
        device: where it runs.
        steps: how many student steps are taken.
    """

    steps = 0

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        self.sizes, self.problem = sizes, problem
        self.device = torch.device("cuda" if sizes.device == "gpu" else "cpu")

    def finish(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tensor(self, array: np.ndarray) -> Tensor:
        """A copy, since what is learned moves in place."""
        return torch.tensor(np.ascontiguousarray(array), device=self.device)

    def pictures(self, array: np.ndarray) -> Tensor:
        """`[n, H, W, C]` as `[n, C, H, W]`."""
        return self.tensor(array.transpose(0, 3, 1, 2))

    def autocast(self) -> contextlib.AbstractContextManager:
        """The compute dtype of a forward pass."""
        if self.sizes.pytorch_precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def convnet(self) -> ConvNet:
        """The network of students, experts and evaluation."""
        sizes = self.sizes
        return ConvNet(sizes.width, sizes.depth, sizes.resolution, CLASSES).to(self.device)


def load(net: nn.Module, vector: Tensor) -> None:
    """Sets a network's parameters."""
    nn.utils.vector_to_parameters(vector.clone(), net.parameters())


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits `[n, C]` and label logits `[n, C]`."""
    targets = functional.softmax(labels, 1)
    return -(targets * functional.log_softmax(logits, 1)).sum(1).mean()


def peak_bytes() -> int:
    """The allocator's peak on a GPU; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def reset_peak() -> None:
    """Starts the allocator's peak anew."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
