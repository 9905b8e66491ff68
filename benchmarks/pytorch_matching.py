"""Trajectory matching as the field's code does it: one graph through all the student's steps.

The student is `torch.func.functional_call` of a module on slices of a flat vector; its steps keep
their graph (`create_graph=True`), through which the matching loss is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import processes
from benchmarks.pytorch_common import Task, peak_bytes, reset_peak, soft_cross_entropy
from benchmarks.pytorch_layers import STUDENT_CROP, dsa
from benchmarks.sizes import ALPHA, Sizes


class Matching(Task):
    """One outer iteration: students, the matching loss, gradients through the steps, SGD."""

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        super().__init__(sizes, problem)
        self._net = self.convnet()
        self._shapes = [(name, p.shape) for name, p in self._net.named_parameters()]
        self.steps = sizes.syn_steps
        self._fit()

    def _fit(self) -> None:
        """Takes the number of steps whose graph fits, told by the growth from one to three."""
        if self.steps <= 3:
            return
        peaks = {}
        for steps in (1, 3):
            run = self.ready(0, steps)
            processes.reset_peak()
            reset_peak()
            run()
            peaks[steps] = peak_bytes() or processes.peak_resident_bytes()
        free = self.sizes.memory_gib * 2**30
        if not free:
            free = processes.available_bytes() + processes.resident_bytes()
            if self.device.type == "cuda":
                free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
            free *= 0.9
        growth = max((peaks[3] - peaks[1]) / 2, 1)
        self.steps = max(1, min(self.steps, 1 + int((free - peaks[1]) / growth)))
        while self.steps > 1:
            try:
                self.ready(0)()
                return
            except torch.OutOfMemoryError:
                reset_peak()
                self.steps -= math.ceil(self.steps / 20)

    def _logits(self, theta: Tensor, images: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for _, shape in self._shapes])
        named = {name: part.view(shape) for (name, shape), part in zip(self._shapes, parts)}
        with self.autocast():
            logits = torch.func.functional_call(self._net, named, (images,))
        return logits.to(torch.get_default_dtype())

    def _loss(self, trajectory: int, values, draws, start, target, steps) -> Tensor:
        images, labels, alpha = values
        indices, counts, ops, uniforms = (array[trajectory] for array in draws)
        theta = start.clone().requires_grad_(True)
        for step in range(steps):
            rows = indices[step, : counts[step]]
            seen = dsa(
                images[rows], int(ops[step]), uniforms[step, : counts[step]], STUDENT_CROP
            )
            loss = soft_cross_entropy(self._logits(theta, seen), labels[rows])
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - alpha * gradient
        distances, travelled = (theta - target) ** 2, (start - target) ** 2
        dropped = int(self.sizes.drop * distances.numel())
        kept = distances.detach() >= distances.detach().sort().values[dropped]
        return distances[kept].sum() / travelled[kept].sum()

    def ready(self, variant: int, steps: int | None = None) -> Callable[[], Any]:
        problem = self.problem
        values = (
            self.pictures(problem["images"]).requires_grad_(True),
            self.tensor(problem["labels"]).requires_grad_(True),
            torch.tensor(ALPHA, device=self.device, requires_grad=True),
        )
        optimisers = [
            torch.optim.SGD([value], lr, momentum)
            for value, lr, momentum in zip(values, (1000.0, 2.0, 1e-5), (0.5, 0.9, 0.5))
        ]
        indices = self.tensor(problem["indices"][variant]).long()
        uniforms = self.tensor(problem["uniforms"][variant])
        counts, ops = (problem[name][variant].tolist() for name in ("counts", "ops"))
        draws = (indices, counts, ops, uniforms)

        def run():
            total = 0.0
            for trajectory in range(self.sizes.networks):
                start = self.tensor(problem["starts_torch"][trajectory])
                target = self.tensor(problem["targets_torch"][trajectory])
                loss = self._loss(trajectory, values, draws, start, target, steps or self.steps)
                (loss / self.sizes.networks).backward()
                total += loss.item() / self.sizes.networks
            for optimiser in optimisers:
                optimiser.step()
            self.finish()
            return total, values

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        loss, (images, labels, alpha) = output
        return {
            "loss": np.asarray(loss),
            "images": images.grad.cpu().numpy().transpose(0, 2, 3, 1),
            "labels": labels.grad.cpu().numpy(),
            "alpha": alpha.grad.cpu().numpy(),
        }
