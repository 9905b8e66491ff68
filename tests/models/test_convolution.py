"""The CPU's convolution equals XLA's, with derivatives of both orders, mapped and in loops."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from edf_jax.models import convolution

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _platform(images, kernel, pads):
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)


def _ours(images, kernel, pads):
    return convolution.conv_general_dilated(
        images, kernel, (1, 1), pads, dimension_numbers=_LAYOUT
    )


def _operands(channels, outputs, kernel=(3, 3), lead=()):
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.standard_normal((*lead, 2, 7, 6, channels))),
        jnp.asarray(rng.standard_normal((*lead, *kernel, channels, outputs))),
    )


# Few input channels, few output channels, and neither, each take another way.
@pytest.mark.parametrize(("channels", "outputs"), [(3, 9), (9, 3), (9, 10)])
@pytest.mark.parametrize(
    ("kernel", "pads"), [((3, 3), ((1, 1), (1, 1))), ((2, 3), ((1, 0), (2, 1)))]
)
def test_equals_the_platform_with_derivatives_of_both_orders(channels, outputs, kernel, pads):
    with jax.enable_x64(True):
        images, weights = _operands(channels, outputs, kernel)
        direction = jax.tree.map(lambda x: jnp.cos(x), (images, weights))

        def directional(conv):
            def energy(images, weights):
                return jnp.sum(jnp.tanh(conv(images, weights, pads)) ** 2)

            def along(images, weights):
                return jax.jvp(energy, (images, weights), direction)[1]

            return jax.jit(jax.value_and_grad(along, (0, 1)))(images, weights)

        np.testing.assert_allclose(
            _ours(images, weights, pads), _platform(images, weights, pads), rtol=1e-10, atol=1e-10
        )
        expected, actual = directional(_platform), directional(_ours)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), actual, expected
        )


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0)])
def test_maps_over_networks_and_over_images(in_axes):
    images, kernels = _operands(9, 10, lead=(3,))
    arguments = [x if axis == 0 else x[0] for x, axis in zip((images, kernels), in_axes)]
    pads = ((1, 1), (1, 1))

    def gradient(conv):
        def energy(images, kernel):
            return jnp.sum(conv(images, kernel, pads) ** 2)

        return jax.vmap(jax.grad(energy, (0, 1)), in_axes)(*arguments)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3),
        gradient(_ours),
        gradient(_platform),
    )


@pytest.mark.parametrize(
    ("strides", "kernel", "pads"),
    [
        ((2, 2), (3, 3), ((1, 1), (1, 1))),
        ((2, 2), (1, 1), ((0, 0), (0, 0))),
        ((2, 3), (5, 4), ((2, 1), (0, 3))),
    ],
)
def test_strided_convolutions_equal_the_platforms(strides, kernel, pads):
    with jax.enable_x64(True):
        images, weights = _operands(3, 4, kernel)

        def gradients(conv):
            def energy(images, weights):
                result = conv(images, weights, strides, pads, dimension_numbers=_LAYOUT)
                return jnp.sum(jnp.tanh(result) ** 2)

            return jax.jit(jax.value_and_grad(energy, (0, 1)))(images, weights)

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
            gradients(convolution.conv_general_dilated),
            gradients(lax.conv_general_dilated),
        )


@pytest.mark.parametrize(("stride", "groups"), list(itertools.product([1, 2], [1, 3])))
def test_other_convolutions_go_to_the_platform(stride, groups):
    images, kernel = _operands(9, 9)
    kernel = kernel[:, :, : 9 // groups]
    settings = dict(dimension_numbers=_LAYOUT, feature_group_count=groups)
    expected = lax.conv_general_dilated(images, kernel, (stride, stride), "SAME", **settings)
    actual = convolution.conv_general_dilated(
        images, kernel, (stride, stride), "SAME", **settings
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
