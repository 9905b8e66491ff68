"""Real images that are too large a set for the device: read from the host a chunk at a time.

Images are on the device where they are a JAX array. Where they are a NumPy array or a memory map, a
Grain pipeline gives chunks of them, in the order in which they are needed, while the device
computes on earlier ones. The results are the same. A run goes on after its last whole epoch, so
the pipeline of an epoch always starts at its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.data import Normalisation
from edf_jax.data.pipeline import stream
from edf_jax.models import Network
from edf_jax.runtime import devices, processes
from edf_jax.training import loop as training

# What real images may take of a device's memory; a larger set is streamed.
_MOST_OF_MEMORY = 1 / 3
# Chunks have about so many bytes, and so many of them wait their turn on the device.
CHUNK_BYTES = 2**28
CHUNKS = 3

Images = jax.Array | np.ndarray
# (states [K, ...], a key for each, rate, what `Order` takes) -> (states, mean loss of each [K])
Epoch = Callable[..., tuple[training.TrainState, jax.Array]]
# (key, what an epoch shows) -> positions in the order shown, and how many count (None is all)
Order = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array | None]]


def fits_on_device(size: int, choice: str) -> bool:
    """Whether real images are held on the device, not streamed to it.

    Args:
        size: theirs, in bytes.
        choice: `data.on_device`: `yes`, `no`, or `auto`, by what share of the memory they take.
    """
    if choice != "auto":
        return choice == "yes"
    room = devices.local_device().memory
    return room is None or size <= _MOST_OF_MEMORY * room


def place(
    images: np.ndarray, normalisation: Normalisation, choice: str = "auto"
) -> tuple[Images, training.Prepare]:
    """Images where networks will read them, and the function to network inputs.

    uint8 where normalising is cheap; whitened float32 with ZCA, whose matrix is too large to
    apply to every batch.

    Args:
        images: uint8 `[n, H, W, C]`, in memory or on disk.
        normalisation: the data's.
        choice: `data.on_device`; auto leaves on the host what would take much of the device.

    Returns:
        A JAX array, or a NumPy array (a memory map) to be streamed.
    """
    if normalisation.zca is not None:
        images = normalisation.apply(np.asarray(images))
    prepare = normalisation.apply if normalisation.zca is None else lambda x: x
    size = images.size * images.dtype.itemsize
    stays = processes.from_first_process("where images lie", lambda: fits_on_device(size, choice))
    return jnp.asarray(images) if stays else images, prepare


def make_epoch(
    recipe: training.Recipe,
    images: Images,
    labels: np.ndarray,
    *,
    order: Order | None = None,
    workers: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Epoch:
    """One pass of several networks over real images, each in an order of its own.

    Args:
        recipe: how to train.
        images: `[n, H, W, C]`, as stored.
        labels: `[n]`.
        order: of an epoch; a permutation of all where None.
        workers: threads that gather; 0 for one per core.
        chunk_bytes: about how much is gathered at once.

    Returns:
        `(states, keys, rate, shown)` to the trained states and their mean losses `[K]`. `keys`
        holds an epoch's key for each network; `shown` is for `order`. On the host or on the
        device, it is the epoch of `training.train_epochs`.
    """
    count = len(labels)

    def everything(key, shown):
        del shown
        return jax.random.permutation(key, count), None

    order = order or everything
    if isinstance(images, jax.Array):
        return _held_epoch(recipe, images, labels, order)
    return _streamed_epoch(recipe, images, labels, order, workers, chunk_bytes)


def _held_epoch(
    recipe: training.Recipe, images: jax.Array, labels: np.ndarray, order: Order
) -> Epoch:
    @jax.jit
    def whole(states, keys, rate, shown, images, labels):
        def one(state, key):
            order_key, step_key = jax.random.split(key)
            positions, num = order(order_key, shown)
            return training.train_epoch(
                recipe, state, images, labels, positions, step_key, rate, count=num
            )

        return training.for_each_network(one)(states, keys)

    held = jnp.asarray(labels)
    return lambda states, keys, rate, shown=None: whole(states, keys, rate, shown, images, held)


def _streamed_epoch(
    recipe: training.Recipe,
    images: np.ndarray,
    labels: np.ndarray,
    order: Order,
    workers: int,
    chunk_bytes: int,
) -> Epoch:
    @jax.jit
    def cut(keys, shown):
        def one(key):
            order_key, step_key = jax.random.split(key)
            positions, num = order(order_key, shown)
            return training.cut(recipe, positions, step_key, num)

        return jax.lax.map(one, keys)

    @jax.jit
    def train(states, images, labels, batches, used, rate):
        def one(state, images, labels, batches):
            return training.train_batches(
                recipe, state, images, labels, batches, rate, used=used
            )

        return training.for_each_network(one)(states, images, labels, batches)

    @jax.jit
    def train_last(states, images, labels, batch, rate):
        def one(state, images, labels, batch):
            return training.train_batch(recipe, state, images, labels, batch, rate)

        return training.for_each_network(one)(states, images, labels, batch)

    def epoch(states, keys, rate, shown=None):
        batches, last = cut(keys, shown)
        networks, steps, size = batches.positions.shape
        used = steps
        if batches.mask is not None:
            used = int(np.asarray(batches.mask[0]).any(axis=1).sum())
        each = min(steps, max(1, chunk_bytes // (networks * size * images[:1].nbytes)))
        losses: list[jax.Array] = []
        # All chunks are of one shape; the last is filled up with the last step, which isn't made.
        parts = np.minimum(np.arange(-(-used // each) * each), steps - 1).reshape(-1, each)
        positions = np.asarray(batches.positions)[:, parts].swapaxes(0, 1)
        pipeline = stream(
            images, positions.reshape(-1, size), workers=workers, together=networks * each
        )
        local = jnp.broadcast_to(jnp.arange(each * size).reshape(each, size), positions.shape[1:])
        for part, chosen, chunk in zip(parts, positions, pipeline):
            mask = None if batches.mask is None else batches.mask[:, part]
            now = training.Batches(local, mask, batches.keys[:, part])
            chunk = chunk.reshape(networks, each * size, *images.shape[1:])
            chosen = labels[chosen].reshape(networks, each * size)
            count = jnp.int32(min(each, used - part[0]))
            states, loss = train(states, chunk, chosen, now, count, rate)
            losses.append(loss)
            _hold_back(losses)
        if last is not None:
            positions = np.asarray(last.positions)
            (chunk,) = stream(images, positions, workers=workers, together=networks)
            local = jnp.broadcast_to(jnp.arange(positions.shape[1]), positions.shape)
            states, loss = train_last(
                states,
                chunk.reshape(*positions.shape, *images.shape[1:]),
                labels[positions],
                last._replace(positions=local),
                rate,
            )
            losses.append(loss[:, None])
            used += 1
        return states, jnp.sum(jnp.concatenate(losses, axis=1), axis=1) / used

    return epoch


def _hold_back(results: list[jax.Array]) -> None:
    """Keeps the host from queueing more than a few chunks on the device."""
    if len(results) >= CHUNKS:
        results[-CHUNKS].block_until_ready()


def chunks(
    images: Images, *, batch: int = 256, workers: int = 0, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[np.ndarray, Images]]:
    """All images in order: their positions `[m]` and themselves `[m, H, W, C]`.

    Images on the device are one chunk. Others come in chunks of one size, a multiple of `batch`;
    the last is filled up with the first images.

    Args:
        images: `[n, H, W, C]`.
        batch: how many will be computed on at once.
        workers: threads that gather; 0 for one per core.
        chunk_bytes: about how much is gathered at once.
    """
    count = len(images)
    if isinstance(images, jax.Array):
        yield np.arange(count), images
        return
    batch = min(batch, count)
    rows = -(-count // batch)
    each = min(rows, max(1, chunk_bytes // (batch * images[:1].nbytes)))
    parts = -(-rows // each)
    positions = (np.arange(parts * each * batch) % count).reshape(parts, each, batch)
    pipeline = stream(images, positions.reshape(-1, batch), workers=workers, together=each)
    for chosen, chunk in zip(positions, pipeline):
        yield chosen.reshape(-1), chunk


def make_classify(
    network: Network,
    prepare: training.Prepare,
    *,
    workers: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Callable[[jax.Array, Any, Images], jax.Array]:
    """What several networks take each image for.

    Args:
        network: the architecture.
        prepare: from stored images to inputs.
        workers: see `chunks`.
        chunk_bytes: see `chunks`.

    Returns:
        `(theta [K, P], batch_stats, images [n, H, W, C])` to classes `[K, n]`.
    """

    @jax.jit
    def compiled(theta, batch_stats, images):
        def one(theta, batch_stats):
            return training.classify(network, theta, batch_stats, images, prepare)

        return training.for_each_network(one)(theta, batch_stats)

    def classify(theta, batch_stats, images):
        found: list[jax.Array] = []
        for _, chunk in chunks(images, workers=workers, chunk_bytes=chunk_bytes):
            found.append(compiled(theta, batch_stats, chunk))
            _hold_back(found)
        return jnp.concatenate(found, axis=1)[:, : len(images)]

    return classify


def make_accuracy(
    network: Network, prepare: training.Prepare, **options: int
) -> Callable[[training.TrainState, Images, Any], jax.Array]:
    """Shares of images that several networks take for what they are.

    Args:
        network: the architecture.
        prepare: from stored images to inputs.
        **options: see `make_classify`.

    Returns:
        `(states, images [n, H, W, C], labels [n])` to shares `[K]` in [0, 1].
    """
    classify = make_classify(network, prepare, **options)
    share = jax.jit(lambda found, labels: jnp.mean(found == labels, axis=1))
    return lambda states, images, labels: share(
        classify(states.theta, states.batch_stats, images), labels
    )
