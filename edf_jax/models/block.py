"""Instance norm, ReLU and average pooling, in as few passes over the activations as need be.

On an accelerator a ConvNet waits for memory more than for arithmetic: what counts is how often its
largest arrays are read and written, forwards and in derivatives of first and second order. With
`y = x * factor + offset`, where factor and offset have one number for each image and channel,

    pool(relu(y)) = factor * pool(mask * x) + offset * pool(mask),    mask = y > 0,

so in every derivative only three kinds of work touch a whole array: sums of `x` and of products
with it, from which come mean, variance and their derivatives, and which don't wait for one another;
`pool(mask * .)`; and its transpose. The derivatives in factor and offset are sums over the pooled
arrays, a quarter of the size. The mask is never stored: it costs less to look at `x` again.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Sums over pixels go by windows of this side: XLA makes any number of such sums in one pass, of
# sums over all pixels two.
_WINDOW = 8
# The use of the gate that counts where it is open; others are numbered from 0.
_COUNT = -1


@jax.custom_jvp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over the pixels of `x [n, H, W, C]`, in one pass.

    Returns:
        Both `[n, 1, 1, C]`, in float32 where `x` is narrower.
    """
    # About one of the pixels, so that nothing cancels where the mean is large.
    row, column = (size // 2 for size in x.shape[1:3])
    pixel = widened(x[:, row : row + 1, column : column + 1])
    x = widened(x)
    variance = mean_pixel(jnp.square(x - pixel)) - jnp.square(mean_pixel(x - pixel))
    return mean_pixel(x), variance


@moments.defjvp
def _moments_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    mean, variance = moments(x)
    x, tangent = widened(x), widened(tangent)
    to_mean = mean_pixel(tangent)
    return (mean, variance), (to_mean, 2 * (mean_pixel(x * tangent) - mean * to_mean))


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32 where it is narrower."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def mean_pixel(x: jax.Array) -> jax.Array:
    """The mean over pixels, `[n, H, W, C]` to `[n, 1, 1, C]`."""
    # An image that earlier layers left without pixels is refused after the network is traced.
    return _sum_p.bind(x) * (1 / max(1, x.shape[1] * x.shape[2]))


def affine(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """`x * factor + offset` of `x [n, H, W, C]`, factor and offset `[n, 1, 1, C]`."""
    factor, offset = (_spread_p.bind(c, pixels=x.shape[1:3]) for c in (factor, offset))
    return x * factor + offset


def affine_relu_pool(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """`relu(affine(x, factor, offset))`, averaged over 2x2; an odd last row or column goes.

    Args and result as in `affine`, the result `[n, H // 2, W // 2, C]`.
    """
    ones = jnp.ones((), jnp.uint8)
    held = [lax.stop_gradient(value) for value in (x, factor, offset)]
    count = _pooled(_gate(held[0], held[1], held[2], ones, _COUNT))
    share = count.astype(x.dtype) / 4
    gated = _gated_pool_p.bind(x, factor, offset, factor, x, order=0)
    return gated + _spread_p.bind(offset, pixels=share.shape[1:3]) * share


def _gate(x, factor, offset, through, use: int):
    """`through` where `x * factor + offset` is positive, else 0."""
    # Each use has a comparison of its own, else XLA would write one mask for all.
    factor, offset, _ = lax.optimization_barrier((factor, offset, np.int32(use)))
    return jnp.where(x * factor + offset > 0, through, jnp.zeros((), through.dtype))


def _pooled(x):
    """Sums over 2x2."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).sum((2, 4), dtype=x.dtype)


def _unpooled(x, height: int, width: int):
    """The transpose of `_pooled`."""
    n, rows, columns, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, rows, 2, columns, 2, channels))
    x = x.reshape(n, rows * 2, columns * 2, channels)
    return jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))


def _gated_pool(x, factor, offset, through, order):
    return _pooled(_gate(x, factor, offset, through, 2 * order)) / 4


def _gated_pool_impl(x, factor, offset, coefficient, through, *, order):
    """`coefficient * pool(through)` where the gate is open, bilinear in the two."""
    return coefficient * _gated_pool(x, factor, offset, through, order)


def _tangent_type(x):
    return jax.typeof(x).to_tangent_aval()


def _gated_pool_jvp(primals, tangents, *, order):
    *gate, coefficient, through = primals
    *_, to_coefficient, to_through = tangents
    terms = []
    if not isinstance(to_coefficient, ad.Zero):
        terms.append(_gated_pool_p.bind(*gate, to_coefficient, through, order=order))
    if not isinstance(to_through, ad.Zero):
        terms.append(_gated_pool_p.bind(*gate, coefficient, to_through, order=order + 1))
    result = _gated_pool_p.bind(*primals, order=order)
    return result, sum(terms[1:], terms[0]) if terms else ad.Zero(_tangent_type(result))


def _gated_pool_transpose(cotangent, x, factor, offset, coefficient, through, *, order):
    if ad.is_undefined_primal(coefficient):
        pooled = _gated_pool(x, factor, offset, through, order)
        return None, None, None, _sum_p.bind(cotangent * pooled), None
    spread = _unpooled(cotangent / 4, *x.shape[1:3])
    let_through = _gate(x, factor, offset, spread, 2 * order + 1)
    return None, None, None, None, _spread_p.bind(coefficient, pixels=x.shape[1:3]) * let_through


def _sum_impl(x):
    n, height, width, channels = x.shape
    rows, columns = math.gcd(height, _WINDOW), math.gcd(width, _WINDOW)
    windows = x.reshape(n, height // rows, rows, width // columns, columns, channels)
    # The barrier keeps the two sums two.
    return lax.optimization_barrier(windows.sum((2, 4))).sum((1, 2), keepdims=True)


def _spread_impl(x, *, pixels):
    return jnp.broadcast_to(x, (x.shape[0], *pixels, x.shape[3]))


def _batch(primitive, arguments, axes, **parameters):
    """Several batches are one larger one."""
    size = next(x.shape[axis] for x, axis in zip(arguments, axes) if axis is not None)
    folded = []
    for x, axis in zip(arguments, axes):
        x = jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        folded.append(x.reshape(-1, *x.shape[2:]))
    result = primitive.bind(*folded, **parameters)
    return result.reshape(size, -1, *result.shape[1:]), 0


def _primitive(name: str, implementation, shape_rule) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(
        lambda *arguments, **parameters: jax.jit(functools.partial(implementation, **parameters))(
            *arguments
        )
    )
    primitive.def_abstract_eval(
        lambda *arguments, **parameters: jax.core.ShapedArray(
            shape_rule(*arguments[-1].shape, **parameters), arguments[-1].dtype
        )
    )
    batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    return primitive


_sum_p = _primitive("edf_sum_pixels", _sum_impl, lambda n, h, w, c, **_: (n, 1, 1, c))
_spread_p = _primitive(
    "edf_spread_pixels", _spread_impl, lambda n, _h, _w, c, pixels: (n, *pixels, c)
)
ad.deflinear2(
    _sum_p, lambda cotangent, x: (_spread_p.bind(cotangent, pixels=x.aval.shape[1:3]),)
)
ad.deflinear2(_spread_p, lambda cotangent, x, *, pixels: (_sum_p.bind(cotangent),))

_gated_pool_p = _primitive(
    "edf_gated_pool", _gated_pool_impl, lambda n, h, w, c, **_: (n, h // 2, w // 2, c)
)
ad.primitive_jvps[_gated_pool_p] = _gated_pool_jvp
ad.primitive_transposes[_gated_pool_p] = _gated_pool_transpose
