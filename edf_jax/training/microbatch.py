"""A batch computed in parts that add up to it: small enough for a core's cache.

On a CPU the elementwise work between convolutions waits for memory where a batch's activations
are larger than the caches; in parts that stay within them a step takes two thirds of the time.
Networks that mix the images of a batch (batch norm) can't be computed so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from edf_jax.models import Network
from edf_jax.runtime import devices

# What the largest activation of a part should take: about a core's level-2 cache. Measured on two
# cores with 1 MiB each: 10 images of 128 KiB were best, and two to five of 512 KiB.
_CACHE_BYTES = 1.25 * 2**20

# (theta [P], images [b, ...], targets [b, ...], mask [b] or None) -> the mean over the mask
MaskedMean = Callable[..., jax.Array]


def count_parts(network: Network, batch: int, platform: str | None = None) -> int:
    """Into how many parts a batch is best cut.

    Args:
        network: whose activations count.
        batch: examples.
        platform: the device kind; that which work is done on if None.

    Returns:
        1 for networks with batch norm, and on accelerators.
    """
    if (platform or devices.platform()) != "cpu" or network.has_batch_stats:
        return 1
    each = max(1, round(_CACHE_BYTES / _largest_activation(network)))
    return -(-batch // each)


@functools.cache
def _largest_activation(network: Network) -> int:
    """Bytes of the largest array that is computed for one image."""
    theta = jax.ShapeDtypeStruct((network.num_params,), jnp.float32)
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda t, x: network.apply(t, x, train=True))(theta, image)
    results = (out.aval for equation in traced.eqns for out in equation.outvars)
    return max(
        (x.size * x.dtype.itemsize for x in results if x.ndim == len(image.shape)),
        default=image.size * 4,
    )


def weights_of(mask: jax.Array | None, batch: int, dtype: Any = jnp.float32) -> jax.Array:
    """`[..., b]`: each example's share of a mean over those that the mask counts."""
    if mask is None:
        return jnp.full(batch, 1 / batch, dtype)
    mask = mask.astype(dtype)
    return mask / jnp.sum(mask, axis=-1, keepdims=True)


def share_of_mean(mean: MaskedMean, weights: jax.Array) -> jax.Array:
    """What some examples add to a weighted mean over more of them.

    Args:
        mean: of the examples at hand, weighted by its argument.
        weights: `[b]`, from `weights_of`; all may be zero.
    """
    total = jnp.sum(weights)
    return mean(jnp.where(total > 0, weights, 1)) * total


def summed(function: Callable, examples: Any, parts: int) -> tuple[Any, Any]:
    """The sum of a function over parts of a batch.

    Args:
        function: of a part's number and a tree of its arrays, the batch along their leading axis;
            returns a tree to be added up, and a tree of arrays with a row for each example.
        examples: a tree of arrays `[b, ...]`.
        parts: how many. Where b doesn't divide, zeros fill it up, which must add nothing.

    Returns:
        The sums, and the rows `[b, ...]`.
    """
    if parts == 1:
        return function(0, examples)
    batch = jax.tree.leaves(examples)[0].shape[0]
    each = -(-batch // parts)
    missing = parts * each - batch

    def cut(x):
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(parts, each, *x.shape[1:])

    cuts = jax.tree.map(cut, examples)
    first = jax.tree.map(lambda x: x[0], cuts)
    totals = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, 0, first)[0]
    )

    def step(totals, part):
        more, rows = function(*part)
        return jax.tree.map(jnp.add, totals, more), rows

    totals, rows = lax.scan(step, totals, (jnp.arange(parts), cuts))
    return totals, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:batch], rows)
