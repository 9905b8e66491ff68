"""PyTorch's side of the benchmarks, written as the field's code is: plain, and in one graph.

The student is `torch.func.functional_call` of a module on slices of a flat vector; its steps keep
their graph (`create_graph=True`), through which the matching loss is differentiated.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import harness
from benchmarks.harness import ALPHA, CLASSES, MEAN, STD, Sizes
from benchmarks.pytorch_layers import ConvNet, ResNet18, dsa

_STUDENT_CROP, _EXPERT_CROP = 0.25, 0.125
_RATE, _RHO, _GSAM_ALPHA = 0.01, 0.01, 0.3
_BETA, _NOISE_STD = 1.0, 0.3
_device = torch.device("cpu")


def set_up(sizes: Sizes) -> None:
    """Threads, device and what float32 products are computed in."""
    global _device
    if sizes.device == "gpu":
        _device = torch.device("cuda")
        # Shapes don't change: let cuDNN measure its algorithms.
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(sizes.threads)
    reduced = sizes.pytorch_precision != "float32"
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    torch.backends.cudnn.allow_tf32 = reduced


def device_name() -> str:
    """The device's name as PyTorch gives it."""
    return torch.cuda.get_device_name() if _device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"torch": torch.__version__}


def reset_peak() -> None:
    """Starts the allocator's peak anew."""
    if _device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """The allocator's peak on a GPU; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if _device.type == "cuda" else 0


def _finish() -> None:
    if _device.type == "cuda":
        torch.cuda.synchronize()


def _tensor(array: np.ndarray) -> Tensor:
    # A copy: what is learned moves in place.
    return torch.tensor(np.ascontiguousarray(array), device=_device)


def _pictures(array: np.ndarray) -> Tensor:
    """NHWC to NCHW."""
    return _tensor(array.transpose(0, 3, 1, 2))


def _to_nhwc(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().transpose(0, 2, 3, 1)


def _autocast(sizes: Sizes) -> contextlib.AbstractContextManager:
    if sizes.pytorch_precision != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(_device.type, dtype=torch.bfloat16)


def _convnet(sizes: Sizes) -> ConvNet:
    return ConvNet(sizes.width, sizes.depth, sizes.resolution, CLASSES).to(_device)


def _load(net: nn.Module, vector: Tensor) -> nn.Module:
    nn.utils.vector_to_parameters(vector.clone(), net.parameters())
    return net


def _soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    targets = functional.softmax(labels, 1)
    return -(targets * functional.log_softmax(logits, 1)).sum(1).mean()


class Matching:
    """One outer iteration: students, the matching loss, gradients through the steps, SGD."""

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        self._sizes, self._problem = sizes, problem
        self._net = _convnet(sizes)
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
            harness.reset_peak()
            reset_peak()
            run()
            peaks[steps] = peak_bytes() or harness.peak_resident_bytes()
        free = self._sizes.memory_gib * 2**30
        if not free:
            free = harness.available_bytes() + harness.resident_bytes()
            if _device.type == "cuda":
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
        with _autocast(self._sizes):
            return torch.func.functional_call(self._net, named, (images,)).float()

    def _loss(self, trajectory: int, values, draws, start, target, steps) -> Tensor:
        images, labels, alpha = values
        indices, counts, ops, uniforms = (array[trajectory] for array in draws)
        theta = start.clone().requires_grad_(True)
        for step in range(steps):
            rows = indices[step, : counts[step]]
            seen = dsa(
                images[rows], int(ops[step]), uniforms[step, : counts[step]], _STUDENT_CROP
            )
            loss = _soft_cross_entropy(self._logits(theta, seen), labels[rows])
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - alpha * gradient
        distances, travelled = (theta - target) ** 2, (start - target) ** 2
        dropped = int(self._sizes.drop * distances.numel())
        kept = distances.detach() >= distances.detach().sort().values[dropped]
        return distances[kept].sum() / travelled[kept].sum()

    def ready(self, variant: int, steps: int | None = None) -> Callable[[], Any]:
        problem = self._problem
        values = (
            _pictures(problem["images"]).requires_grad_(True),
            _tensor(problem["labels"]).requires_grad_(True),
            torch.tensor(ALPHA, device=_device, requires_grad=True),
        )
        optimisers = [
            torch.optim.SGD([value], lr, momentum)
            for value, lr, momentum in zip(values, (1000.0, 2.0, 1e-5), (0.5, 0.9, 0.5))
        ]
        indices = _tensor(problem["indices"][variant]).long()
        uniforms = _tensor(problem["uniforms"][variant])
        counts, ops = (problem[name][variant].tolist() for name in ("counts", "ops"))
        draws = (indices, counts, ops, uniforms)

        def run():
            total = 0.0
            for trajectory in range(self._sizes.networks):
                start = _tensor(problem["starts_torch"][trajectory])
                target = _tensor(problem["targets_torch"][trajectory])
                loss = self._loss(trajectory, values, draws, start, target, steps or self.steps)
                (loss / self._sizes.networks).backward()
                total += loss.item() / self._sizes.networks
            for optimiser in optimisers:
                optimiser.step()
            _finish()
            return total, values

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        loss, (images, labels, alpha) = output
        assert images.grad is not None
        return {
            "loss": np.asarray(loss),
            "images": _to_nhwc(images.grad),
            "labels": labels.grad.cpu().numpy(),
            "alpha": alpha.grad.cpu().numpy(),
        }


class _Training:
    """What training on stored images shares."""

    steps = 0

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        self._sizes, self._problem = sizes, problem
        self._real_images = _pictures(problem["real_images"])
        self._real_labels = _tensor(problem["real_labels"]).long()
        self._mean = torch.tensor(MEAN, device=_device).view(1, 3, 1, 1)
        self._std = torch.tensor(STD, device=_device).view(1, 3, 1, 1)
        self._net = _convnet(sizes)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self._mean) / self._std

    def _draws(self, variant: int):
        orders, ops, uniforms = (self._problem[k][variant] for k in ("orders", "ops", "uniforms"))
        return _tensor(orders).long(), ops, _tensor(uniforms)

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
        starts = _tensor(self._problem["thetas_torch"])

        def run():
            losses, ends = [], []
            for k in range(self._sizes.networks):
                _load(self._net, starts[k])
                found = []
                for step, rows in enumerate(orders[k].split(self._sizes.batch)):
                    images = self._normalised(self._real_images[rows])
                    seen = dsa(
                        images, int(ops[k, step]), uniforms[k, step, : len(rows)], _EXPERT_CROP
                    )
                    labels = self._real_labels[rows]

                    def loss(seen=seen, labels=labels):
                        with _autocast(self._sizes):
                            logits = self._net(seen).float()
                        return functional.cross_entropy(logits, labels)

                    found.append(self._step(loss))
                losses.append(torch.stack(found).mean())
                ends.append(nn.utils.parameters_to_vector(self._net.parameters()).detach())
            _finish()
            return losses, ends

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        losses, ends = output
        return {
            "loss": torch.stack(losses).cpu().numpy(),
            "movement": self._movement(ends, self._problem["thetas_torch"]),
        }


class Evaluation(_Training):
    """Networks trained from scratch one after another, and tested."""

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        super().__init__(sizes, problem)
        self._images, self._labels = _pictures(problem["images"]), _tensor(problem["labels"])

    def _train(self, orders: Tensor, ops: np.ndarray, uniforms: Tensor) -> None:
        size = min(self._sizes.batch, len(self._images))
        rate = ALPHA

        def optimiser():
            return torch.optim.SGD(
                self._net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4
            )

        sgd = optimiser()
        for epoch in range(self._sizes.epochs):
            if epoch == (self._sizes.epochs - 1) // 2 + 2:
                rate *= 0.1
                sgd = optimiser()
            for step, rows in enumerate(orders[epoch].split(size)):
                seen = dsa(
                    self._images[rows],
                    int(ops[epoch, step]),
                    uniforms[epoch, step, : len(rows)],
                    _STUDENT_CROP,
                )
                with _autocast(self._sizes):
                    logits = self._net(seen).float()
                loss = _soft_cross_entropy(logits, self._labels[rows])
                sgd.zero_grad()
                loss.backward()
                sgd.step()

    @torch.no_grad()
    def _test(self) -> float:
        right = 0
        pairs = zip(self._real_images.split(256), self._real_labels.split(256))
        for images, labels in pairs:
            with _autocast(self._sizes):
                logits = self._net(self._normalised(images))
            right += int((logits.argmax(1) == labels).sum())
        return 100 * right / len(self._real_labels)

    def ready(self, variant: int) -> Callable[[], Any]:
        orders, ops, uniforms = self._draws(variant)
        starts = _tensor(self._problem["thetas_torch"][variant])

        def run():
            ends, accuracies = [], []
            for k in range(self._sizes.networks):
                _load(self._net, starts[k])
                self._train(orders[k], ops[k], uniforms[k])
                accuracies.append(self._test())
                ends.append(nn.utils.parameters_to_vector(self._net.parameters()).detach())
            _finish()
            return ends, accuracies

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        ends, accuracies = output
        return {
            "accuracy": np.asarray(accuracies),
            "movement": self._movement(ends, self._problem["thetas_torch"][0]),
        }


class Maps:
    """The activation maps of all synthetic images in one batch, and their weight."""

    steps = 0

    def __init__(self, sizes: Sizes, problem: dict[str, np.ndarray]):
        self._sizes, self._problem = sizes, problem
        net: Any = _convnet(sizes) if sizes.cam == "ConvNet" else ResNet18(1000).to(_device)
        self._net = _load(net, _tensor(problem["theta_torch"])).eval()
        names = sorted(name for name in problem if name.startswith("stats_"))
        buffers = [b for name, b in net.named_buffers() if not name.endswith("tracked")]
        for name, buffer in zip(names, buffers, strict=True):
            buffer.copy_(_tensor(problem[name]))
        self._images = _pictures(problem["images"])
        self._classes = _tensor(problem["labels"]).argmax(1)

    def _gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with _autocast(self._sizes):
            with torch.no_grad():
                features = self._net.features(images)
            features = features.float().requires_grad_(True)
            logits = self._net.classify(features).float()
        score = logits.gather(1, self._classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, features)
        return features.detach(), gradient

    def _smooth(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        second, third = 0.0, 0.0
        for sample in noise:
            last, gradient = self._gradient(self._images + sample)
            second, third = second + gradient**2, third + gradient**3
        second, third = second / len(noise), third / len(noise)
        with torch.no_grad(), _autocast(self._sizes):
            clean = self._net.features(self._images).float()
        alpha = second / (2 * second + (third * clean).sum((2, 3), keepdim=True) + 1e-8)
        return (alpha * gradient.relu()).sum((2, 3)), last

    def ready(self, variant: int) -> Callable[[], Any]:
        noise = None
        if self._sizes.method != "grad_cam":
            noise = torch.stack([_pictures(x) for x in self._problem["noise"][variant]])

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
            _finish()
            return maps, weight

        return run

    def results(self, output) -> dict[str, np.ndarray]:
        return {"maps": output[0].cpu().numpy()}


TASKS = {"matching": Matching, "experts": Experts, "evaluation": Evaluation, "gradcam": Maps}
