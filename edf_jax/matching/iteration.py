"""One outer iteration, compiled: match trajectories, and move the set by the gradients.

References:
  Wang et al., EDF (2410.17193); Guo et al., DATM (2310.05773).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from edf_jax.matching import gradient
from edf_jax.matching.placement import Placement, check_batches, place
from edf_jax.methods import dsa, family
from edf_jax.methods.soft_labels import snapshot_labels
from edf_jax.models import Network
from edf_jax.training import losses, microbatch, parallel

# The student ends over thirty times as far from the target as it started.
DIVERGED_LOSS = 1000.0
# What an iteration multiplies alpha by at most, where its logarithm is learned.
_LARGEST_FACTOR = 1.1


class Learnable(NamedTuple):
    """What distillation moves.

    Attributes:
        images: `[m, H, W, C]`, normalised; in the state of a distillation as they are stored
            (`methods.parametrisation`), where a student learns from them decoded.
        labels: `[n, C]` logits, of every decoded image.
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
        average: the moving average of the images as they are stored, `[m, H, W, C]`; None where
            none is kept.
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
    clip: float = 0.0,
    decay: float = 0.0,
    to_parameters: Callable[[jax.Array], jax.Array] = lambda gradient: gradient,
) -> tuple[SynState, jax.Array]:
    """Moves the set by its gradients, unless the matching loss is over the gate.

    Args:
        optimiser: of `Learnable`.
        state: the set and its momentum.
        loss: the matching loss.
        gradients: of the loss, with respect to the decoded images, labels and alpha.
        weight: `[n, H, W, 1]`, multiplies the images' gradient (DAE).
        threshold: the gate; 0 is none. Past it, past `DIVERGED_LOSS`, or where a number of the
            gradients or of what they lead to isn't finite, nothing moves, momentum included.
        clip: where the images' gradient is longer, all gradients are shortened by what makes it as
            long; 0 is no limit. Now and then a student's path is chaotic, and its gradient a
            hundred times as long as any other.
        decay: of the images' moving average, where the state has one.
        to_parameters: gradient of the decoded images -> that of what is stored of them.

    Returns:
        The new state, and whether the iteration was skipped.
    """
    keep = loss <= min(threshold or DIVERGED_LOSS, DIVERGED_LOSS)
    for leaf in gradients:
        keep &= jnp.all(jnp.isfinite(leaf))
    if clip:
        # Not by the global norm, of which alpha's part says nothing about the images.
        share = jnp.minimum(1, clip / optax.tree.norm(gradients.images))
        gradients = optax.tree.scale(share, gradients)
    gradients = gradients._replace(images=to_parameters(gradients.images * weight))
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
    config, network: Network, num_images: int, placement: Placement | None = None
) -> Callable:
    """The compiled outer iteration.

    Args:
        config: resolved.
        network: the student's.
        num_images: n, decoded.
        placement: where its work is placed; None leaves it to `place`.

    Returns:
        `(state, starts [T, P], targets [T, P], weight [n, H, W, 1], key) -> (state, report)` for
        T trajectories; the report holds `loss`, `skipped` and the gradients' norms.

    Raises:
        UserError: the network can't have such batches.
    """
    options = config.distill
    placement = placement or place(config, network, num_images)
    check_batches(placement, network, num_images)
    optimiser = outer_optimiser(options)
    decode = family.parametrisation(options).decode
    student = Student(config, network, num_images, placement)
    match = _over_trajectories(student.match, placement)

    @jax.jit
    def iteration(state, starts, targets, weight, key):
        keys = jax.random.split(key, len(starts))
        ops = student.op_keys(keys[0])
        images, pull_back = jax.vjp(decode, state.values.images)
        seen = state.values._replace(images=images)
        loss, gradients, labels = match(seen, ops, starts, targets, keys)
        state, skipped = outer_step(
            optimiser, state, loss, gradients, weight, options.threshold, clip=options.clip,
            decay=options.average, to_parameters=lambda gradient: pull_back(gradient)[0],
        )  # fmt: skip
        if family.LABELS[options.labels].of_target:
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


