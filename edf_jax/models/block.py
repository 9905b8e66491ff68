"""Instance norm, ReLU and average pooling as one, in as few passes over the activations as need be.

On an accelerator a ConvNet waits for memory more than for arithmetic: what counts is how often its
largest arrays are read and written, in the forward pass and in derivatives of first and second
order. Here each of them takes one pass for sums over pixels and one for what follows from those:

- Statistics are moments about one of the pixels, `mean(x - c)` and `mean((x - c)^2)`. They don't
  wait for one another, nor do their derivatives of any order, where a variance about the mean waits
  for that. The pixel keeps the subtraction `mean(square) - mean^2` harmless.
- All that depends on statistics is a factor and an offset for each image and channel, so ReLU sees
  `y = (x - c) factor + offset`, and every derivative is a sum of such products.
- The ReLU is `gate`, which is linear in what it lets through, and whose derivatives and transposes
  look at `x` again. An accelerator then has no mask to write and to read.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Partial sums of windows of this side: more outputs than threads, and XLA fuses any number of such
# sums into one pass, of whole columns no more than two.
_WINDOW = 8


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An image's mean and variance by channel, in one pass.

    Args:
        x: `[n, H, W, C]`, float32 or wider.

    Returns:
        `x` less one of its pixels, whose choice nothing else depends on; the mean `[n, 1, 1, C]` of
        that; the variance `[n, 1, 1, C]`, biased.
    """
    row, column = (size // 2 for size in x.shape[1:3])
    pixel = lax.stop_gradient(x[:, row : row + 1, column : column + 1])
    shifted = x - pixel
    mean = _mean_pixel(shifted)
    return shifted, mean, _mean_pixel(jnp.square(shifted)) - jnp.square(mean)


def _mean_pixel(x: jax.Array) -> jax.Array:
    return sum_pixels(x) * (1 / (x.shape[1] * x.shape[2]))


def sum_pixels(x: jax.Array) -> jax.Array:
    """`[n, H, W, C]` to `[n, 1, 1, C]`, by way of windows."""
    return _sum_p.bind(x)


def _sum_impl(x):
    n, height, width, channels = x.shape
    rows, columns = math.gcd(height, _WINDOW), math.gcd(width, _WINDOW)
    windows = x.reshape(n, height // rows, rows, width // columns, columns, channels)
    # The barrier keeps the two sums two.
    return lax.optimization_barrier(windows.sum((2, 4))).sum((1, 2), keepdims=True)


def affine_relu_pool(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """`pool(relu(x * factor + offset))`, averages over 2x2.

    Args:
        x: `[n, H, W, C]`.
        factor: `[n, 1, 1, C]`.
        offset: `[n, 1, 1, C]`.
    """
    return _gated_p.bind(x, factor, offset, offset, x, factor, use=0)


def _average_pool(x):
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _unpool(x, height, width):
    n, rows, columns, channels = x.shape
    x = jnp.broadcast_to(
        x[:, :, None, :, None] * 0.25, (n, rows, 2, columns, 2, channels)
    ).reshape(n, 2 * rows, 2 * columns, channels)
    return jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))


def _gate(x, factor, offset, through, tag):
    # Each use has a comparison of its own, which costs less than a mask in memory.
    factor, offset, _ = lax.optimization_barrier((factor, offset, np.int32(tag)))
    return jnp.where(x * factor + offset > 0, through, jnp.zeros((), through.dtype))


def _gated_impl(x, factor, offset, constant, *pairs, use):
    through = constant
    for image, coefficient in zip(pairs[::2], pairs[1::2]):
        through = through + image * coefficient
    return _average_pool(_gate(x, factor, offset, through, use))


def _gated_jvp(primals, tangents, *, use):
    x, factor, offset, constant, *pairs = primals
    _, _, _, to_constant, *to_pairs = tangents
    moved = []
    for place, tangent in enumerate(to_pairs):
        if not isinstance(tangent, ad.Zero):
            other = pairs[place ^ 1]
            moved += [other, tangent] if place % 2 else [tangent, other]
    if isinstance(to_constant, ad.Zero):
        to_constant = jnp.zeros_like(constant)
    return (
        _gated_p.bind(*primals, use=use),
        _gated_p.bind(x, factor, offset, to_constant, *moved, use=use + 1),
    )


def _gated_transpose(cotangent, x, factor, offset, constant, *pairs, use):
    height, width = x.shape[1:3]
    unpooled = _unpool(cotangent, height, width)
    results = []
    for place, value in enumerate((constant, *pairs)):
        if not ad.is_undefined_primal(value):
            results.append(None)
            continue
        through = _gate(x, factor, offset, unpooled, 8 * (use + 1) + place)
        if place:
            through = through * pairs[(place - 1) ^ 1]
        results.append(through if place % 2 else sum_pixels(through))
    return None, None, None, *results


def _gated_shape(x, factor, offset, constant, *pairs, use):
    n, height, width, channels = x.shape
    return jax.core.ShapedArray((n, height // 2, width // 2, channels), x.dtype)


_sum_p = Primitive("edf_sum_pixels")
_sum_p.def_impl(jax.jit(_sum_impl))
_sum_p.def_abstract_eval(lambda x: jax.core.ShapedArray((x.shape[0], 1, 1, x.shape[3]), x.dtype))
ad.deflinear2(_sum_p, lambda ct, x: (jnp.broadcast_to(ct, x.aval.shape),))
mlir.register_lowering(_sum_p, mlir.lower_fun(_sum_impl, multiple_results=False))

_gated_p = Primitive("edf_gated")
_gated_p.def_impl(jax.jit(_gated_impl, static_argnames="use"))
_gated_p.def_abstract_eval(_gated_shape)
ad.primitive_jvps[_gated_p] = _gated_jvp
ad.primitive_transposes[_gated_p] = _gated_transpose
mlir.register_lowering(_gated_p, mlir.lower_fun(_gated_impl, multiple_results=False))
