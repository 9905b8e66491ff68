"""ResNets: the field's for small images, its pooling variant, and ImageNet's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from edf_jax.models.layers import average_pool, conv, norm

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ResNetFeatures(nn.Module):
    """A ResNet up to and with `layer4`.

    Attributes:
        depth: 18, 34 (two 3x3 convolutions a block) or 50 (bottlenecks, stride in the 3x3).
        norm: "instance" or "batch" or another of `layers.norm`.
        imagenet_stem: 7x7 convolution of stride 2 and 3x3 max pooling, instead of a 3x3
            convolution.
        average_pooling: a convolution of stride 1 and 2x2 average pooling stand for every
            convolution of stride 2.
        width: channels of `layer1`, before a bottleneck's expansion.

    References:
        He et al., "Deep Residual Learning for Image Recognition", 2016, table 1; Zhao and Bilen,
        "Dataset Condensation with Differentiable Siamese Augmentation", 2021 (average pooling).
    """

    depth: int
    norm: str
    imagenet_stem: bool
    average_pooling: bool
    width: int
    convolution: Callable | None = None
    dtype: Any = None

    @property
    def cam_stages(self) -> int:
        return len(BLOCKS[self.depth])

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, stage: int | None = None
    ) -> jax.Array:
        """All, or the one of `layer1` to `layer4` numbered `stage`; the first has the stem."""
        counts = BLOCKS[self.depth]
        for number in range(len(counts)) if stage is None else (stage,):
            if number == 0:
                x = self._stem(x, train)
            for block in range(counts[number]):
                stride = 2 if number > 0 and block == 0 else 1
                x = self._block(
                    x, self.width * 2**number, stride, f"layer{number + 1}.{block}", train
                )
        return x

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        stem = (7, 2, 3) if self.imagenet_stem else (3, 1, 1)
        x = self._conv(x, self.width, *stem, "conv1")
        x = nn.relu(norm(x, self.norm, name="bn1", train=train))
        if self.imagenet_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return x

    def _conv(
        self, x: jax.Array, features: int, kernel: int, stride: int, padding: int, name: str
    ) -> jax.Array:
        return conv(
            x,
            features,
            kernel,
            stride=stride,
            padding=padding,
            use_bias=False,
            convolution=self.convolution,
            dtype=self.dtype,
            name=name,
        )

    def _block(self, x: jax.Array, width: int, stride: int, name: str, train: bool) -> jax.Array:
        bottleneck = self.depth >= 50
        features = 4 * width if bottleneck else width
        pools = self.average_pooling and stride > 1
        strided = 1 if self.average_pooling else stride
        # (features, kernel, stride) of each convolution; `reduced_after` is the one that halves
        # the map, after whose ReLU the pooling variant pools.
        layers: tuple[tuple[int, int, int], ...]
        if bottleneck:
            layers, reduced_after = ((width, 1, 1), (width, 3, strided), (features, 1, 1)), 2
        else:
            layers, reduced_after = ((width, 3, strided), (features, 3, 1)), 1

        out = x
        for index, (channels, kernel, step) in enumerate(layers, start=1):
            out = self._conv(out, channels, kernel, step, kernel // 2, f"{name}.conv{index}")
            out = norm(out, self.norm, name=f"{name}.bn{index}", train=train)
            if index < len(layers):
                out = nn.relu(out)
            if pools and index == reduced_after:
                out = average_pool(out)

        if stride > 1 or x.shape[-1] != features:
            x = self._conv(x, features, 1, strided, 0, f"{name}.shortcut.0")
            if pools:
                x = average_pool(x)
            # The pooling variant's Sequential holds a pooling layer before the norm, in every
            # stage.
            place = 2 if self.average_pooling else 1
            x = norm(x, self.norm, name=f"{name}.shortcut.{place}", train=train)
        return nn.relu(out + x)
