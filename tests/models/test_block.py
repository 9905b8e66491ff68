"""Norm, ReLU and pooling in single passes, against autodiff of the plain formula in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.models import block, build_network

EPSILON = 1e-5
SHAPES = [(2, 5, 7, 4), (2, 16, 8, 3)]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def plain(x, scale, bias):
    mean = x.mean((1, 2), keepdims=True)
    variance = jnp.square(x - mean).mean((1, 2), keepdims=True)
    y = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + EPSILON) * scale + bias)
    n, height, width, channels = x.shape
    y = y[:, : height // 2 * 2, : width // 2 * 2]
    return y.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def in_passes(x, scale, bias):
    mean, variance = block.moments(x)
    factor = jax.lax.rsqrt(variance + EPSILON) * scale
    return block.affine_relu_pool(x, factor, bias - mean * factor)


def loss_of(function, weights):
    """A scalar whose second derivatives don't vanish."""
    return lambda *arguments: jnp.sum(jnp.sin(weights * function(*arguments)))


def draws(shape, seed=0, *more):
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = rng.normal(size=(*more, *shape)) + 3 * rng.normal(size=(*more, shape[0], 1, 1, channels))
    return x, rng.normal(size=(*more, channels)) + 1, rng.normal(size=(*more, channels))


def gradient(function, weights, primals, _):
    return jax.grad(loss_of(function, weights), (0, 1, 2))(*primals)


def gradient_of_jvp(function, weights, primals, tangents):
    def slope(*primals):
        return jax.jvp(loss_of(function, weights), primals, tangents)[1]

    return jax.value_and_grad(slope, (0, 1, 2))(*primals)


def jvp_of_gradient(function, weights, primals, tangents):
    return jax.jvp(jax.grad(loss_of(function, weights), (0, 1, 2)), primals, tangents)


def gradient_of_gradient(function, weights, primals, tangents):
    def product(*primals):
        gradients = jax.grad(loss_of(function, weights), (0, 1, 2))(*primals)
        return sum(jnp.vdot(g, t) for g, t in zip(gradients, tangents))

    return jax.grad(product, (0, 1, 2))(*primals)


def value_and_jvp(function, weights, primals, tangents):
    del weights
    return jax.jvp(function, primals, tangents)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "derivative",
    [value_and_jvp, gradient, gradient_of_jvp, jvp_of_gradient, gradient_of_gradient],
)
def test_derivatives_are_those_of_the_plain_formula(derivative, shape):
    primals, tangents = draws(shape), draws(shape, 1)
    n, height, width, channels = shape
    weights = np.random.default_rng(2).normal(size=(n, height // 2, width // 2, channels))
    ours = jax.jit(functools.partial(derivative, in_passes, weights))(primals, tangents)
    expected = derivative(plain, weights, primals, tangents)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mapped", [(0, 0, 0), (0, None, None), (None, 0, None)])
def test_vmap_maps_values_and_second_derivatives(mapped):
    shape, networks = (2, 6, 8, 3), 3
    primals, tangents = draws(shape, 3, networks), draws(shape, 4, networks)
    primals, tangents = (
        tuple(x if axis == 0 else x[0] for x, axis in zip(arrays, mapped))
        for arrays in (primals, tangents)
    )
    weights = np.random.default_rng(5).normal(size=(2, 3, 4, 3))

    def second(*arguments):
        return gradient_of_jvp(in_passes, weights, arguments[:3], arguments[3:])

    together = jax.vmap(second, (*mapped, *mapped))(*primals, *tangents)
    for index in range(networks):
        own = [x[index] if axis == 0 else x for x, axis in zip(primals + tangents, mapped * 2)]
        expected = gradient_of_jvp(plain, weights, tuple(own[:3]), tuple(own[3:]))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[index], b, rtol=1e-9, atol=1e-10)


def test_float32_variance_holds_where_the_mean_is_large():
    # The mean is 300 deviations: as mean of squares less square of mean, float32 would keep two
    # digits.
    x = np.random.default_rng(6).normal(size=(4, 32, 32, 8)) + 300
    mean, variance = block.moments(jnp.asarray(x, jnp.float32))
    assert mean.dtype == variance.dtype == jnp.float32
    rounded = x.astype(np.float32).astype(float)
    np.testing.assert_allclose(variance[:, 0, 0], rounded.var((1, 2)), rtol=1e-5)


def test_statistics_of_bfloat16_are_float32():
    x = jnp.asarray(np.random.default_rng(7).normal(size=(2, 8, 8, 3)), jnp.bfloat16)
    mean, variance = block.moments(x)
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(variance[:, 0, 0], np.asarray(x, float).var((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("name", ["ConvNet", "VGG11"])
def test_a_bias_before_instance_norm_changes_nothing_and_has_no_gradient(name):
    network = build_network(name, num_classes=3, image_shape=(32, 32, 3), width=4, norm="instance")
    keys = jax.random.split(jax.random.key(0), 4)
    theta = network.init(keys[0])[0].astype(jnp.float64)
    images = jax.random.normal(keys[1], (2, 32, 32, 3), jnp.float64)
    is_bias = np.concatenate(
        [
            np.full(int(np.prod(shape)), self_bias)
            for path, shape in network.param_table
            for self_bias in [path[-1] == "bias" and _is_convolution(network, path)]
        ]
    )
    moved = theta + is_bias * jax.random.normal(keys[2], theta.shape, jnp.float64)
    np.testing.assert_array_equal(network.apply(theta, images), network.apply(moved, images))

    def loss(theta):
        return jnp.sum(jnp.sin(network.apply(theta, images)))

    gradient = np.asarray(jax.grad(loss)(theta))
    assert is_bias.any() and not gradient[is_bias].any() and (gradient[~is_bias] != 0).mean() > 0.5


def _is_convolution(network, path) -> bool:
    return any(
        other[:-1] == path[:-1] and len(shape) == 4 for other, shape in network.param_table
    )
