"""The layers that the networks are built from, with PyTorch's numbers.

Images are `[n, H, W, C]`. Every layer takes its compute dtype from its inputs and parameters, so
that float64 in means float64 throughout; `dtype` overrides that for the matrix products and the
activations, while normalisation statistics stay in float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from edf_jax.models import block

NORM_EPSILON = 1e-5

_ZEROS = nn.initializers.zeros  # parameters are drawn by `initialisation`


def conv(
    x: jax.Array,
    features: int,
    kernel: int,
    *,
    name: str,
    stride: int | tuple[int, int] = 1,
    padding: int = 0,
    use_bias: bool = True,
    bias_cancels: bool = False,
    convolution: Callable | None = None,
    dtype: Any = None,
) -> jax.Array:
    """A square convolution; call inside a compact method.

    With `bias_cancels`, a norm that follows takes any bias away, so none is added and its gradient
    is zero; it stays a parameter.
    """
    layer = _BiasUnused if bias_cancels else nn.Conv
    return layer(
        features,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        use_bias=use_bias and not bias_cancels,
        kernel_init=_ZEROS,
        conv_general_dilated=convolution,
        dtype=dtype,
        name=name,
    )(x)


class _BiasUnused(nn.Conv):
    """A convolution without a bias that has one among its parameters."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        result = super().__call__(inputs)
        self.param("bias", _ZEROS, (self.features,))
        return result


def linear(x: jax.Array, features: int, *, name: str, dtype: Any = None) -> jax.Array:
    """A linear layer; call inside a compact method."""
    return nn.Dense(features, kernel_init=_ZEROS, dtype=dtype, name=name)(x)


def _standardise(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`x` less its mean over `axes`, and what to multiply that with for a variance of 1."""
    # Plain reductions: XLA fuses them, and they differentiate in any order.
    centred = x - x.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    return centred, jax.lax.rsqrt(variance + NORM_EPSILON)


def _narrowed(result: jax.Array, x: jax.Array) -> jax.Array:
    """`result` in the dtype of `x` where that is narrower than float32, else as it is."""
    return result.astype(x.dtype) if jnp.finfo(x.dtype).bits < 32 else result


class InstanceNorm(nn.Module):
    """Instance normalisation of `[n, H, W, C]`, affine per channel (biased variance, eps 1e-5).

    With `relu_pool`, ReLU and 2x2 average pooling are done with it, in fewer passes.

    References:
        Ulyanov et al., "Instance Normalization: The Missing Ingredient for Fast Stylization", 2016.
    """

    @nn.compact
    def __call__(self, x: jax.Array, relu_pool: bool = False) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", _ZEROS, (channels,))
        mean, variance = block.moments(x)
        factor = jax.lax.rsqrt(variance + NORM_EPSILON) * scale
        finish = block.affine_relu_pool if relu_pool else block.affine
        return _narrowed(finish(block.widened(x), factor, bias - mean * factor), x)


class GroupNorm(nn.Module):
    """Group normalisation of `[n, H, W, C]`, affine per channel (biased variance, eps 1e-5).

    References:
        Wu and He, "Group Normalization", 2018.
    """

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", _ZEROS, (channels,))
        groups = (self.groups, channels // self.groups)
        grouped = block.widened(x).reshape(*x.shape[:-1], *groups)
        centred, inverse = _standardise(grouped, (1, 2, 4))
        # The scale goes on the small factor: its gradient is half the work that way.
        normalised = centred * (inverse * scale.reshape(groups)) + bias.reshape(groups)
        return _narrowed(normalised.reshape(x.shape), x)


class LayerNorm(nn.Module):
    """Layer normalisation over the last `axes` axes, affine over all of them (eps 1e-5).

    Three axes normalise a whole feature map with an affine transform of shape `[H, W, C]`, as
    PyTorch's `LayerNorm([C, H, W])` does; one axis is a transformer's.

    References:
        Ba et al., "Layer Normalization", 2016.
    """

    axes: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-self.axes :]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", _ZEROS, shape)
        centred, inverse = _standardise(block.widened(x), tuple(range(-self.axes, 0)))
        return _narrowed(centred * inverse * scale + bias, x)


class BatchNorm(nn.Module):
    """Batch normalisation of `[n, H, W, C]` by PyTorch's rules.

    Normalises with the biased variance and keeps `running = 0.9 running + 0.1 new` with the
    unbiased one, in the collection `batch_stats` (`mean`, `var`). In training mode the statistics
    are the batch's own, and the running ones move only where the collection is mutable.

    References:
        Ioffe and Szegedy, "Batch Normalization", 2015; torch.nn.BatchNorm2d.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", _ZEROS, (channels,))
        wide = block.widened(x)
        keeps_statistics = self.is_mutable_collection("batch_stats")
        if not train or keeps_statistics:
            running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
            running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            mean, var = running_mean.value, running_var.value
            return _narrowed((wide - mean) * (jax.lax.rsqrt(var + NORM_EPSILON) * scale) + bias, x)
        mean = wide.mean((0, 1, 2))
        centred = wide - mean
        var = jnp.square(centred).mean((0, 1, 2))
        if keeps_statistics and not self.is_initializing():
            count = math.prod(x.shape[:-1])
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = 0.9 * running_mean.value + 0.1 * mean
            running_var.value = 0.9 * running_var.value + 0.1 * unbiased
        return _narrowed(centred * (jax.lax.rsqrt(var + NORM_EPSILON) * scale) + bias, x)


def norm(x: jax.Array, kind: str, *, name: str, train: bool) -> jax.Array:
    """Applies the norm `kind` ("instance", "group<k>", "layer", "batch"); "none" is identity."""
    if kind == "none":
        return x
    if kind == "batch":
        return BatchNorm(name=name)(x, train)
    if kind == "layer":
        return LayerNorm(name=name)(x)
    if kind == "instance":
        return InstanceNorm(name=name)(x)
    return GroupNorm(groups=int(kind.removeprefix("group")), name=name)(x)


ACTIVATIONS: dict[str, Callable] = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "leaky_relu": nn.leaky_relu,
    "swish": nn.swish,
}


def _windows(x: jax.Array) -> jax.Array:
    """`[n, H, W, C]` as 2x2 windows `[n, H//2, 2, W//2, 2, C]`; an odd last row or column goes."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels)


def average_pool(x: jax.Array) -> jax.Array:
    """2x2 average pooling with stride 2.

    A reshape and a mean, because `reduce_window` and its derivatives are much slower on the CPU.
    """
    return _windows(x).mean((2, 4))


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling with stride 2; where entries tie they share the gradient equally."""
    return _windows(x).max((2, 4))


POOLINGS: dict[str, Callable] = {
    "avg": average_pool,
    "max": max_pool,
    "none": lambda x: x,
}


def flatten(x: jax.Array) -> jax.Array:
    """`[n, h, w, c]` to `[n, c*h*w]`, in PyTorch's order so that linear kernels convert plainly."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


class FlattenHead(nn.Module):
    """Flattens the feature map and applies one linear layer."""

    num_classes: int
    layer: str = "classifier"
    dtype: Any = None

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return linear(flatten(features), self.num_classes, name=self.layer, dtype=self.dtype)


class PoolHead(nn.Module):
    """Averages the feature map over its positions and applies one linear layer."""

    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        pooled = features.mean((1, 2))
        return linear(pooled, self.num_classes, name="classifier", dtype=self.dtype)
