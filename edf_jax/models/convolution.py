"""A convolution that is fast on the CPU, inside compiled loops too, to any order of derivative.

XLA's CPU backend has two faults that decide the speed of trajectory matching on a laptop: inside
`lax.scan` the gradient of a convolution with respect to its kernel runs in a naive loop, a hundred
times slower (jax #12868), because only an entry computation's convolutions are brought into the
layout that has a fast kernel; and convolutions with few input or output channels are slow
everywhere. So stride-1 convolutions become two bilinear primitives that are closed under
differentiation, `convolve` and `kernel_gradient`, each written as the canonical convolution or as
one matrix product, whichever was measured faster for its shape; strided ones become stride-1
ones of blocks of pixels. Other convolutions, and other platforms, go to
`lax.conv_general_dilated`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from edf_jax.runtime import devices

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Under this many columns (kernel area times channels) one matrix product beats the platform's
# convolution: measured at batch 100 on two cores, 3 channels by 7x and 32 channels never.
_NARROW = 64

# Zeros before and after, by height and width.
Pads = tuple[tuple[int, int], tuple[int, int]]


def choose_convolution(name: str = "auto", platform: str | None = None) -> Callable | None:
    """The convolution for `flax.linen.Conv(conv_general_dilated=...)`.

    Args:
        name: `platform` (XLA's own), `matmul` (this module's) or `auto` (this module's on a CPU).
        platform: the device kind; that which work is done on if None.

    Returns:
        A function of `lax.conv_general_dilated`'s signature, or None for that function itself.
    """
    if name == "auto":
        name = "matmul" if (platform or devices.platform()) == "cpu" else "platform"
    return {"platform": None, "matmul": conv_general_dilated}[name]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    **kwargs,
) -> jax.Array:
    """`lax.conv_general_dilated` for NHWC images, by `convolve` unless dilated or grouped."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    nhwc = numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    plain = (
        nhwc
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == batch_group_count == 1
    )
    if plain:
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        rows, columns = ((int(low), int(high)) for low, high in padding)
        pads = (rows, columns)
        if all(0 <= p < k for pair, k in zip(pads, rhs.shape[:2], strict=True) for p in pair):
            if tuple(window_strides) == (1, 1):
                return convolve(lhs, rhs, pads)
            return _convolve_strided(lhs, rhs, tuple(window_strides), pads)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **kwargs,
    )


def convolve(images: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Cross-correlation with stride 1.

    Args:
        images: `[n, H, W, c]`.
        kernel: `[h, w, c, o]`.
        pads: zeros before and after, by height and width; each less than the kernel's side.

    Returns:
        `[n, H', W', o]`.
    """
    return _convolve_p.bind(images, kernel, pads=pads)


def _convolve_strided(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """`convolve` with strides: of blocks of pixels that are the channels of one.

    The kernel is filled up with zeros to whole blocks.
    """
    n, *size, c = images.shape
    h, w, _, o = kernel.shape
    results = [
        (length + sum(pair) - k) // s + 1
        for length, pair, k, s in zip(size, pads, (h, w), strides, strict=True)
    ]
    taps = [-(-k // s) for k, s in zip((h, w), strides, strict=True)]
    rows, columns = (result + tap - 1 for result, tap in zip(results, taps, strict=True))
    below, beside = (
        blocks * s - length - low
        for blocks, s, length, (low, _) in zip((rows, columns), strides, size, pads, strict=True)
    )
    # A negative pad cuts off pixels that no result sees.
    images = lax.pad(
        images,
        jnp.zeros((), images.dtype),
        ((0, 0, 0), (pads[0][0], below, 0), (pads[1][0], beside, 0), (0, 0, 0)),
    )
    images = images.reshape(n, rows, strides[0], columns, strides[1], c)
    images = images.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, -1)
    missing = [tap * s - k for tap, s, k in zip(taps, strides, (h, w), strict=True)]
    kernel = jnp.pad(kernel, ((0, missing[0]), (0, missing[1]), (0, 0), (0, 0)))
    kernel = kernel.reshape(taps[0], strides[0], taps[1], strides[1], c, o)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*taps, -1, o)
    return convolve(images, kernel, ((0, 0), (0, 0)))


def kernel_gradient(images: jax.Array, cotangent: jax.Array, pads: Pads) -> jax.Array:
    """The transpose of `convolve` in its kernel.

    Args:
        images: `[n, H, W, c]`.
        cotangent: `[n, H', W', o]`, of `convolve`'s result.
        pads: as given to `convolve`.

    Returns:
        `[h, w, c, o]`.
    """
    return _kernel_gradient_p.bind(images, cotangent, pads=pads)


def _transposed_kernel(kernel: jax.Array) -> jax.Array:
    """The kernel that takes cotangents of the result to cotangents of the images."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _transposed_pads(pads: Pads, kernel_shape: tuple[int, int]) -> Pads:
    rows, columns = (
        (k - 1 - low, k - 1 - high) for (low, high), k in zip(pads, kernel_shape, strict=True)
    )
    return rows, columns


def _kernel_shape(image_shape, result_shape, pads: Pads) -> tuple[int, int]:
    height, width = (
        size + sum(pair) - out + 1
        for size, out, pair in zip(image_shape[1:3], result_shape[1:3], pads, strict=True)
    )
    return height, width


def _pad(images: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(images, ((0, 0), *pads, (0, 0)))


def _patches(images: jax.Array, kernel_shape: tuple[int, int], pads: Pads) -> jax.Array:
    """`[n * H' * W', h * w * c]`: what the kernel sees at each place."""
    padded = _pad(images, pads)
    height, width = (
        size + 1 - k for size, k in zip(padded.shape[1:3], kernel_shape, strict=True)
    )
    shifted = [
        padded[:, i : i + height, j : j + width]
        for i in range(kernel_shape[0])
        for j in range(kernel_shape[1])
    ]
    columns = jnp.concatenate(shifted, axis=-1)
    return columns.reshape(-1, columns.shape[-1])


def _convolve_impl(images: jax.Array, kernel: jax.Array, *, pads: Pads) -> jax.Array:
    h, w, c, o = kernel.shape
    n, height, width, _ = _result_shape(images.shape, kernel.shape, pads)
    if h * w * c <= _NARROW:
        patches = _patches(images, (h, w), pads)
        return (patches @ kernel.reshape(-1, o)).reshape(n, height, width, o)
    if h * w * o <= _NARROW:
        # Few results: one product for all offsets, then add the shifted planes.
        flat = images.reshape(-1, c).T
        planes = (kernel.swapaxes(2, 3).reshape(-1, c) @ flat).reshape(h, w, o, *images.shape[:3])
        planes = jnp.pad(planes, ((0, 0), (0, 0), (0, 0), (0, 0), *pads))
        shifted = [
            planes[i, j, :, :, i : i + height, j : j + width] for i in range(h) for j in range(w)
        ]
        return functools.reduce(jnp.add, shifted).transpose(1, 2, 3, 0)
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)


def _kernel_gradient_impl(images: jax.Array, cotangent: jax.Array, *, pads: Pads) -> jax.Array:
    h, w = _kernel_shape(images.shape, cotangent.shape, pads)
    c, o = images.shape[-1], cotangent.shape[-1]
    if h * w * c <= _NARROW:
        patches = _patches(images, (h, w), pads)
        return lax.dot_general(
            patches, cotangent.reshape(-1, o), (((0,), (0,)), ((), ()))
        ).reshape(h, w, c, o)
    # A convolution over the batch, its dimensions moved to the canonical places by hand.
    result = lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        pads,
        dimension_numbers=_LAYOUT,
    )
    return result.transpose(1, 2, 0, 3)


