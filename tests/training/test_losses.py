"""Losses and the accuracy count."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.training import losses

_RNG = np.random.default_rng(0)
LOGITS = _RNG.standard_normal((6, 5))
TARGETS = 3 * _RNG.standard_normal((6, 5))
LABELS = np.array([0, 4, 2, 2, 1, 3])


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def test_soft_cross_entropy_is_the_mean_of_its_definition():
    expected = np.mean(np.sum(-_softmax(TARGETS) * np.log(_softmax(LOGITS)), axis=1))
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            losses.soft_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TARGETS)), expected
        )


def test_hard_cross_entropy_is_the_limit_of_the_soft_one():
    one_hot = 200 * np.eye(5)[LABELS]
    np.testing.assert_allclose(
        losses.hard_cross_entropy(LOGITS, LABELS),
        losses.soft_cross_entropy(LOGITS, one_hot),
        rtol=1e-6,
    )


def test_kl_divergence_is_softened_and_has_no_factor_of_the_temperature():
    p, q = _softmax(TARGETS / 20), _softmax(LOGITS / 20)
    expected = np.sum(p * np.log(p / q)) / len(p)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            losses.kl_divergence(jnp.asarray(LOGITS), jnp.asarray(TARGETS), 20.0), expected
        )
        assert abs(losses.kl_divergence(LOGITS, LOGITS + 7.0, 20.0)) < 1e-12


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, rows, mask=None: losses.soft_cross_entropy(logits, TARGETS[rows], mask),
        lambda logits, rows, mask=None: losses.hard_cross_entropy(logits, LABELS[rows], mask),
        lambda logits, rows, mask=None: losses.kl_divergence(logits, TARGETS[rows], 4.0, mask),
    ],
    ids=["soft", "hard", "kl"],
)
def test_masked_examples_change_neither_loss_nor_gradient(loss):
    mask = jnp.array([1, 0, 1, 1, 0, 0])
    kept = np.flatnonzero(mask)
    masked = functools.partial(loss, rows=np.arange(6), mask=mask)
    few = functools.partial(loss, rows=kept)
    value, gradient = jax.jit(jax.value_and_grad(masked))(LOGITS)
    few_value, few_gradient = jax.jit(jax.value_and_grad(few))(LOGITS[kept])
    np.testing.assert_allclose(value, few_value, rtol=1e-6)
    np.testing.assert_allclose(gradient[kept], few_gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[mask == 0], 0)


def test_soft_cross_entropy_is_differentiable_in_the_targets():
    with jax.enable_x64(True):
        logits, targets = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
        loss = jax.jit(losses.soft_cross_entropy)
        gradient = jax.jit(jax.grad(losses.soft_cross_entropy, argnums=1))(logits, targets)
        direction = jnp.asarray(_RNG.standard_normal(targets.shape))
        ends = [loss(logits, targets + h * direction) for h in (1e-5, -1e-5)]
        np.testing.assert_allclose(
            jnp.sum(gradient * direction), (ends[0] - ends[1]) / 2e-5, rtol=1e-7
        )


def test_accuracy_count_counts_unmasked_right_answers():
    logits = np.eye(5)[LABELS]
    logits[1] = np.eye(5)[0]
    count = losses.accuracy_count(logits, LABELS)
    assert (int(count), count.dtype) == (5, jnp.int32)
    assert int(losses.accuracy_count(logits, LABELS, np.array([1, 1, 1, 0, 0, 0]))) == 2
