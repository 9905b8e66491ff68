"""One outer iteration, compiled: match trajectories, and move the set by the gradients.

References:
  Wang et al., EDF (2410.17193); Guo et al., DATM (2310.05773).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from edf_jax.matching.gradient import matching_gradient, student_batches
from edf_jax.methods import dsa, family
from edf_jax.methods.soft_labels import snapshot_labels
from edf_jax.models import Network
from edf_jax.runtime.errors import UserError
from edf_jax.training import losses, microbatch, parallel

# The student ends over thirty times as far from the target as it started.
DIVERGED_LOSS = 1000.0
# What an iteration multiplies alpha by at most, where its logarithm is learned.
_LARGEST_FACTOR = 1.1


class Learnable(NamedTuple):
    """What distillation moves.

    Attributes:
        images: `[n, H, W, C]`, normalised.
        labels: `[n, C]` logits.
        alpha: the student's rate, a scalar.
    """

    images: jax.Array
    labels: jax.Array
    alpha: jax.Array


class SynState(NamedTuple):
    """The state of the outer optimisation.

    Attributes:
        values: what is learned.
        momentum: optax's state.
        average: the images' moving average, `[n, H, W, C]`; None where none is kept.
    """

    values: Learnable
    momentum: Any
    average: jax.Array | None = None


def initial_state(options, values: Learnable) -> SynState:
    """The state before the first iteration.

    Args:
        options: `config.distill`.
        values: to start from.
    """
    momentum = outer_optimiser(options).init(values)
    return SynState(values, momentum, values.images if options.average else None)


def outer_optimiser(options) -> optax.GradientTransformation:
    """SGD with momentum on images, labels and alpha, each at its own rate."""
    names: Any = Learnable._fields
    return optax.partition(
        {
            "images": optax.sgd(options.lr_img, options.momentum_img or None),
            "labels": optax.sgd(options.lr_y, options.momentum_y or None)
            if family.LABELS[options.labels].learned
            else optax.set_to_zero(),
            "alpha": ALPHA_STEPS[options.alpha_step](options.lr_lr, options.momentum_lr or None),
        },
        Learnable(*names),
    )


def log_sgd(rate: float, momentum: float | None = None) -> optax.GradientTransformation:
    """SGD on the logarithm of positive parameters: they stay positive, the rate has no unit.

    A step multiplies or divides by at most `_LARGEST_FACTOR`.

    Args:
        rate: of the logarithm.
        momentum: as in `optax.sgd`.
    """
    plain = optax.sgd(rate, momentum)
    most = math.log(_LARGEST_FACTOR)

    def update(gradients, state, params):
        to_logs = jax.tree.map(jnp.multiply, gradients, params)
        steps, state = plain.update(to_logs, state)
        factors = jax.tree.map(lambda step: jnp.expm1(jnp.clip(step, -most, most)), steps)
        return jax.tree.map(jnp.multiply, params, factors), state

    return optax.GradientTransformation(plain.init, update)


# `distill.alpha_step`.
ALPHA_STEPS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "plain": optax.sgd,
    "log": log_sgd,
}


def outer_step(
    optimiser: optax.GradientTransformation,
    state: SynState,
    loss: jax.Array,
    gradients: Learnable,
    weight: jax.Array,
    threshold: float,
    *,
    decay: float = 0.0,
) -> tuple[SynState, jax.Array]:
    """Moves the set by its gradients, unless the matching loss is over the gate.

    Args:
        optimiser: of `Learnable`.
        state: the set and its momentum.
        loss: the matching loss.
        gradients: of the loss.
        weight: `[n, H, W, 1]`, multiplies the images' gradient (DAE).
        threshold: the gate; 0 is none. Past it, past `DIVERGED_LOSS`, or where a number of the
            gradients or of what they lead to isn't finite, nothing moves, momentum included.
        decay: of the images' moving average, where the state has one.

    Returns:
        The new state, and whether the iteration was skipped.
    """
    keep = loss <= min(threshold or DIVERGED_LOSS, DIVERGED_LOSS)
    for leaf in gradients:
        keep &= jnp.all(jnp.isfinite(leaf))
    gradients = gradients._replace(images=gradients.images * weight)
    updates, momentum = optimiser.update(gradients, state.momentum, state.values)
    values = optax.apply_updates(state.values, updates)
    average = state.average
    if average is not None:
        average = decay * average + (1 - decay) * values.images
    moved = SynState(values, momentum, average)
    for leaf in jax.tree.leaves(moved):
        keep &= jnp.all(jnp.isfinite(leaf))
    return jax.tree.map(lambda new, old: jnp.where(keep, new, old), moved, state), ~keep


def make_iteration(
    config, network: Network, num_images: int, *, store: str = "nothing"
) -> Callable:
    """The compiled outer iteration.

    Args:
        config: resolved.
        network: the student's.
        num_images: n.
        store: as in `matching.matching_gradient` (see `memory.choose_store`).

    Returns:
        `(state, starts [T, P], targets [T, P], weight [n, H, W, 1], key) -> (state, report)` for
        T trajectories; the report holds `loss`, `skipped` and the gradients' norms.
    """
    options = config.distill
    optimiser = outer_optimiser(options)
    select = family.LOSS_MASKS[options.loss_mask](options)
    labels_of_target = family.LABELS[options.labels].of_target

    batch = min(options.batch_syn, num_images)
    shares = parallel.data_shares(config, network, batch)
    mesh = parallel.matching_mesh(config.parallel.trajectory, shares)
    axis = parallel.DATA if shares > 1 else None
    check_batches(config, network, num_images)
    cuts = microbatch.count_parts(network, -(-batch // shares))
    in_shares = axis is not None or cuts > 1

    def mean_loss(theta, images, labels, mask):
        logits = network.apply(theta, images, train=True)
        return losses.soft_cross_entropy(logits, labels, mask)

    def share_of_loss(theta, images, labels, weights):
        return microbatch.share_of_mean(
            lambda mask: mean_loss(theta, images, labels, mask), weights
        )

    student_loss = share_of_loss if in_shares else mean_loss

    def transform(key, images):
        draws = dsa.draw_dsa(key, batch, strategy=config.augment.strategy, dtype=images.dtype)
        if axis is not None:
            uniforms = parallel.share_of_columns(draws.uniforms.T, axis, shares)
            draws = draws._replace(uniforms=uniforms.T)
        return dsa.apply_dsa(
            draws,
            images,
            strategy=config.augment.strategy,
            crop_ratio=config.augment.crop_ratio,
        )

    def draw_batches(key, dtype):
        batches = student_batches(key, num_images, options.batch_syn, options.syn_steps)
        if not in_shares:
            return batches
        weights = microbatch.weights_of(batches.mask, batches.indices.shape[1], dtype)
        weights = jnp.broadcast_to(weights, batches.indices.shape)
        if axis is None:
            return batches._replace(mask=weights)
        share = functools.partial(parallel.share_of_columns, axis=axis, size=shares)
        return batches._replace(indices=share(batches.indices), mask=share(weights))

    def one(values, start, target, key):
        if labels_of_target:
            labels = snapshot_labels(network, target, values.images)
            values = values._replace(labels=labels)
        matched = matching_gradient(
            student_loss,
            transform,
            start,
            target,
            values.images,
            values.labels,
            values.alpha,
            draw_batches(key, values.images.dtype),
            select=select,
            through_steps=family.THROUGH_STEPS[options.gradient],
            axis=axis,
            parts=cuts,
            store=store,
        )
        gradients = Learnable(matched.images, matched.labels, matched.alpha)
        return matched.loss, gradients, values.labels

    def match(values, starts, targets, keys):
        """The mean over trajectories of loss, gradients and labels."""
        results = lax.map(lambda t: one(values, *t), (starts, targets, keys))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), results)

    if mesh is not None:
        along = P(parallel.TRAJECTORY)
        match = jax.shard_map(
            functools.partial(_mean_over_trajectories, match),
            mesh=mesh,
            in_specs=(P(), along, along, along),
            out_specs=P(),
            check_vma=False,
        )

    @jax.jit
    def iteration(state, starts, targets, weight, key):
        keys = jax.random.split(key, len(starts))
        loss, gradients, labels = match(state.values, starts, targets, keys)
        state, skipped = outer_step(
            optimiser, state, loss, gradients, weight, options.threshold, decay=options.average
        )
        if labels_of_target:
            labels = jnp.where(skipped, state.values.labels, labels)
            state = state._replace(values=state.values._replace(labels=labels))
        report = {
            "loss": loss,
            "skipped": skipped,
            "alpha": state.values.alpha,
            "gradient_images": optax.tree.norm(gradients.images),
            "gradient_labels": optax.tree.norm(gradients.labels),
            "gradient_alpha": jnp.abs(gradients.alpha),
        }
        return state, report

    return iteration


def _mean_over_trajectories(match: Callable, *arguments):
    return lax.pmean(match(*arguments), parallel.TRAJECTORY)


def check_batches(config, network: Network, num_images: int) -> None:
    """Refuses a student's batches that its network can't have.

    Raises:
        UserError: they would have to be padded or split, and batch norm looks at all of one.
    """
    batch = min(config.distill.batch_syn, num_images)
    split = parallel.data_shares(config, network, batch) > 1
    if network.has_batch_stats and (num_images % batch or split):
        raise UserError(
            f"{network.name} has batch norm, so its student's batches can't be padded or split: "
            f"take a distill.batch_syn that divides the {num_images} synthetic images (now "
            f"{config.distill.batch_syn}) and parallel.data=1"
        )


