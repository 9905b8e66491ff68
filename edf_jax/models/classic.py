"""MLP, LeNet, AlexNet and VGG as the field's cross-architecture tests have them.

They were drawn for 32x32 images. For larger ones the first convolution of LeNet and AlexNet takes
a larger stride, and VGG averages what is left of its map, so that the linear layers keep their
sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from edf_jax.models.layers import conv, flatten, linear, max_pool, norm


class Identity(nn.Module):
    """The images themselves: the body of a network without a feature map."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return x


class PerceptronHead(nn.Module):
    """Flattens, then linear layers of the `hidden` widths with ReLU between, then the logits."""

    num_classes: int
    hidden: tuple[int, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = flatten(features)
        for index, width in enumerate(self.hidden, start=1):
            x = nn.relu(linear(x, width, name=f"fc_{index}", dtype=self.dtype))
        return linear(x, self.num_classes, name=f"fc_{len(self.hidden) + 1}", dtype=self.dtype)


def _stride(x: jax.Array) -> tuple[int, int]:
    """The stride of a first convolution that brings larger images to about 32x32."""
    return max(1, x.shape[1] // 32), max(1, x.shape[2] // 32)


class LeNetFeatures(nn.Module):
    """Two 5x5 convolutions, each with ReLU and 2x2 max pooling; the first of a grey image pads 2.

    References:
        LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998.
    """

    convolution: Callable | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        settings = {"convolution": self.convolution, "dtype": self.dtype}
        padding = 2 if x.shape[-1] == 1 else 0
        x = conv(x, 6, 5, stride=_stride(x), padding=padding, name="features.0", **settings)
        x = max_pool(nn.relu(x))
        x = conv(x, 16, 5, name="features.3", **settings)
        return max_pool(nn.relu(x))


class AlexNetFeatures(nn.Module):
    """Five convolutions and three 2x2 max poolings; the first of a grey image pads 4.

    References:
        Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012,
        as narrowed for small images.
    """

    convolution: Callable | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        settings = {"convolution": self.convolution, "dtype": self.dtype}
        padding = 4 if x.shape[-1] == 1 else 2
        x = conv(x, 128, 5, stride=_stride(x), padding=padding, name="features.0", **settings)
        x = max_pool(nn.relu(x))
        x = conv(x, 192, 5, padding=2, name="features.3", **settings)
        x = max_pool(nn.relu(x))
        for index, features in ((6, 256), (8, 192), (10, 192)):
            x = nn.relu(conv(x, features, 3, padding=1, name=f"features.{index}", **settings))
        return max_pool(x)


class VGG11Features(nn.Module):
    """Eight 3x3 convolutions with norm and ReLU, and five 2x2 max poolings.

    The first convolution of a grey image pads 3. `width` is the first layer's.

    References:
        Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
        Recognition", 2015, column A.
    """

    norm: str
    width: int
    convolution: Callable | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        index = 0  # the layer's place in PyTorch's Sequential
        for multiples in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
            for multiple in multiples:
                x = conv(
                    x,
                    multiple * self.width,
                    3,
                    padding=3 if index == 0 and x.shape[-1] == 1 else 1,
                    convolution=self.convolution,
                    dtype=self.dtype,
                    bias_cancels=self.norm == "instance",
                    name=f"features.{index}",
                )
                x = nn.relu(norm(x, self.norm, name=f"features.{index + 1}", train=train))
                index += 3
            x = max_pool(x)
            index += 1
        return x
