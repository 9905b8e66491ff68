"""Class activation maps, and the weight that they give to the gradient of an image.

A network comes as two functions: `features`, from images `[n, H, W, C]` to the maps `[n, h, w, c]`
of its CAM layer, and `classify`, from those to logits `[n, classes]`. Both have to treat each
image apart (evaluation mode). Where `features` is `Stages`, LayerCAM takes the maps after each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from edf_jax.runtime.errors import UserError
from edf_jax.runtime.shapes import Array, Classes, Float, Images, Key, Maps

NOISE_SAMPLES = 4
NOISE_STD = 0.3
# LayerCAM's gamma, which lifts the maps of all layers but the last.
LIFT = 2.0

_EPS = 1e-8

ArrayFunction = Callable[[jax.Array], jax.Array]


class Stages(tuple[ArrayFunction, ...]):
    """Parts of `features` in a row, each from maps `[n, h, w, c]` to maps; called, all of them."""

    def __call__(self, images: jax.Array) -> jax.Array:
        return functools.reduce(lambda maps, stage: stage(maps), self, images)


def grad_cam(
    features: ArrayFunction, classify: ArrayFunction, images: Images, classes: Classes
) -> Maps:
    """Grad-CAM: channels weighted by the spatial mean of their gradient.

    Args:
      features: images to feature maps.
      classify: feature maps to logits; the score of a class is its logit.
      images: `[n, H, W, C]`.
      classes: `[n]`, integers: the class asked of each image.

    Returns:
      `[n, h, w]` in [0, 1], at the size of the feature maps.

    References:
      Selvaraju et al. (arXiv 1610.02391), equations 1 and 2.
    """
    activations = features(images)
    gradient = _score_gradient(classify, activations, classes)
    return _normalised_map(jnp.mean(gradient, axis=(1, 2)), activations)


def grad_cam_pp(
    features: ArrayFunction, classify: ArrayFunction, images: Images, classes: Classes
) -> Maps:
    """Grad-CAM++, with the exponential of the logit as the score.

    The factor `exp(logit)` of the channel weights is one for the whole image, so normalisation
    takes it away and it is left out.

    Args and result as in `grad_cam`.

    References:
      Chattopadhyay et al., "Grad-CAM++" (arXiv 1710.11063), equations 5, 7 and 19.
    """
    activations = features(images)
    gradient = _score_gradient(classify, activations, classes)
    total = jnp.sum(activations, axis=(1, 2), keepdims=True)
    denominator = 2 * gradient**2 + total * gradient**3
    alpha = gradient**2 / jnp.where(denominator == 0, 1, denominator)
    return _normalised_map(jnp.sum(alpha * jax.nn.relu(gradient), axis=(1, 2)), activations)


def smooth_grad_cam_pp(
    features: ArrayFunction,
    classify: ArrayFunction,
    images: Images,
    classes: Classes,
    noise: Float[Array, "s n h w c"],
) -> Maps:
    """SmoothGrad-CAM++ as EDF runs it: moments of the gradient over noisy copies of an image.

    The channel weights' gradient and the activations that they weigh are those of the last noisy
    copy, where the paper has means over all of them.

    Args:
      features: as in `grad_cam`.
      classify: as in `grad_cam`.
      images: `[n, H, W, C]`.
      classes: `[n]`.
      noise: `[samples, n, H, W, C]`, added to the images. All samples go through in one batch.

    Returns:
      As `grad_cam`.

    References:
      Omeiza et al., "Smooth Grad-CAM++" (arXiv 1908.01224), equations 7 to 9; the last sample:
      torchcam 0.5.
    """
    samples = noise.shape[0]
    noisy = features((images + noise).reshape(-1, *images.shape[1:]))
    gradient = _score_gradient(classify, noisy, jnp.tile(classes, samples))
    gradient = gradient.reshape(samples, -1, *gradient.shape[1:])
    last = noisy.reshape(gradient.shape)[-1]

    second, third = jnp.mean(gradient**2, axis=0), jnp.mean(gradient**3, axis=0)
    total = jnp.sum(third * features(images), axis=(1, 2), keepdims=True)
    alpha = second / (2 * second + total + _EPS)
    return _normalised_map(jnp.sum(alpha * jax.nn.relu(gradient[-1]), axis=(1, 2)), last)


def layer_cam(
    features: ArrayFunction, classify: ArrayFunction, images: Images, classes: Classes
) -> Maps:
    """LayerCAM: every position and channel weighted by its own positive gradient, layers fused.

    The map of a layer is `relu(sum_k relu(g_k) A_k)`, normalised; of every layer but the last it is
    `tanh(2 map)`, for those of early layers have few high values. All are resized to the largest,
    and the largest value at each position counts.

    Args:
      features: as in `grad_cam`; `Stages` for one layer a stage, else its result is the one layer.
      classify: as in `grad_cam`.
      images: `[n, H, W, C]`.
      classes: `[n]`.

    Returns:
      `[n, h, w]` in [0, 1], at the size of the first layer's maps.

    References:
      Jiang et al., "LayerCAM" (IEEE Transactions on Image Processing 30, 2021): the weights, and
      the scaling and maximum by which maps of several layers are fused.
    """
    stages = features if isinstance(features, Stages) else (features,)
    activations, pullbacks, maps = [], [], images
    for stage in stages:
        maps, pullback = jax.vjp(stage, maps)
        activations.append(maps)
        pullbacks.append(pullback)
    gradient = _score_gradient(classify, maps, classes)
    count, height, width, _ = activations[0].shape
    fused = jnp.zeros((count, height, width), maps.dtype)
    for number in reversed(range(len(stages))):
        found = normalise(jnp.sum(jax.nn.relu(gradient) * activations[number], axis=3))
        if number < len(stages) - 1:
            found = jnp.tanh(LIFT * found)
        fused = jnp.maximum(fused, resize_maps(found, (height, width)))
        (gradient,) = pullbacks[number](gradient)
    return normalise(fused)


def _score_gradient(
    classify: ArrayFunction, activations: jax.Array, classes: Classes
) -> jax.Array:
    """The gradient of each image's class logit in its own feature maps, `[n, h, w, c]`."""

    def total_score(activations: jax.Array) -> jax.Array:
        return jnp.sum(jnp.take_along_axis(classify(activations), classes[:, None], axis=1))

    return jax.grad(total_score)(activations)


