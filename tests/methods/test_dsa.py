"""The augmentation: its draws, its ops at the borders, and its derivative."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.methods import dsa as augment
from edf_jax.runtime.errors import UserError

OPS = augment.parse_strategy(augment.FULL_STRATEGY)


_apply = jax.jit(augment.apply_dsa, static_argnames=("strategy", "crop_ratio"))
_dsa = jax.jit(augment.dsa, static_argnames=("strategy", "crop_ratio"))


def _all_draws(n):
    """Draws of `n` images for each op in turn; one compiled function serves them all."""
    draws = augment.draw_dsa(jax.random.key(2), n)
    return [(name, draws._replace(op=jnp.int32(i))) for i, name in enumerate(OPS)]


def _images(n, height, width, channels=3, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(9), (n, height, width, channels), dtype)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def test_strategy_is_any_joined_subset():
    assert augment.FULL_STRATEGY == "color_crop_cutout_flip_scale_rotate"
    assert augment.parse_strategy("flip_color") == ("flip", "color")
    assert augment.parse_strategy("none") == augment.parse_strategy("") == ()


@pytest.mark.parametrize("strategy", ["color_corp", "flip_flip", "color__flip", "Flip"])
def test_unusable_strategy_is_told_in_one_line(strategy):
    with pytest.raises(UserError, match=repr(strategy)) as error:
        augment.parse_strategy(strategy)
    assert "\n" not in str(error.value)


def test_ops_are_drawn_equally_often():
    keys = jax.random.split(jax.random.key(0), 6000)
    ops = jax.vmap(lambda key: augment.draw_dsa(key, 1).op)(keys)
    np.testing.assert_allclose(np.bincount(ops, minlength=6) / 1000, 1, atol=0.15)


def test_same_key_gives_the_same_images_and_another_key_others():
    images = _images(4, 6, 6)
    results = [_dsa(jax.random.key(seed), images) for seed in range(4)]
    np.testing.assert_array_equal(results[0], _dsa(jax.random.key(0), images))
    assert len({np.asarray(result).tobytes() for result in results}) == 4


@pytest.mark.parametrize("strategy", ["", "none"])
def test_no_strategy_leaves_images_alone(strategy):
    images = _images(2, 4, 4)
    np.testing.assert_array_equal(augment.dsa(jax.random.key(0), images, strategy=strategy), images)


def test_every_image_has_its_own_draw():
    images = jnp.tile(_images(1, 8, 8), (12, 1, 1, 1))
    for name, draws in _all_draws(12):
        results = _apply(draws, images)
        assert len({np.asarray(result).tobytes() for result in results}) > 1, name


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtype_of_the_images_stays(name, dtype):
    def run(images):
        dsa = functools.partial(augment.dsa, jax.random.key(0), strategy=name)
        result, pullback = jax.vjp(dsa, images)
        return result, pullback(result)[0]

    images = jax.ShapeDtypeStruct((2, 6, 5, 3), dtype)
    assert jax.eval_shape(run, images) == (images, images)


@pytest.mark.parametrize("shape", [(5, 9, 3), (13, 3, 1)])
def test_dsa_is_affine_and_its_vjp_the_transpose_of_the_dense_matrix(shape, float64):
    size = int(np.prod(shape))
    basis = jnp.eye(size).reshape(size, 1, *shape)
    images = _images(1, *shape, dtype=jnp.float64)

    @jax.jit
    def matrices(draws):
        apply = functools.partial(augment.apply_dsa, draws)
        constant = apply(jnp.zeros_like(images))
        forward = jax.lax.map(lambda x: apply(x) - constant, basis).reshape(size, size).T
        backward = jax.lax.map(jax.vjp(apply, images)[1], basis)[0].reshape(size, size)
        affine = forward @ images.ravel() + constant.ravel()
        return forward, backward, affine, apply(images).ravel()

    for i, name in enumerate(OPS):
        for u in (0.0, 0.37, 0.9999):
            draws = augment.Draws(jnp.int32(i), jnp.array([[u, 1 - u, 0.25]]))
            forward, backward, affine, result = matrices(draws)
            np.testing.assert_allclose(backward, forward, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(result, affine, atol=1e-12, err_msg=name)


def test_reverse_over_forward_in_another_argument_goes_through(float64):
    """The backward sweep of matching: the gradient in the images of a derivative in theta."""
    images, theta = _images(2, 4, 4, dtype=jnp.float64), jnp.array([0.3, -0.2, 0.5])
    draws = augment.Draws(jnp.int32(OPS.index("rotate")), jnp.full((2, 3), 0.8))

    def derivative(images, augmented):
        def loss(theta):
            return jnp.sum(jnp.tanh(augmented(images) @ theta) ** 2)

        return jax.jvp(loss, (theta,), (jnp.ones(3),))[1]

    @jax.jit
    def gradients(draws):
        matrix = jax.jacrev(lambda x: augment.rotate(x, draws.uniforms[:, 0]))(images)
        return (
            jax.grad(derivative)(images, lambda x: augment.apply_dsa(draws, x)),
            jax.grad(derivative)(images, lambda x: jnp.tensordot(matrix, x, 4)),
        )

    actual, expected = gradients(draws)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_part_of_a_batch_with_its_part_of_the_draws_gives_that_part():
    images = _images(5, 6, 6)
    for name, draws in _all_draws(5):
        part = _apply(draws._replace(uniforms=draws.uniforms[2:4]), images[2:4])
        np.testing.assert_allclose(part, _apply(draws, images)[2:4], atol=1e-6, err_msg=name)


def test_shared_op_key_under_vmap_computes_one_op_only():
    images, op_key = _images(2, 4, 4), jax.random.key(5)
    keys = jax.random.split(jax.random.key(6), 3)
    together = jax.vmap(lambda key: augment.dsa(key, images, op_key=op_key))
    alone = [_dsa(key, images, op_key=op_key) for key in keys]
    np.testing.assert_allclose(jax.jit(together)(keys), alone, atol=1e-6)
    assert " cond[" in str(jax.make_jaxpr(together)(keys))


def test_op_key_alone_decides_the_op():
    ops = [
        augment.draw_dsa(jax.random.key(seed), 1, op_key=jax.random.key(7)).op for seed in range(8)
    ]
    assert len(set(map(int, ops))) == 1


@pytest.mark.parametrize("ratio", [0.125, 0.25])
def test_crop_shifts_every_way_up_to_the_ratio_of_each_side(ratio):
    n, height, width = 800, 16, 24
    centre = jnp.zeros((n, height, width, 1)).at[:, 8, 12].set(1)
    result = _dsa(jax.random.key(0), centre, strategy="crop", crop_ratio=ratio)
    np.testing.assert_array_equal(jnp.sum(result, (1, 2, 3)), 1)
    rows, columns = np.divmod(np.argmax(result.reshape(n, -1), axis=1), width)
    rows_at_most, columns_at_most = int(ratio * height + 0.5), int(ratio * width + 0.5)
    assert set(rows - 8) == set(range(-rows_at_most, rows_at_most + 1))
    assert set(columns - 12) == set(range(-columns_at_most, columns_at_most + 1))


@pytest.mark.parametrize("size, centres", [(8, range(9)), (5, range(5))])
def test_cutout_is_half_the_side_clipped_at_the_border(size, centres):
    """Half of 8 is 4, even, and centres reach 8; half of 5 rounds to 3, odd, and they reach 4."""
    side = int(size * 0.5 + 0.5)
    holes = {
        (max(0, centre - side // 2), min(size, centre - side // 2 + side)) for centre in centres
    }
    images = jnp.ones((300, size, size, 1))
    result = np.asarray(_dsa(jax.random.key(0), images, strategy="cutout"))[..., 0]
    found = set()
    for image in result:
        rows, columns = np.flatnonzero((image == 0).any(1)), np.flatnonzero((image == 0).any(0))
        assert (image[np.ix_(rows, columns)] == 0).all()
        found |= {(rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)}
    assert found == holes


def test_flip_mirrors_half_of_the_images():
    images = _images(1, 2, 5)
    result = _dsa(jax.random.key(0), jnp.tile(images, (400, 1, 1, 1)), strategy="flip")
    mirrored = jnp.all(result == images[:, :, ::-1], axis=(1, 2, 3))
    unchanged = jnp.all(result == images, axis=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 0.4 < mirrored.mean() < 0.6


@pytest.mark.parametrize("name, u", [("scale", 5 / 11), ("rotate", 0.5)])
def test_neutral_draw_leaves_images_alone(name, u, float64):
    """At u = 5/11 the factor of the scale is 1, at u = 1/2 the angle of the rotation is 0."""
    images = _images(2, 7, 4, dtype=jnp.float64)
    draws = [jnp.full(2, u)] * (2 if name == "scale" else 1)
    result = jax.jit(getattr(augment, name))(images, *draws)
    np.testing.assert_allclose(result, images, atol=1e-12)