@dataclasses.dataclass(frozen=True)
class Student:
    """How a config's student learns from the synthetic images, and is matched.

    Attributes:
        config: resolved.
        network: its architecture.
        num_images: n, synthetic.
        placement: where its work is placed.
    """

    config: Any
    network: Network
    num_images: int
    placement: Placement

    def match(
        self, values: Learnable, ops: jax.Array, start: jax.Array, target: jax.Array, key: jax.Array
    ):
        """The matching loss of one trajectory, its gradients, and the labels it was made with."""
        options = self.config.distill
        if family.LABELS[options.labels].of_target:
            values = values._replace(labels=snapshot_labels(self.network, target, values.images))
        matched = gradient.matching_gradient(
            self.loss,
            self.augment,
            start,
            target,
            values.images,
            values.labels,
            values.alpha,
            self.batches(key, values.images.dtype, ops),
            select=family.LOSS_MASKS[options.loss_mask](options),
            through_steps=family.THROUGH_STEPS[options.gradient],
            axis=self.placement.axis,
            microbatches=self.placement.microbatches,
            remat=self.placement.remat,
        )
        gradients = Learnable(matched.images, matched.labels, matched.alpha)
        return matched.loss, gradients, values.labels

    def loss(self, theta, images, labels, weights) -> jax.Array:
        """The mean over a batch, or where batches are cut a part's share of it."""

        def mean(mask):
            logits = self.network.apply(theta, images, train=True)
            return losses.soft_cross_entropy(logits, labels, mask)

        if self.placement.cuts_batches:
            return microbatch.share_of_mean(mean, weights)
        return mean(weights)

    def augment(self, keys: tuple[jax.Array, jax.Array], images: jax.Array) -> jax.Array:
        """DSA of a batch, or of this device's share of one whose draws are the whole batch's.

        Args:
            keys: of the op, and of what it draws for each image.
            images: `[b, H, W, C]`.
        """
        options, placement = self.config.augment, self.placement
        op_key, key = keys
        draws = dsa.draw_dsa(
            key, placement.batch, strategy=options.strategy, dtype=images.dtype, op_key=op_key
        )
        if placement.axis is not None:
            columns = parallel.share_of_columns(
                draws.uniforms.T, placement.axis, placement.data
            )
            draws = draws._replace(uniforms=columns.T)
        return dsa.apply_dsa(
            draws, images, strategy=options.strategy, crop_ratio=options.crop_ratio
        )

    def op_keys(self, key: jax.Array) -> jax.Array:
        """`[N]` keys of DSA's op in each step, by the key of the first trajectory.

        All trajectories take the same ops: mapped, a `switch` over several would compute all six.
        """
        return self._draw(key)[1]

    def batches(
        self, key: jax.Array, dtype, ops: jax.Array | None = None
    ) -> gradient.StudentBatches:
        """The student's batches; where they are cut, with each image's weight in the mean.

        Args:
            key: of the trajectory.
            dtype: of the images.
            ops: as `op_keys` gives them; None is those of `key`.
        """
        placement = self.placement
        drawn, own = self._draw(key)
        drawn = drawn._replace(keys=(own if ops is None else ops, drawn.keys))
        if not placement.cuts_batches:
            return drawn
        weights = microbatch.weights_of(drawn.mask, drawn.indices.shape[1], dtype)
        weights = jnp.broadcast_to(weights, drawn.indices.shape)
        if placement.axis is None:
            return drawn._replace(mask=weights)
        share = functools.partial(
            parallel.share_of_columns, axis=placement.axis, size=placement.data
        )
        return drawn._replace(indices=share(drawn.indices), mask=share(weights))

    def _draw(self, key: jax.Array) -> tuple[gradient.StudentBatches, jax.Array]:
        """Batches with the keys of what each image draws, and the keys of the ops."""
        options = self.config.distill
        drawn = gradient.student_batches(key, self.num_images, options.batch_syn, options.syn_steps)
        pairs = jax.vmap(jax.random.split)(drawn.keys)
        return drawn._replace(keys=pairs[:, 1]), pairs[:, 0]


def _over_trajectories(match: Callable, placement: Placement) -> Callable:
    """`(values, ops, starts, targets, keys) ->` the mean over trajectories of `match`'s results."""

    def mean(values, ops, starts, targets, keys):
        mapped = placement.together if placement.together > 1 else None
        results = lax.map(
            lambda t: match(values, ops, *t), (starts, targets, keys), batch_size=mapped
        )
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), results)

    mesh = placement.mesh()
    if mesh is None:
        return mean
    along = P(parallel.TRAJECTORY)
    return jax.shard_map(
        lambda *arguments: lax.pmean(mean(*arguments), parallel.TRAJECTORY),
        mesh=mesh,
        in_specs=(P(), P(), along, along, along),
        out_specs=P(),
        check_vma=False,
    )