def _normalised_map(weights: jax.Array, activations: jax.Array) -> jax.Array:
    """`relu(sum_k weights_k activations_k)`, each map scaled to [0, 1]."""
    return normalise(jnp.sum(weights[:, None, None, :] * activations, axis=3))


def normalise(maps: Maps) -> Maps:
    """Maps `[n, h, w]` rectified, and each scaled to [0, 1]: less its minimum, over its maximum."""
    maps = jax.nn.relu(maps)
    maps -= jnp.min(maps, axis=(1, 2), keepdims=True)
    return maps / (jnp.max(maps, axis=(1, 2), keepdims=True) + _EPS)


def resize_maps(maps: Maps, size: tuple[int, int]) -> Float[Array, "n H W"]:
    """Resize maps bilinearly, with half-pixel centres and no antialiasing.

    Args:
      maps: `[n, h, w]`.
      size: `(H, W)`.

    Returns:
      `[n, H, W]`.
    """
    shape = (maps.shape[0], *size)
    return jax.image.resize(maps, shape, method="bilinear", antialias=False)


def _without_noise(method):
    def keyed(features, classify, images, classes, key):
        del key
        return method(features, classify, images, classes)

    return keyed


def _with_noise(method):
    def keyed(features, classify, images, classes, key):
        if key is None:
            raise ValueError(f"{method.__name__} draws noise: give a key")
        noise = jax.random.normal(key, (NOISE_SAMPLES, *images.shape), images.dtype)
        return method(features, classify, images, classes, NOISE_STD * noise)

    return keyed


METHODS = {
    "grad_cam": _without_noise(grad_cam),
    "grad_cam_pp": _without_noise(grad_cam_pp),
    "smooth_grad_cam_pp": _with_noise(smooth_grad_cam_pp),
    "layer_cam": _without_noise(layer_cam),
}


def class_activation_maps(
    method: str,
    features: ArrayFunction,
    classify: ArrayFunction,
    images: Images,
    classes: Classes,
    *,
    key: Key | None = None,
) -> Float[Array, "n h w"]:
    """Class activation maps at the size of the images.

    Args:
      method: a name in `METHODS`.
      features: images to feature maps.
      classify: feature maps to logits.
      images: `[n, H, W, C]`.
      classes: `[n]`, integers.
      key: for the noise of `smooth_grad_cam_pp`; the other methods need none.

    Returns:
      `[n, H, W]` in [0, 1].

    Raises:
      UserError: for a method that there is not.
      ValueError: where the method draws noise and there is no key.
    """
    if method not in METHODS:
        raise UserError(f"there is no CAM method {method!r}; use one of {', '.join(METHODS)}")
    maps = METHODS[method](features, classify, images, classes, key)
    _, height, width, _ = images.shape
    return resize_maps(maps, (height, width))


