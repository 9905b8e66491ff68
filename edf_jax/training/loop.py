"""The one loop that trains networks: experts, evaluated networks and teachers share it.

Everything here is pure; a training is resumable at every epoch, since the randomness of epoch `e`
is `fold_in(key, e)` and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from edf_jax.methods import gsam
from edf_jax.models import Network
from edf_jax.runtime import devices
from edf_jax.training import microbatch, parallel

# (logits [b, C], targets [b, ...], mask [b] or None) -> scalar
Loss = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
# (key, inputs [b, H, W, C]) -> inputs
Augment = Callable[[jax.Array, jax.Array], jax.Array]
# stored images [b, H, W, C] -> normalised inputs
Prepare = Callable[[jax.Array], jax.Array]
# (the key of `augment`, augmented inputs [b, H, W, C], stored targets) -> targets [b, ...]
Teach = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# (all images, all targets, epoch) -> images [n, H, W, C] and targets [n, ...] in the order shown
View = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, jax.Array]]


class TrainState(NamedTuple):
    """A network in training.

    Attributes:
        theta: `[P]`.
        batch_stats: running batch-norm statistics; {} where there are none.
        optimiser: optax's state.
    """

    theta: jax.Array
    batch_stats: Any
    optimiser: Any


class Gsam(NamedTuple):
    """GSAM's settings (`edf_jax.methods.gsam`)."""

    rho: float
    alpha: float
    adaptive: bool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How networks are trained on batches of one data set.

    Attributes:
        network: the architecture.
        loss: of logits and targets.
        optimiser: turns gradients into directions, without the rate (see `sgd`).
        augment: of a batch, by a key.
        prepare: from images as stored (uint8, say) to the network's inputs.
        batch: the batches' size; the last of an epoch may be smaller.
        gsam: None for plain gradients.
        teach: makes the targets of augmented inputs, by their images or the stored targets.
        observe: of a batch, by the key of `augment`: inputs of a first pass, which only moves
            batch-norm statistics. None for no such pass.
        mixes: whether `augment` mixes the images of a batch, so that none may be padding.
    """

    network: Network
    loss: Loss
    optimiser: optax.GradientTransformation
    augment: Augment
    prepare: Prepare
    batch: int
    gsam: Gsam | None = None
    teach: Teach | None = None
    observe: Augment | None = None
    mixes: bool = False

    @property
    def pads(self) -> bool:
        """Whether a batch can be filled up with images that don't count."""
        return not (self.network.has_batch_stats or self.mixes)


class Batches(NamedTuple):
    """Batches of one size, or without the leading axis one of them.

    Attributes:
        positions: `[steps, b]`, of their examples.
        mask: `[steps, b]` bool, False where a batch is filled up; None where all are whole.
        keys: `[steps]`, for augmentation and the network's own randomness.
    """

    positions: jax.Array
    mask: jax.Array | None
    keys: jax.Array


def sgd(momentum: float = 0.0, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """PyTorch's SGD as a direction: decay added to the gradient, then momentum, no rate."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.trace(momentum) if momentum else optax.identity(),
    )


def adamw(
    network: Network, weight_decay: float, *, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """PyTorch's AdamW as a direction, without the rate; only kernels decay.

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (1711.05101), algorithm 2.
    """

    def decay(updates, theta):
        return updates + weight_decay * _kernels(network, theta)

    return optax.chain(optax.scale_by_adam(b1, b2, eps=1e-8), optax.stateless(decay))


def _kernels(network: Network, theta: jax.Array) -> jax.Array:
    """`theta` with everything but the kernels of convolutions and linear layers set to zero."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "kernel" else jnp.zeros_like(leaf),
        network.unravel(theta),
    )
    return network.ravel(params)


def initial_state(recipe: Recipe, key: jax.Array) -> TrainState:
    """A freshly initialised network."""
    theta, batch_stats = recipe.network.init(key)
    return TrainState(theta, batch_stats, recipe.optimiser.init(theta))


