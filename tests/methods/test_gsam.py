"""The GSAM direction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.methods import gsam

_RNG = np.random.default_rng(1)
CURVATURE = np.diag(_RNG.uniform(0.5, 3, 7))
THETA = _RNG.standard_normal(7)


def _quadratic(theta):
    """`theta' A theta / 2`, with the parameters it was asked at as aux."""
    curvature = jnp.asarray(CURVATURE)
    return jax.value_and_grad(lambda w: (w @ curvature @ w / 2, w), has_aux=True)(theta)


def _direction(**settings):
    with jax.enable_x64(True):
        step = jax.jit(lambda theta: gsam.gsam_gradient(_quadratic, theta, **settings))
        return jax.tree.map(np.asarray, step(jnp.asarray(THETA)))


@pytest.mark.parametrize("adaptive", [True, False])
def test_without_rho_and_alpha_it_is_the_gradient(adaptive):
    loss, _, direction = _direction(rho=0.0, alpha=0.0, adaptive=adaptive)
    np.testing.assert_allclose(loss, THETA @ CURVATURE @ THETA / 2)
    np.testing.assert_allclose(direction, CURVATURE @ THETA, rtol=1e-12)


@pytest.mark.parametrize("adaptive", [True, False])
def test_without_alpha_it_is_the_gradient_after_an_ascent_of_length_rho(adaptive):
    gradient = CURVATURE @ THETA
    scale = np.abs(THETA) if adaptive else np.ones(7)
    ascent = 0.1 * scale**2 * gradient / np.linalg.norm(scale * gradient)
    np.testing.assert_allclose(np.linalg.norm(ascent / scale), 0.1)
    _, _, direction = _direction(rho=0.1, alpha=0.0, adaptive=adaptive)
    np.testing.assert_allclose(direction, CURVATURE @ (THETA + ascent))


def test_alpha_weighs_the_part_of_the_gradient_orthogonal_to_the_perturbed_one():
    _, _, perturbed = _direction(rho=0.1, alpha=0.0)
    _, _, direction = _direction(rho=0.1, alpha=0.3)
    orthogonal = (perturbed - direction) / 0.3
    gradient = CURVATURE @ THETA
    assert abs(orthogonal @ perturbed) < 1e-9
    parallel = gradient - orthogonal
    np.testing.assert_allclose(
        parallel, perturbed * (parallel @ perturbed) / (perturbed @ perturbed)
    )


def test_aux_and_loss_are_of_the_first_pass():
    loss, aux, _ = _direction(rho=0.5, alpha=0.3)
    np.testing.assert_array_equal(aux, THETA)
    np.testing.assert_allclose(loss, THETA @ CURVATURE @ THETA / 2)


def test_zero_gradient_gives_a_zero_direction():
    value_and_grad = jax.value_and_grad(lambda w: (jnp.sum(0 * w), ()), has_aux=True)
    _, _, direction = gsam.gsam_gradient(value_and_grad, jnp.ones(3), rho=0.1, alpha=0.3)
    np.testing.assert_array_equal(direction, 0)
