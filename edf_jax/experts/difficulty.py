"""How difficult training images are, and how an epoch shows some of them.

References:
  Paul et al., "Deep Learning on a Data Diet: Finding Important Examples Early in Training"
    (2107.07075): GraNd and EL2N.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from edf_jax.models import Network
from edf_jax.training import losses, streaming
from edf_jax.training.loop import Prepare, Recipe, initial_state

_BATCH = 64


class Shown(NamedTuple):
    """The training images that an epoch shows.

    Attributes:
        positions: int32; those that count come first.
        num: how many count, a scalar that may be traced; None for all.
    """

    positions: jax.Array
    num: jax.Array | None


def shown(positions: np.ndarray, total: int, *, pads: bool) -> Shown:
    """An epoch that shows the images at `positions` only.

    Args:
        positions: of the images.
        total: how many images there are.
        pads: fill up to `total`, so that one compiled program serves epochs of any length.
    """
    if not pads:
        return Shown(jnp.asarray(positions), None)
    padded = np.pad(positions, (0, total - len(positions)))
    return Shown(jnp.asarray(padded), jnp.int32(len(positions)))


def shuffled(key: jax.Array, epoch: Shown) -> tuple[jax.Array, jax.Array | None]:
    """The positions in a random order, those that count first, and how many count."""
    positions, num = epoch
    if num is None:
        return positions[jax.random.permutation(key, positions.size)], None
    draws = jax.random.uniform(key, positions.shape)
    order = jnp.argsort(jnp.where(jnp.arange(positions.size) < num, draws, 2.0))
    return positions[order], num


def el2n(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """EL2N scores `[n]`: the length of the error `softmax(logits) - one_hot(labels)`.

    Args:
        logits: `[n, C]`.
        labels: `[n]`.
    """
    error = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.linalg.norm(error, axis=-1)


def grand(
    network: Network, theta: jax.Array, batch_stats: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """GraNd scores `[n]`: the length of each image's own gradient of the cross-entropy.

    Args:
        network: the architecture, in evaluation mode.
        theta: `[P]`.
        batch_stats: {} where it has none.
        images: `[n, H, W, C]`, normalised.
        labels: `[n]`.
    """

    def loss(theta, image, label):
        logits = network.apply(theta, image[None], batch_stats)
        return losses.hard_cross_entropy(logits, label[None])

    def length(example):
        return jnp.linalg.norm(jax.grad(loss)(theta, *example))

    return lax.map(length, (images, labels))


def make_scores(
    network: Network,
    prepare: Prepare,
    images: streaming.Images,
    labels: np.ndarray,
    *,
    how: str,
    workers: int = 0,
) -> Callable[[jax.Array, Any], np.ndarray]:
    """Makes `(theta, batch_stats) -> scores [N]`, of one network on all images.

    Args:
        network: the architecture.
        prepare: from images as stored to the network's inputs.
        images: `[N, H, W, C]`, as stored.
        labels: `[N]`.
        how: "grand" or "el2n".
        workers: threads that gather images on the host.
    """

    def scores_of(theta, batch_stats, images, labels):
        inputs = prepare(images)
        if how == "grand":
            return grand(network, theta, batch_stats, inputs, labels)
        return el2n(network.apply(theta, inputs, batch_stats), labels)

    @jax.jit
    def in_rows(theta, batch_stats, images, labels):
        # The last row is filled up with the first images, so that one program serves all rows.
        rows = -(-len(labels) // _BATCH)
        positions = (jnp.arange(rows * _BATCH) % len(labels)).reshape(rows, _BATCH)
        found = lax.map(
            lambda row: scores_of(theta, batch_stats, images[row], labels[row]), positions
        )
        return found.ravel()[: len(labels)]

    def scores(theta, batch_stats) -> np.ndarray:
        parts = [
            np.asarray(in_rows(theta, batch_stats, chunk, labels[positions]))
            for positions, chunk in streaming.chunks(images, batch=_BATCH, workers=workers)
        ]
        return np.concatenate(parts)[: len(labels)]

    return scores


def mean_scores(
    recipe: Recipe,
    images: streaming.Images,
    labels: np.ndarray,
    *,
    how: str,
    networks: int,
    epochs: int,
    rate: float,
    key: jax.Array,
    workers: int = 0,
) -> np.ndarray:
    """Scores `[N]` averaged over networks early in their training.

    Args:
        recipe: how they are trained.
        images: `[N, H, W, C]`, as stored.
        labels: `[N]`.
        how: "grand" or "el2n".
        networks: how many.
        epochs: how long each is trained before it judges.
        rate: their learning rate.
        key: network i is initialised and trained from `fold_in(key, i)`.
        workers: threads that gather images on the host.
    """
    train = streaming.make_epoch(recipe, images, labels, workers=workers)
    scores = make_scores(
        recipe.network, recipe.prepare, images, labels, how=how, workers=workers
    )

    @jax.jit
    def first(key):
        return jax.tree.map(lambda x: x[None], initial_state(recipe, key))

    def one(key):
        start_key, key = jax.random.split(key)
        states = first(start_key)
        for epoch in range(epochs):
            states, _ = train(states, jax.random.fold_in(key, epoch)[None], rate)
        state = jax.tree.map(lambda x: x[0], states)
        return scores(state.theta, state.batch_stats)

    total = np.zeros(len(labels))
    for index in range(networks):
        total += one(jax.random.fold_in(key, index))
    return (total / networks).astype(np.float32)
