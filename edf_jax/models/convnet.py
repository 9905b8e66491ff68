"""The field's ConvNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from edf_jax.models.layers import ACTIVATIONS, POOLINGS, InstanceNorm, conv, norm


class ConvNetFeatures(nn.Module):
    """`depth` blocks of 3x3 convolution, norm, activation and 2x2 pooling.

    The first convolution of a grey image pads 3, which makes 28x28 come out as 32x32.

    References:
        Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", 2018; Zhao et
        al., "Dataset Condensation with Gradient Matching", 2021, section 4.
    """

    width: int
    depth: int
    norm: str
    activation: str
    pooling: str
    convolution: Callable | None = None
    dtype: Any = None

    @property
    def cam_stages(self) -> int:
        return self.depth

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, stage: int | None = None
    ) -> jax.Array:
        """All blocks, or the one numbered `stage` of what the blocks before it made."""
        layers = 2 + (self.norm != "none") + (self.pooling != "none")
        for block in range(self.depth) if stage is None else (stage,):
            # The layer's place in PyTorch's Sequential, which its name is made of.
            index = block * layers
            x = conv(
                x,
                self.width,
                3,
                padding=3 if block == 0 and x.shape[-1] == 1 else 1,
                convolution=self.convolution,
                dtype=self.dtype,
                name=f"features.{index}",
                bias_cancels=self.norm == "instance",
            )
            if (self.norm, self.activation, self.pooling) == ("instance", "relu", "avg"):
                x = InstanceNorm(name=f"features.{index + 1}")(x, relu_pool=True)
            else:
                x = norm(x, self.norm, name=f"features.{index + 1}", train=train)
                x = POOLINGS[self.pooling](ACTIVATIONS[self.activation](x))
        return x


def default_depth(height: int, width: int) -> int:
    """The number of 2x2 poolings that leaves about 4x4: 3 at 28 and 32, 4 at 64, 5 at 128."""
    return max(1, round(math.log2(min(height, width) / 4)))