def train_step(
    recipe: Recipe,
    state: TrainState,
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None,
    key: jax.Array,
    rate: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One step on one batch; returns the new state and the loss before it."""
    # Apart from where its arguments come from, a step gives the same bits in every program.
    state, images, targets, mask, key = lax.optimization_barrier(
        (state, images, targets, mask, key)
    )
    augment_key, network_key = jax.random.split(key)
    prepared = recipe.prepare(images)
    inputs = recipe.augment(augment_key, prepared)
    if recipe.teach is not None:
        targets = recipe.teach(augment_key, inputs, targets)
    batch_stats = state.batch_stats
    if recipe.observe is not None and recipe.network.has_batch_stats:
        seen = recipe.observe(augment_key, prepared)
        _, batch_stats = recipe.network.apply_and_update(
            state.theta, seen, batch_stats, rng=network_key
        )

    value_and_grad = _value_and_grad(recipe, batch_stats, inputs, targets, mask, network_key)
    if recipe.gsam is None:
        (value, batch_stats), gradient = value_and_grad(state.theta)
    else:
        value, batch_stats, gradient = gsam.gsam_gradient(
            value_and_grad, state.theta, **recipe.gsam._asdict()
        )
    direction, optimiser = recipe.optimiser.update(gradient, state.optimiser, state.theta)
    return TrainState(state.theta - rate * direction, batch_stats, optimiser), value


def _value_and_grad(recipe: Recipe, batch_stats, inputs, targets, mask, key) -> Callable:
    """`theta -> ((loss, new batch statistics), gradient)` on one batch."""
    parts = microbatch.count_parts(recipe.network, len(inputs))

    def loss(theta, inputs, targets, mask, key):
        logits, moved = recipe.network.apply_and_update(theta, inputs, batch_stats, rng=key)
        return recipe.loss(logits, targets, mask), moved

    if parts == 1:
        whole = functools.partial(loss, inputs=inputs, targets=targets, mask=mask, key=key)
        return jax.value_and_grad(whole, has_aux=True)

    def in_parts(theta):
        def of_part(index, examples):
            inputs, targets, weights = examples
            part_key = jax.random.fold_in(key, index)

            def share(theta):
                return microbatch.share_of_mean(
                    lambda mask: loss(theta, inputs, targets, mask, part_key)[0], weights
                )

            return jax.value_and_grad(share)(theta), ()

        weights = microbatch.weights_of(mask, len(inputs), theta.dtype)
        (value, gradient), _ = microbatch.summed(of_part, (inputs, targets, weights), parts)
        return (value, batch_stats), gradient

    return in_parts


def train_epoch(
    recipe: Recipe,
    state: TrainState,
    images: jax.Array,
    targets: jax.Array,
    order: jax.Array,
    key: jax.Array,
    rate: jax.Array,
    *,
    count: jax.Array | None = None,
) -> tuple[TrainState, jax.Array]:
    """One pass over the examples.

    Args:
        recipe: how to train.
        state: the network.
        images: `[n, H, W, C]`, as stored.
        targets: `[n, ...]`.
        order: `[n]`, a permutation (or any choice) of positions; cut into batches from the front.
        key: for augmentation and the network's own randomness.
        rate: the learning rate, a scalar.
        count: how many of `order`, from its front, the pass is over; all where None. It may be
            traced, so that one program serves passes of any length.

    Returns:
        The trained state and the mean loss over batches.

    Raises:
        ValueError: `count` is given, but batches of this recipe can't be padded.
    """
    batches, last = cut(recipe, order, key, count)
    used = None if count is None else -(-count // batches.positions.shape[1])
    state, losses = train_batches(recipe, state, images, targets, batches, rate, used=used)
    if last is not None:
        state, loss = train_batch(recipe, state, images, targets, last, rate)
        losses = jnp.append(losses, loss)
    return state, jnp.mean(losses) if used is None else jnp.sum(losses) / used


def cut(
    recipe: Recipe, order: jax.Array, key: jax.Array, count: jax.Array | None = None
) -> tuple[Batches, Batches | None]:
    """The batches of a pass over examples; arguments as in `train_epoch`.

    Returns:
        Batches of one size, and the smaller last one where it can't be filled up to that.
    """
    size = min(recipe.batch, order.size)
    full, remainder = divmod(order.size, size)
    steps = full + bool(remainder)
    keys = jax.random.split(key, steps)
    if count is not None and not recipe.pads:
        raise ValueError("with batch norm or mixtures, cut `order` instead of giving `count`")
    if recipe.pads and (remainder or count is not None):
        # Padded and masked, so that one program serves all batches.
        positions = jnp.pad(order, (0, steps * size - order.size)).reshape(steps, size)
        counted = order.size if count is None else count
        mask = (jnp.arange(steps * size) < counted).reshape(steps, size)
        return Batches(positions, mask, keys), None
    # Padding would enter batch statistics and mixtures: the remainder is a batch of its own.
    whole = Batches(order[: full * size].reshape(full, size), None, keys[:full])
    return whole, Batches(order[full * size :], None, keys[full]) if remainder else None


def train_batch(
    recipe: Recipe, state: TrainState, images: jax.Array, targets: jax.Array, batch: Batches, rate
) -> tuple[TrainState, jax.Array]:
    """`train_step` on one batch of the examples."""
    chosen = images[batch.positions], targets[batch.positions]
    return train_step(recipe, state, *chosen, batch.mask, batch.keys, rate)


def train_batches(
    recipe: Recipe,
    state: TrainState,
    images: jax.Array,
    targets: jax.Array,
    batches: Batches,
    rate: jax.Array,
    *,
    used: jax.Array | None = None,
) -> tuple[TrainState, jax.Array]:
    """A step on each batch in turn, or on the first `used` of them.

    Returns:
        The trained state and the losses `[steps]`, zero where there was no step.
    """

    def step(state, batch):
        chosen = images[batch.positions], targets[batch.positions]
        return train_step(recipe, state, *chosen, batch.mask, batch.keys, rate)

    if used is None:
        return lax.scan(step, state, batches)

    def body(index, carry):
        state, losses = carry
        state, loss = step(state, jax.tree.map(lambda x: x[index], batches))
        return state, losses.at[index].set(loss)

    losses = jnp.zeros(batches.positions.shape[0], state.theta.dtype)
    return lax.fori_loop(0, used, body, (state, losses))


class Epochs(NamedTuple):
    """A stretch of a training.

    Attributes:
        number: `[E]` int32, zero-based; decides each epoch's randomness.
        rate: `[E]`, the learning rate of each.
        restart: `[E]` bool, whether the optimiser starts anew before it.
    """

    number: jax.Array
    rate: jax.Array
    restart: jax.Array


def train_epochs(
    recipe: Recipe,
    state: TrainState,
    images: jax.Array,
    targets: Any,
    epochs: Epochs,
    key: jax.Array,
    *,
    view: View | None = None,
) -> tuple[TrainState, jax.Array]:
    """Several passes over all examples in one compiled loop.

    Args:
        recipe: how to train.
        state: the network.
        images: `[n, H, W, C]`, as stored.
        targets: `[n, ...]`, or whatever `view` takes.
        epochs: which epochs, at which rates.
        key: of the whole training.
        view: what an epoch shows and in which order, where it isn't all examples shuffled.

    Returns:
        The trained state and the mean loss of each epoch `[E]`.
    """

    def epoch(state, inputs):
        index, rate, restart = inputs
        order_key, step_key = jax.random.split(jax.random.fold_in(key, index))
        fresh = recipe.optimiser.init(state.theta)
        optimiser = jax.tree.map(lambda a, b: jnp.where(restart, a, b), fresh, state.optimiser)
        if view is None:
            shown = images, targets
            order = jax.random.permutation(order_key, targets.shape[0])
        else:
            shown = view(images, targets, index)
            order = jnp.arange(len(shown[0]))
        return train_epoch(
            recipe, state._replace(optimiser=optimiser), *shown, order, step_key, rate
        )

    return lax.scan(epoch, state, epochs)


def predict(
    network: Network,
    theta: jax.Array,
    batch_stats: Any,
    images: jax.Array,
    prepare: Prepare,
    *,
    batch: int = 256,
) -> jax.Array:
    """Logits `[n, C]` of `images [n, H, W, C]` as stored, batch by batch."""
    count = images.shape[0]
    batch = min(batch, count)
    batch = -(-batch // microbatch.count_parts(network, batch))
    rows = -(-count // batch)
    # The last row is filled up with the first images, so that one program serves all rows.
    positions = (jnp.arange(rows * batch) % count).reshape(rows, batch)
    logits = lax.map(
        lambda row: network.apply(theta, prepare(images[row]), batch_stats), positions
    )
    return logits.reshape(rows * batch, -1)[:count]


def classify(
    network: Network,
    theta: jax.Array,
    batch_stats: Any,
    images: jax.Array,
    prepare: Prepare,
    *,
    batch: int = 256,
) -> jax.Array:
    """The likeliest class of each image, `[n]`; see `predict`."""
    return jnp.argmax(predict(network, theta, batch_stats, images, prepare, batch=batch), -1)


def accuracy(
    network: Network,
    theta: jax.Array,
    batch_stats: Any,
    images: jax.Array,
    labels: jax.Array,
    prepare: Prepare,
    *,
    batch: int = 256,
) -> jax.Array:
    """Share of images whose likeliest class is their label, a scalar in [0, 1]."""
    return jnp.mean(classify(network, theta, batch_stats, images, prepare, batch=batch) == labels)


def for_each_network(function: Callable, how: str = "auto") -> Callable:
    """`function` over the leading axis of all its arguments, one network an entry.

    The networks are spread over all devices.

    Args:
        function: of one network's arguments.
        how: what a device does with its share: `vmap`, `loop`, or `auto`: `vmap` on a TPU alone,
            for mapped convolutions are grouped ones, no faster on a CPU; and with K times the
            memory experts on an H100 would move a fifth more bytes, by what XLA compiles.
    """
    if how == "auto":
        how = "vmap" if devices.platform() == "tpu" else "loop"
    if how == "vmap":
        return parallel.over_networks(jax.vmap(function))
    return parallel.over_networks(
        lambda *arguments: lax.map(lambda entry: function(*entry), arguments)
    )
