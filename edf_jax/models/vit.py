"""A small vision transformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from edf_jax.models.layers import LayerNorm, conv, linear


class ViTFeatures(nn.Module):
    """Patch tokens after `depth` pre-norm transformer blocks, as a grid `[n, h, w, width]`.

    Learned positions, no class token (the head averages the tokens), no dropout. Initialised by
    `initialisation.transformer`, not as PyTorch's layers are. Parameters are named as in timm.

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; Beyer et al., "Better plain ViT
        baselines for ImageNet-1k", 2022 (average pooling instead of a class token).
    """

    width: int
    depth: int
    heads: int
    patch: int
    convolution: Callable | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = conv(
            images,
            self.width,
            self.patch,
            stride=self.patch,
            convolution=self.convolution,
            dtype=self.dtype,
            name="patch_embed.proj",
        )
        n, height, width, channels = x.shape
        x = x.reshape(n, height * width, channels)
        positions = self.param("pos_embed", nn.initializers.zeros, (1, height * width, channels))
        x = x + positions.astype(x.dtype)
        for index in range(self.depth):
            name = f"blocks.{index}"
            x = x + self._attention(LayerNorm(1, name=f"{name}.norm1")(x), f"{name}.attn")
            x = x + self._mlp(LayerNorm(1, name=f"{name}.norm2")(x), f"{name}.mlp")
        return x.reshape(n, height, width, channels)

    def _linear(self, x: jax.Array, features: int, name: str) -> jax.Array:
        return linear(x, features, dtype=self.dtype, name=name)

    def _attention(self, x: jax.Array, name: str) -> jax.Array:
        n, tokens, channels = x.shape
        size = channels // self.heads
        qkv = self._linear(x, 3 * channels, f"{name}.qkv")
        query, key, value = jnp.moveaxis(qkv.reshape(n, tokens, 3, self.heads, size), 2, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(size)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", nn.softmax(scores), value)
        return self._linear(mixed.reshape(n, tokens, channels), channels, f"{name}.proj")

    def _mlp(self, x: jax.Array, name: str) -> jax.Array:
        hidden = nn.gelu(self._linear(x, 4 * x.shape[-1], f"{name}.fc1"), approximate=False)
        return self._linear(hidden, x.shape[-1], f"{name}.fc2")


class ViTHead(nn.Module):
    """Layer norm of the tokens, their mean, and one linear layer."""

    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        pooled = LayerNorm(1, name="norm")(features).mean((1, 2))
        return linear(pooled, self.num_classes, dtype=self.dtype, name="head")
