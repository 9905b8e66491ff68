"""The weight of pixel gradients: activation maps of the synthetic images, enhanced by DAE."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from edf_jax.matching.iteration import Learnable
from edf_jax.methods import family, gradcam
from edf_jax.methods.dae import dae_weight
from edf_jax.training.trained import TrainedNetwork

_CAM_BATCH = 128


def make_weight(config, cam: TrainedNetwork) -> Callable:
    """The compiled function `(values, key) -> (maps [n, H, W], DAE weight [n, H, W, 1])`.

    Maps and weights are those of the decoded images.
    """
    decode = family.parametrisation(config.distill).decode

    def maps_of(images, classes, key):
        def of_one(arrays):
            return gradcam.class_activation_maps(
                config.cam.method, *cam.halves(arrays), images, classes, key=key
            )

        if cam.theta.ndim == 1:
            return of_one(cam.arrays)
        return gradcam.normalise(jnp.mean(lax.map(of_one, cam.arrays), axis=0))

    @jax.jit
    def weight(values: Learnable, key):
        images, classes = decode(values.images), jnp.argmax(values.labels, axis=-1)
        if cam.class_indices is not None:
            classes = jnp.asarray(cam.class_indices)[classes]
        count = len(classes)
        if count <= _CAM_BATCH:
            maps = maps_of(images, classes, key)
        else:
            rows = -(-count // _CAM_BATCH)
            # The last row is filled up with the first images.
            positions = (jnp.arange(rows * _CAM_BATCH) % count).reshape(rows, _CAM_BATCH)
            maps = lax.map(
                lambda row: maps_of(images[row[0]], classes[row[0]], row[1]),
                (positions, jax.random.split(key, rows)),
            )
            maps = maps.reshape(rows * _CAM_BATCH, *maps.shape[2:])[:count]
        return maps, dae_weight(maps, config.cam.beta, config.cam.threshold)

    return weight
