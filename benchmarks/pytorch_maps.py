"""Class activation maps in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pytorch_common import Task, load
from benchmarks.pytorch_layers import ConvNet, ResNet18
from benchmarks.sizes import Sizes

_BETA = 1.0


class Maps(Task):
    """The activation maps of all synthetic images in one batch, and their weight."""

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        super().__init__(sizes, problem)
        self._net = net = self._network()
        load(net, self.tensor(problem["theta_torch"]))
        names = sorted(name for name in problem if name.startswith("stats_"))
        buffers = [b for name, b in net.named_buffers() if not name.endswith("tracked")]
        for name, buffer in zip(names, buffers, strict=True):
            buffer.copy_(self.tensor(problem[name]))
        self._images = self.pictures(problem["images"])
        self._classes = self.tensor(problem["labels"]).argmax(1)

    def _network(self) -> ConvNet | ResNet18:
        if self.sizes.cam == "ConvNet":
            return self.convnet().eval()
        return ResNet18(1000).to(self.device).eval()

    def _gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast():
            with torch.no_grad():
                features = self._net.features(images)
            features = features.to(torch.get_default_dtype()).requires_grad_(True)
            logits = self._net.classify(features).to(torch.get_default_dtype())
        score = logits.gather(1, self._classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, features)
        return features.detach(), gradient

    def _smooth(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        passes = [self._gradient(self._images + sample) for sample in noise]
        second, third = (
            torch.stack([gradient**power for _, gradient in passes]).mean(0) for power in (2, 3)
        )
        last, gradient = passes[-1]
        with torch.no_grad(), self.autocast():
            clean = self._net.features(self._images).to(torch.get_default_dtype())
        alpha = second / (2 * second + (third * clean).sum((2, 3), keepdim=True) + 1e-8)
        return (alpha * gradient.relu()).sum((2, 3)), last

    def ready(self, variant: int) -> Callable[[], Any]:
        noise = None
        if self.sizes.method != "grad_cam":
            noise = torch.stack([self.pictures(x) for x in self.problem["noise"][variant]])

        def run():
            if noise is None:
                features, gradient = self._gradient(self._images)
                weights = gradient.mean((2, 3))
            else:
                weights, features = self._smooth(noise)
            maps = (weights[:, :, None, None] * features).sum(1).relu()
            maps = maps - maps.amin((1, 2), keepdim=True)
            maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-8)
            maps = functional.interpolate(
                maps[:, None], self._images.shape[2:], mode="bilinear", align_corners=False
            )[:, 0]
            high = maps >= maps.mean((1, 2), keepdim=True)
            weight = torch.where(high, maps + _BETA, 1.0)
            self.finish()
            return maps, weight

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        return {"maps": output[0].cpu().numpy()}