def _result_shape(image_shape, kernel_shape, pads: Pads) -> tuple[int, int, int, int]:
    height, width = (
        size + sum(pair) - k + 1
        for size, k, pair in zip(image_shape[1:3], kernel_shape[:2], pads, strict=True)
    )
    return image_shape[0], height, width, kernel_shape[-1]


def _convolve_transpose_images(cotangent, images, kernel, *, pads):
    del images
    back = _transposed_pads(pads, kernel.shape[:2])
    return convolve(cotangent, _transposed_kernel(kernel), back)


def _convolve_transpose_kernel(cotangent, images, kernel, *, pads):
    del kernel
    return kernel_gradient(images, cotangent, pads)


def _kernel_gradient_transpose_images(kernel_ct, images, cotangent, *, pads):
    del images
    back = _transposed_pads(pads, kernel_ct.shape[:2])
    return convolve(cotangent, _transposed_kernel(kernel_ct), back)


def _kernel_gradient_transpose_cotangent(kernel_ct, images, cotangent, *, pads):
    del cotangent
    return convolve(images, kernel_ct, pads)


def _primitive(name: str, implementation, shape_rule, transposes) -> Primitive:
    """A bilinear primitive, compiled as `implementation` and mapped as a loop."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(implementation, static_argnames="pads"))

    def abstract(a, b, *, pads):
        return jax.core.ShapedArray(shape_rule(a.shape, b.shape, pads), jnp.result_type(a, b))

    def batch(arguments, axes, *, pads):
        operation = functools.partial(primitive.bind, pads=pads)
        moved = [
            x if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arguments, axes, strict=True)
        ]
        a, b = moved
        mapped = [axis is not None for axis in axes]
        if primitive is _convolve_p and mapped == [True, False]:
            # One kernel for all: fold the mapped axis into the batch.
            result = operation(a.reshape(-1, *a.shape[2:]), b)
            return result.reshape(*a.shape[:2], *result.shape[1:]), 0

        def one(index):
            return operation(
                *(x[index] if is_mapped else x for x, is_mapped in zip(moved, mapped, strict=True))
            )

        # A loop, not a grouped convolution: that one is five times slower here.
        size = (a if mapped[0] else b).shape[0]
        return jnp.stack([one(index) for index in range(size)]), 0

    primitive.def_abstract_eval(abstract)
    ad.defbilinear(primitive, *transposes)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    return primitive


def _kernel_gradient_shape(image_shape, cotangent_shape, pads: Pads):
    kernel_shape = _kernel_shape(image_shape, cotangent_shape, pads)
    return (*kernel_shape, image_shape[-1], cotangent_shape[-1])


_convolve_p = _primitive(
    "edf_convolve",
    _convolve_impl,
    _result_shape,
    (_convolve_transpose_images, _convolve_transpose_kernel),
)
_kernel_gradient_p = _primitive(
    "edf_kernel_gradient",
    _kernel_gradient_impl,
    _kernel_gradient_shape,
    (_kernel_gradient_transpose_images, _kernel_gradient_transpose_cotangent),
)
