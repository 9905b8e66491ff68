"""A whole EDF distillation by the official algorithm's steps, in plain PyTorch.

Written from the equations: students by `torch.func.functional_call` with their graph kept, CPD by
sorting, Grad-CAM weights, three `torch.optim.SGD`. Random draws are PyTorch's and NumPy's own.

References:
    Wang et al., EDF (2410.17193); Guo et al., DATM (2310.05773).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pytorch_common import load, soft_cross_entropy
from benchmarks.pytorch_layers import ConvNet, dsa
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.methods.dsa import FULL_STRATEGY, parse_strategy
from edf_jax.models import torch_layout


class Distillation:
    """What the outer iterations share.

    Attributes:
        skipped: iterations whose loss was over the threshold.
    """

    def __init__(self, config, network, store: TrajectoryStore, seed: int):
        """Takes the experts.

        Args:
            config: resolved: EDF with Grad-CAM maps by an expert.
            network: ours, whose layout the experts' parameters have.
            store: the experts.
            seed: fixes all draws.
        """
        self._options, self._config = config.distill, config
        self._rng = np.random.default_rng(seed)
        height, _, _ = network.image_shape
        depth = sum(len(shape) == 4 for _, shape in network.param_table)
        width = network.param_table[0][1][-1]

        def snapshot(expert: int, epoch: int) -> Tensor:
            theta = store.snapshot(expert, epoch)
            return torch.from_numpy(torch_layout.to_torch_flat(network, theta).copy())

        self._snapshot = snapshot
        self._net = ConvNet(width, depth, height, network.num_classes)
        self._cam_net = ConvNet(width, depth, height, network.num_classes)
        load(self._cam_net, snapshot(0, config.experts.epochs))
        self._names = [(name, p.shape) for name, p in self._net.named_parameters()]
        full = parse_strategy(FULL_STRATEGY)
        self._ops = [full.index(name) for name in parse_strategy(config.augment.strategy)]
        self.skipped = 0

    def run(self, initial: DistilledSet, progress: Callable[[int, float], None]) -> DistilledSet:
        """All iterations, from a set to start from to the last one.

        Args:
            initial: images and labels to start from.
            progress: called with (iterations done, matching loss).
        """
        options = self._options
        images = torch.tensor(initial.images.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        labels = torch.tensor(initial.labels.copy(), requires_grad=True)
        alpha = torch.tensor(initial.alpha, requires_grad=True)
        optimisers = [
            torch.optim.SGD([value], rate, momentum)
            for value, rate, momentum in (
                (images, options.lr_img, options.momentum_img),
                (labels, options.lr_y, options.momentum_y),
                (alpha, options.lr_lr, options.momentum_lr),
            )
        ]
        experts = self._experts()
        weight = torch.ones(len(images), 1, 1, 1)
        for it in range(options.iterations):
            if it % self._config.cam.every == 0:
                weight = self._weight(images.detach(), labels.detach().argmax(1))
            start, target = self._pair(next(experts), it)
            loss = self._loss(images, labels, alpha, start, target)
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss.backward()
            assert images.grad is not None
            images.grad *= weight
            if loss.item() <= (options.threshold or np.inf):
                for optimiser in optimisers:
                    optimiser.step()
            else:
                self.skipped += 1
            progress(it + 1, loss.item())
        return dataclasses.replace(
            initial,
            parameters=np.ascontiguousarray(images.detach().numpy().transpose(0, 2, 3, 1)),
            labels=labels.detach().numpy(),
            alpha=alpha.item(),
            step=options.iterations,
        )

    def _experts(self) -> Iterator[int]:
        while True:
            yield from self._rng.permutation(self._config.experts.num).tolist()

    def _pair(self, expert: int, it: int) -> tuple[Tensor, Tensor]:
        options = self._options
        first, last = options.current_max_start_epoch, options.max_start_epoch
        upper = min(first + int((last - first) * it / options.expansion_end), last)
        epoch = int(self._rng.integers(options.min_start_epoch, upper))
        return (
            self._snapshot(expert, epoch),
            self._snapshot(expert, epoch + options.expert_epochs),
        )

    def _batches(self, count: int) -> Iterator[np.ndarray]:
        while True:
            order = self._rng.permutation(count)
            cuts = range(self._options.batch_syn, count, self._options.batch_syn)
            yield from reversed(np.split(order, list(cuts)))

    def _seen(self, images: Tensor) -> Tensor:
        if not self._ops:
            return images
        op = int(self._rng.choice(self._ops))
        uniforms = torch.from_numpy(self._rng.random((len(images), 3), np.float32))
        return dsa(images, op, uniforms, self._config.augment.crop_ratio)

    def _logits(self, theta: Tensor, images: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for _, shape in self._names])
        named = {name: part.view(shape) for (name, shape), part in zip(self._names, parts)}
        return torch.func.functional_call(self._net, named, (images,))

    def _loss(self, images, labels, alpha, start: Tensor, target: Tensor) -> Tensor:
        theta = start.clone().requires_grad_(True)
        batches = self._batches(len(images))
        for _ in range(self._options.syn_steps):
            rows = torch.from_numpy(next(batches))
            loss = soft_cross_entropy(self._logits(theta, self._seen(images[rows])), labels[rows])
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - alpha * gradient
        distances, travelled = (theta - target) ** 2, (start - target) ** 2
        kept = distances.detach().argsort()[int(self._options.drop * distances.numel()) :]
        return distances[kept].sum() / travelled[kept].sum()

    def _weight(self, images: Tensor, classes: Tensor) -> Tensor:
        """DAE's weight `[n, 1, H, W]` of Grad-CAM maps."""
        net, options = self._cam_net, self._config.cam
        features = net.features(images).detach().requires_grad_(True)
        score = net.classify(features).gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, features)
        maps = (gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True)
        maps = maps.relu()
        maps = maps - maps.amin((2, 3), keepdim=True)
        maps = maps / (maps.amax((2, 3), keepdim=True) + 1e-8)
        resize = functools.partial(functional.interpolate, mode="bilinear", align_corners=False)
        maps = resize(maps, images.shape[2:])
        limit = options.threshold or maps.mean((2, 3), keepdim=True)
        return torch.where(maps >= limit, maps + options.beta, 1.0)
