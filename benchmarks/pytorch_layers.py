"""The networks and the augmentation of the comparison, in PyTorch's own terms."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

# Of DSA in students and evaluation: the largest shift over the side.
STUDENT_CROP = 0.25


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, instance norm, ReLU and 2x2 average pooling; a linear layer."""

    def __init__(self, width: int, depth: int, resolution: int, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = 3, resolution
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2, 2),
            ]
            channels, side = width, side // 2
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * side * side, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ImageNet's ResNet-18 (He et al., 2016, table 1)."""

    def __init__(self, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        ]
        channels = 64
        for stage in range(4):
            width = 64 * 2**stage
            for index in range(2):
                layers.append(_Block(channels, width, 2 if stage > 0 and index == 0 else 1))
                channels = width
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features.mean((2, 3)))


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _colour(x: Tensor, u: Tensor, ratio: float) -> Tensor:
    x = x + _column(u[:, 0] - 0.5)
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * _column(2 * u[:, 1]) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * _column(u[:, 2] + 0.5) + mean


def _crop(x: Tensor, u: Tensor, ratio: float) -> Tensor:
    n, _, height, width = x.shape
    most = [int(ratio * size + 0.5) for size in (height, width)]
    shift = [torch.floor(u[:, i] * (2 * m + 1)).long() for i, m in enumerate(most)]
    padded = functional.pad(x, (most[1], most[1], most[0], most[0]))
    batch = torch.arange(n, device=x.device)[:, None, None]
    rows = torch.arange(height, device=x.device)[None, :, None] + shift[0][:, None, None]
    columns = torch.arange(width, device=x.device)[None, None, :] + shift[1][:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)


def _cutout(x: Tensor, u: Tensor, ratio: float) -> Tensor:
    inside = []
    for axis, size in enumerate(x.shape[2:]):
        side = int(size * 0.5 + 0.5)
        centre = torch.floor(u[:, axis] * (size + 1 - side % 2))
        offset = torch.arange(size, device=x.device) - (centre[:, None] - side // 2)
        inside.append((offset >= 0) & (offset < side))
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return x * (~hole)[:, None].to(x.dtype)


def _flip(x: Tensor, u: Tensor, ratio: float) -> Tensor:
    return torch.where(_column(u[:, 0] < 0.5), x.flip(3), x)


def _affine(x: Tensor, matrix: list[list[Tensor]]) -> Tensor:
    theta = torch.stack([torch.stack(row, 1) for row in matrix], 1)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=True)
    return functional.grid_sample(x, grid, align_corners=True)


def _scale(x: Tensor, u: Tensor, ratio: float) -> Tensor:
    factor = u * (1.2 - 1 / 1.2) + 1 / 1.2
    zero = torch.zeros_like(u[:, 0])
    return _affine(x, [[factor[:, 0], zero, zero], [zero, factor[:, 1], zero]])


def _rotate(x: Tensor, u: Tensor, ratio: float) -> Tensor:
    angle = (u[:, 0] - 0.5) * 2 * math.radians(15)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    return _affine(x, [[cos, -sin, zero], [sin, cos, zero]])


_OPS: tuple[Callable[[Tensor, Tensor, float], Tensor], ...] = (
    _colour, _crop, _cutout, _flip, _scale, _rotate,
)


def dsa(images: Tensor, op: int, uniforms: Tensor, crop_ratio: float) -> Tensor:
    """DSA with given draws.

    Args:
        images: `[n, C, H, W]`.
        op: which of colour, crop, cutout, flip, scale, rotate.
        uniforms: `[n, 3]`, uniform in [0, 1).
        crop_ratio: the largest shift over the side.

    References:
        Zhao and Bilen (2102.08259), section 3.2.
    """
    return _OPS[op](images, uniforms, crop_ratio)
