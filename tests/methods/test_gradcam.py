"""Class activation maps and the DAE weight."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.methods import gradcam
from edf_jax.methods.dae import dae_weight
from edf_jax.runtime.errors import UserError

_RNG = np.random.default_rng(2)
KERNEL = _RNG.standard_normal((3, 5)) / 2
HEAD = _RNG.standard_normal((4 * 3 * 5, 6))
IMAGES = _RNG.standard_normal((4, 8, 6, 3))
CLASSES = np.array([5, 0, 3, 3])


def features(images):
    """Channels mixed and rectified, then the mean of each 2x2: `[n, 8, 6, 3]` to `[n, 4, 3, 5]`."""
    maps = jax.nn.relu(images @ jnp.asarray(KERNEL, images.dtype))
    return maps.reshape(-1, 4, 2, 3, 2, 5).mean((2, 4))


def classify(maps):
    return maps.reshape(maps.shape[0], -1) @ jnp.asarray(HEAD, maps.dtype)


def _maps(method, *arguments, head=classify):
    """The method's maps at map size, compiled."""
    compute = jax.jit(functools.partial(getattr(gradcam, method), features, head))
    return compute(jnp.asarray(IMAGES), CLASSES, *arguments)


def _resized(method, images, classes, key=None, head=classify):
    compute = functools.partial(gradcam.class_activation_maps, method, features, head)
    return jax.jit(compute)(jnp.asarray(images), classes, key=key)


def _gradient(classes):
    """The gradient of the linear head's logits, `[n, 4, 3, 5]`."""
    return HEAD[:, classes].T.reshape(-1, 4, 3, 5)


def _normalised(maps):
    maps = np.maximum(maps, 0)
    maps = maps - maps.min((1, 2), keepdims=True)
    return maps / (maps.max((1, 2), keepdims=True) + 1e-8)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_grad_cam_weighs_channels_by_the_mean_gradient():
    maps = np.asarray(features(jnp.asarray(IMAGES)))
    weights = _gradient(CLASSES).mean((1, 2))
    expected = _normalised(np.einsum("nk,nhwk->nhw", weights, maps))
    np.testing.assert_allclose(_maps("grad_cam"), expected, atol=1e-9)


def test_grad_cam_pp_is_the_published_one_for_an_exponential_score():
    maps = np.asarray(features(jnp.asarray(IMAGES)))
    logits = np.asarray(classify(maps))
    score = np.exp(logits[np.arange(4), CLASSES])[:, None, None, None]
    gradient = _gradient(CLASSES)
    first, second, third = (score * gradient**power for power in (1, 2, 3))
    alpha = second / (2 * second + maps.sum((1, 2), keepdims=True) * third)
    # The whole image's factor is divided out again: it would shift the weight of the 1e-8.
    weights = (alpha * np.maximum(first, 0) / score).sum((1, 2))
    expected = _normalised(np.einsum("nk,nhwk->nhw", weights, maps))
    np.testing.assert_allclose(_maps("grad_cam_pp"), expected, atol=1e-7)


def test_smooth_grad_cam_pp_takes_moments_over_samples_and_the_last_sample_else():
    # The logits are made quadratic, so that the gradient differs between samples.
    def square(maps):
        return classify(maps**2)

    noise = 0.3 * _RNG.standard_normal((3, *IMAGES.shape))
    passes = [np.asarray(features(jnp.asarray(IMAGES + sample))) for sample in noise]
    gradients = [2 * maps * _gradient(CLASSES) for maps in passes]
    second = np.mean([g**2 for g in gradients], axis=0)
    third = np.mean([g**3 for g in gradients], axis=0)
    clean = np.asarray(features(jnp.asarray(IMAGES)))
    total = (third * clean).sum((1, 2), keepdims=True)
    alpha = second / (2 * second + total + 1e-8)
    weights = (alpha * np.maximum(gradients[-1], 0)).sum((1, 2))
    expected = _normalised(np.einsum("nk,nhwk->nhw", weights, passes[-1]))
    actual = _maps("smooth_grad_cam_pp", jnp.asarray(noise), head=square)
    np.testing.assert_allclose(actual, expected, atol=1e-7)


