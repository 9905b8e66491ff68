"""Experts and evaluated networks in plain PyTorch: one network after another, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pytorch_common import Task, load, soft_cross_entropy
from benchmarks.pytorch_layers import STUDENT_CROP, dsa
from benchmarks.sizes import ALPHA, MEAN, STD, Sizes

_CROP, _RATE, _RHO, _GSAM_ALPHA = 0.125, 0.01, 0.01, 0.3


class _Training(Task):
    """What training on stored images shares."""

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        super().__init__(sizes, problem)
        self._real_images = self.pictures(problem["real_images"])
        self._real_labels = self.tensor(problem["real_labels"]).long()
        self._mean = torch.tensor(MEAN, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(STD, device=self.device).view(1, 3, 1, 1)
        self._net = self.convnet()

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.to(torch.get_default_dtype()) / 255 - self._mean) / self._std

    def _draws(self, variant: int):
        orders, ops, uniforms = (self.problem[k][variant] for k in ("orders", "ops", "uniforms"))
        return self.tensor(orders).long(), ops, self.tensor(uniforms)

    def _movement(self, vectors: list[Tensor], before: np.ndarray) -> np.ndarray:
        return np.stack([v.detach().cpu().numpy() for v in vectors]) - before


class Experts(_Training):
    """An epoch of several experts, one after another: GSAM on augmented batches."""

    def _gradient(self, loss: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        value = loss()
        return value, list(torch.autograd.grad(value, list(self._net.parameters())))

    @staticmethod
    def _norm(tensors: list[Tensor]) -> Tensor:
        return torch.stack([tensor.norm() for tensor in tensors]).norm()

    def _step(self, loss: Callable[[], Tensor]) -> Tensor:
        parameters = list(self._net.parameters())
        value, gradient = self._gradient(loss)
        with torch.no_grad():
            length = self._norm([p.abs() * g for p, g in zip(parameters, gradient)])
            ascent = [p * p * g * (_RHO / (length + 1e-12)) for p, g in zip(parameters, gradient)]
            for p, e in zip(parameters, ascent):
                p.add_(e)
        _, perturbed = self._gradient(loss)
        with torch.no_grad():
            norm, other = self._norm(gradient), self._norm(perturbed)
            product = torch.stack([(g * o).sum() for g, o in zip(gradient, perturbed)]).sum()
            cosine = product / (other * norm + 1e-12)
            for p, e, g, o in zip(parameters, ascent, gradient, perturbed):
                vertical = g - cosine * norm * o / (other + 1e-12)
                p.sub_(e)
                p.sub_(_RATE * (o - _GSAM_ALPHA * vertical))
        return value.detach()

    def ready(self, variant: int) -> Callable[[], Any]:
        orders, ops, uniforms = self._draws(variant)
        starts = self.tensor(self.problem["thetas_torch"])

        def run():
            losses, ends = [], []
            for k in range(self.sizes.networks):
                load(self._net, starts[k])
                found = []
                for step, rows in enumerate(orders[k].split(self.sizes.batch)):
                    images = self._normalised(self._real_images[rows])
                    seen = dsa(
                        images, int(ops[k, step]), uniforms[k, step, : len(rows)], _CROP
                    )
                    labels = self._real_labels[rows]

                    def loss(seen=seen, labels=labels):
                        with self.autocast():
                            logits = self._net(seen).to(torch.get_default_dtype())
                        return functional.cross_entropy(logits, labels)

                    found.append(self._step(loss))
                losses.append(torch.stack(found).mean())
                ends.append(nn.utils.parameters_to_vector(self._net.parameters()).detach())
            self.finish()
            return losses, ends

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        losses, ends = output
        return {
            "loss": torch.stack(losses).cpu().numpy(),
            "movement": self._movement(ends, self.problem["thetas_torch"]),
        }


class Evaluation(_Training):
    """Networks trained from scratch one after another, and tested."""

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        super().__init__(sizes, problem)
        self._images = self.pictures(problem["images"])
        self._labels = self.tensor(problem["labels"])

    def _train(self, orders: Tensor, ops: np.ndarray, uniforms: Tensor) -> None:
        size = min(self.sizes.batch, len(self._images))
        rate = ALPHA

        def optimiser():
            return torch.optim.SGD(
                self._net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4
            )

        sgd = optimiser()
        for epoch in range(self.sizes.epochs):
            if epoch == (self.sizes.epochs - 1) // 2 + 2:
                rate *= 0.1
                sgd = optimiser()
            for step, rows in enumerate(orders[epoch].split(size)):
                seen = dsa(
                    self._images[rows],
                    int(ops[epoch, step]),
                    uniforms[epoch, step, : len(rows)],
                    STUDENT_CROP,
                )
                with self.autocast():
                    logits = self._net(seen).to(torch.get_default_dtype())
                loss = soft_cross_entropy(logits, self._labels[rows])
                sgd.zero_grad()
                loss.backward()
                sgd.step()

    @torch.no_grad()
    def _test(self) -> float:
        right = 0
        pairs = zip(self._real_images.split(256), self._real_labels.split(256))
        for images, labels in pairs:
            with self.autocast():
                logits = self._net(self._normalised(images))
            right += int((logits.argmax(1) == labels).sum())
        return 100 * right / len(self._real_labels)

    def ready(self, variant: int) -> Callable[[], Any]:
        orders, ops, uniforms = self._draws(variant)
        starts = self.tensor(self.problem["thetas_torch"][variant])

        def run():
            ends, accuracies = [], []
            for k in range(self.sizes.networks):
                load(self._net, starts[k])
                self._train(orders[k], ops[k], uniforms[k])
                accuracies.append(self._test())
                ends.append(nn.utils.parameters_to_vector(self._net.parameters()).detach())
            self.finish()
            return ends, accuracies

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        ends, accuracies = output
        return {
            "accuracy": np.asarray(accuracies),
            "movement": self._movement(ends, self.problem["thetas_torch"][0]),
        }