def test_layer_cam_fuses_the_lifted_maps_of_early_layers_with_the_last():
    def first(images):
        return jax.nn.relu(images @ jnp.asarray(KERNEL))

    def second(maps):
        return (maps**2).reshape(-1, 4, 2, 3, 2, 5).mean((2, 4))

    compute = functools.partial(gradcam.layer_cam, gradcam.Stages([first, second]), classify)
    actual = jax.jit(compute)(jnp.asarray(IMAGES), CLASSES)

    early = np.maximum(IMAGES @ KERNEL, 0)
    late = (early**2).reshape(-1, 4, 2, 3, 2, 5).mean((2, 4))
    of_late = _gradient(CLASSES)
    of_early = 2 * early * of_late.repeat(2, 1).repeat(2, 2) / 4
    maps = [
        _normalised((np.maximum(gradient, 0) * layer).sum(3))
        for gradient, layer in ((of_early, early), (of_late, late))
    ]
    larger = np.asarray(gradcam.resize_maps(jnp.asarray(maps[1]), (8, 6)))
    expected = _normalised(np.maximum(np.tanh(2 * maps[0]), larger))
    np.testing.assert_allclose(actual, expected, atol=1e-7)
    # Either layer counts somewhere.
    assert 0 < (np.tanh(2 * maps[0]) > larger).mean() < 1


def test_layer_cam_of_one_layer_weighs_each_position_by_its_positive_gradient():
    maps = np.asarray(features(jnp.asarray(IMAGES)))
    expected = _normalised((np.maximum(_gradient(CLASSES), 0) * maps).sum(3))
    np.testing.assert_allclose(_maps("layer_cam"), expected, atol=1e-7)


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_maps_have_the_size_and_dtype_of_the_images_and_reach_zero_and_near_one(method):
    maps = _resized(method, IMAGES.astype(np.float32), CLASSES, jax.random.key(0))
    assert (maps.shape, maps.dtype) == ((4, 8, 6), jnp.float32)
    assert maps.min() == 0 and 0.5 < maps.max() <= 1


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_pp", "layer_cam"])
def test_an_image_s_map_does_not_depend_on_its_neighbours(method):
    together = _resized(method, IMAGES, CLASSES)
    alone = _resized(method, IMAGES[1:2], CLASSES[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-12)


def test_smooth_grad_cam_pp_depends_on_its_key_alone():
    first, again, other = (
        _resized("smooth_grad_cam_pp", IMAGES, CLASSES, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(ValueError, match="key"):
        _resized("smooth_grad_cam_pp", IMAGES, CLASSES)


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_a_network_that_sees_nothing_gives_a_map_of_zeros(method):
    def blind(maps):
        return 0 * classify(maps)

    maps = _resized(method, IMAGES, CLASSES, jax.random.key(0), head=blind)
    np.testing.assert_array_equal(maps, 0)


def test_an_unknown_method_is_told_in_one_line():
    with pytest.raises(UserError, match="'score_cam'.*grad_cam, grad_cam_pp"):
        gradcam.class_activation_maps("score_cam", features, classify, IMAGES, CLASSES)


@pytest.mark.parametrize("size", [(9, 10), (4, 5), (2, 3)])
def test_maps_are_resized_bilinearly_with_half_pixel_centres(size):
    def weights(new, old):
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        centres = np.clip(centres, 0, old - 1)
        return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))

    maps = _RNG.uniform(size=(2, 4, 5))
    expected = np.einsum("rh,sw,nhw->nrs", weights(size[0], 4), weights(size[1], 5), maps)
    np.testing.assert_allclose(gradcam.resize_maps(jnp.asarray(maps), size), expected, atol=1e-12)


def test_dae_weight_lifts_the_area_above_the_mean_or_the_threshold():
    maps = np.array([[[0.0, 0.2, 1.0]], [[0.5, 0.6, 0.7]]])
    by_mean = dae_weight(jnp.asarray(maps), 2.0)
    assert by_mean.shape == (2, 1, 3, 1)
    np.testing.assert_allclose(by_mean[..., 0], [[[1, 1, 3]], [[1, 2.6, 2.7]]])
    by_threshold = dae_weight(jnp.asarray(maps), 1.0, 0.2)
    np.testing.assert_allclose(by_threshold[..., 0], [[[1, 1.2, 2]], [[1.5, 1.6, 1.7]]])
