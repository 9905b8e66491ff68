"""Trajectory matching: the student's unroll, the matching loss, its gradient in constant memory.

A student starts at an expert's snapshot and takes N steps of SGD on the synthetic images; the loss
says how far it ends from where the expert went. The gradient of that loss with respect to the
images, the labels and the student's rate runs backwards over the steps. Since the steps are SGD,
the backward sweep needs only the parameters before each step and one vector
`v = d loss / d theta_{i+1}`: with `h(theta, x, y) = d/d eps L(theta + eps v; x, y)`, a forward-mode
derivative, reverse-mode gradients of `h` give all that a step contributes. No step's activations
outlive it, unless `remat` asks for that: then it is reverse mode through the steps, with less to
compute again and more to keep.

References:
  Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (2203.11932).
  Wang et al., "Emphasizing Discriminative Features for Dataset Distillation in Complex Scenarios"
    (2410.17193): Common Pattern Dropout.
  Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation" (2505.00793).
  Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory" (2211.10586).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from edf_jax.methods.cpd import Selection
from edf_jax.runtime.shapes import Images, Key, Logits, Scalar, Theta
from edf_jax.training import microbatch

# (theta [P], images [b, H, W, C], label logits [b, C], mask [b] or None) -> scalar
StudentLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]
# (a step's keys, images [b, H, W, C]) -> images [b, H, W, C]
Augment = Callable[[Any, jax.Array], jax.Array]

_PRODUCTS = frozenset(("edf_convolve", "conv_general_dilated", "dot_general"))
# What the backward sweep finds stored of a student's step: `nothing` computes it again from the
# parameters, `products` keeps the results of convolutions and matrix products.
REMAT: dict[str, Callable | None] = {
    "nothing": None,
    "products": lambda primitive, *_, **__: primitive.name in _PRODUCTS,
    "everything": jax.checkpoint_policies.everything_saveable,
}


class StudentBatches(NamedTuple):
    """What the student sees in its N steps.

    Attributes:
        indices: `[N, b]` int32, positions among the synthetic images.
        mask: `[N, b]`, 1 where a position counts and 0 where it fills up a smaller batch; None
            where all batches are full.
        keys: `[N]` PRNG keys for the augmentation, or a tree of them.
    """

    indices: jax.Array
    mask: jax.Array | None
    keys: Any


class Matching(NamedTuple):
    """The result of one trajectory's matching.

    Attributes:
        loss: the matching loss, a scalar.
        images: gradient `[n, H, W, C]` of the loss with respect to the synthetic images.
        labels: gradient `[n, C]` with respect to the label logits.
        alpha: gradient with respect to the student's rate, a scalar.
        theta: `[P]`, the student's final parameters.
    """

    loss: jax.Array
    images: jax.Array
    labels: jax.Array
    alpha: jax.Array
    theta: jax.Array


def student_batches(key: Key, num_images: int, batch: int, steps: int) -> StudentBatches:
    """Draws the batches of the student's steps.

    The images are shuffled and cut into chunks of `batch`, used up last chunk first, then shuffled
    again; so the remainder, where there is one, comes first.

    Args:
        key: PRNG key.
        num_images: n.
        batch: the chunks' size; more than n means n.
        steps: N.
    """
    order_key, augment_key = jax.random.split(key)
    batch = min(batch, num_images)
    chunks = -(-num_images // batch)
    passes = -(-steps // chunks)
    filling = chunks * batch - num_images
    positions = jax.vmap(lambda k: jax.random.permutation(k, num_images))(
        jax.random.split(order_key, passes)
    )
    counts = jnp.ones((passes, num_images))

    def cut(rows):
        rows = jnp.pad(rows, ((0, 0), (0, filling)))
        return rows.reshape(passes, chunks, batch)[:, ::-1].reshape(-1, batch)[:steps]

    return StudentBatches(
        cut(positions).astype(jnp.int32),
        cut(counts) if filling else None,
        jax.random.split(augment_key, steps),
    )


def matching_loss(
    theta: Theta, start: Theta, target: Theta, select: Selection | None = None
) -> Scalar:
    """`sum (theta - target)^2 / sum (start - target)^2`, both over the selected parameters.

    Args:
        theta: `[P]`, the student's final parameters.
        start: `[P]`, the expert's snapshot where it started.
        target: `[P]`, the expert's snapshot to reach.
        select: which parameters count; all where None.
    """
    distances = (theta - target) ** 2
    travelled = (start - target) ** 2
    if select is not None:
        kept = lax.stop_gradient(select(distances))
        of_distances, of_travelled = kept if isinstance(kept, tuple) else (kept, kept)
        distances = jnp.where(of_distances, distances, 0)
        travelled = jnp.where(of_travelled, travelled, 0)
    return jnp.sum(distances) / jnp.sum(travelled)


def unroll(
    loss: StudentLoss,
    augment: Augment,
    start: Theta,
    images: Images,
    labels: Logits,
    alpha: Scalar | float,
    batches: StudentBatches,
    *,
    axis: str | None = None,
    microbatches: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """The student's N steps of SGD.

    Args:
        loss: the student's loss on one batch.
        augment: applied to each batch with its own key.
        start: `[P]`.
        images: `[n, H, W, C]`, normalised.
        labels: `[n, C]` logits.
        alpha: the rate, a scalar.
        batches: see `student_batches`.
        axis: as in `matching_gradient`.
        microbatches: as in `matching_gradient`.

    Returns:
        The final parameters `[P]`, and those before each step `[N, P]`.
    """

    def step(theta, batch):
        return _sgd(loss, augment, theta, images, labels, alpha, batch, axis, microbatches), theta

    return lax.scan(step, start, batches)


def _sgd(loss, augment, theta, images, labels, alpha, batch, axis, microbatches) -> jax.Array:
    """One step of the student."""
    seen = augment(batch.keys, images[batch.indices])

    def gradient_of(_, examples):
        return jax.grad(loss)(theta, *examples), ()

    examples = (seen, labels[batch.indices], batch.mask)
    gradient, _ = microbatch.summed(gradient_of, examples, microbatches)
    return theta - alpha * _over_shares(gradient, axis)


def matching_gradient(
    loss: StudentLoss,
    augment: Augment,
    start: Theta,
    target: Theta,
    images: Images,
    labels: Logits,
    alpha: Scalar | float,
    batches: StudentBatches,
    *,
    select: Selection | None = None,
    through_steps: bool = True,
    axis: str | None = None,
    microbatches: int = 1,
    remat: str = "nothing",
) -> Matching:
    """The matching loss and its gradients; keeps a step's activations and N parameter vectors.

    Args:
        loss: the student's loss on one batch.
        augment: applied to each batch with its own key.
        start: `[P]`, the snapshot to start from.
        target: `[P]`, the snapshot to reach.
        images: `[n, H, W, C]`, normalised.
        labels: `[n, C]` logits.
        alpha: the student's rate, a scalar.
        batches: see `student_batches`.
        select: which parameters count in the loss (`common_pattern_dropout`, `deep_layers`).
        through_steps: False holds each step's parameters constant (TESLA's gradient).
        axis: the mesh axis over whose devices each batch is split, under `jax.shard_map`.
            `batches` and `augment` are then of this device's share, and `loss` is its part of a
            sum over devices.
        microbatches: in how many a batch is computed (`microbatch`); `loss` is then one of a sum.
        remat: what a step that is computed again finds saved, of `REMAT`; other than nothing for
            one device alone (`axis` None).

    Raises:
        ValueError: an argument is of another kind, or `remat` is unknown or goes with `axis`.
    """
    arrays = _checked(axis, remat, start=start, target=target, images=images, labels=labels,
                      alpha=alpha)  # fmt: skip
    start, target, images, labels, alpha = arrays
    if remat != "nothing":
        return _through_stored_steps(
            loss, augment, start, target, images, labels, alpha, batches, select, through_steps,
            microbatches, REMAT[remat],
        )  # fmt: skip
    theta, before = unroll(
        loss, augment, start, images, labels, alpha, batches, axis=axis, microbatches=microbatches
    )
    value, sensitivity = jax.value_and_grad(matching_loss)(theta, start, target, select)

    def step_back(carry, inputs):
        v, totals = carry
        theta, batch = inputs
        # One slice of all steps' parameters, not one in each operation that reads them.
        theta = lax.optimization_barrier(theta)
        seen, augment_vjp = jax.vjp(lambda x: augment(batch.keys, x), images[batch.indices])

        (along, to_theta), (to_seen, to_labels) = microbatch.summed(
            _slopes(loss, theta, v), (seen, labels[batch.indices], batch.mask), microbatches
        )
        (to_images,) = augment_vjp(to_seen)
        to_theta, along = _over_shares((to_theta, along), axis)
        totals = (
            totals[0].at[batch.indices].add(-alpha * to_images),
            totals[1].at[batch.indices].add(-alpha * to_labels),
            totals[2] - along,
        )
        return (v - alpha * to_theta if through_steps else v, totals), None

    zeros = (jnp.zeros_like(images), jnp.zeros_like(labels), jnp.zeros_like(alpha))
    (_, totals), _ = lax.scan(step_back, (sensitivity, zeros), (before, batches), reverse=True)
    # The images' and labels' gradients only now: nothing in the sweep needs them.
    to_images, to_labels = _over_shares(totals[:2], axis)
    return Matching(value, to_images, to_labels, totals[2], theta)


def _slopes(loss: StudentLoss, theta: Theta, v: Theta) -> Callable:
    """`(_, examples) -> (h, d h / d theta), (d h / d images, d h / d labels)`.

    `h = d/d eps loss(theta + eps v; images, labels)` on the examples of a microbatch.
    """

    def of_examples(_, examples):
        images, labels, mask = examples

        def slope(theta, images, labels):
            return jax.jvp(lambda t: loss(t, images, labels, mask), (theta,), (v,))[1]

        along, (to_theta, *to_examples) = jax.value_and_grad(slope, (0, 1, 2))(
            theta, images, labels
        )
        return (along, to_theta), to_examples

    return of_examples


def _checked(axis: str | None, remat: str, **arguments) -> list[jax.Array]:
    """The arguments of `matching_gradient` as arrays, or what is wrong with them."""
    if remat not in REMAT or (remat != "nothing" and axis is not None):
        raise ValueError(
            f"matching_gradient: remat={remat!r}: one of {', '.join(REMAT)}, the latter two "
            "without axis"
        )
    ndims = {"images": 4, "labels": 2, "alpha": 0}
    return [_floats(name, value, ndims.get(name, 1)) for name, value in arguments.items()]


def _floats(name: str, value, ndim: int) -> jax.Array:
    """An argument of `matching_gradient` as an array, or what is wrong with it."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"matching_gradient: {name} has to be an array, not a {type(value).__name__} "
            "(jax.flatten_util.ravel_pytree makes one vector of parameters)"
        ) from None
    if array.ndim != ndim or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"matching_gradient: {name} has to be of floats and {ndim}-dimensional, not "
            f"{array.dtype}{list(array.shape)}"
        )
    return array


def _through_stored_steps(
    loss, augment, start, target, images, labels, alpha, batches, select, through_steps,
    microbatches, policy,
) -> Matching:  # fmt: skip
    """`matching_gradient` by reverse mode; `policy` says what of the steps is kept for it."""

    def matched(images, labels, alpha):
        def step(theta, batch):
            held = theta if through_steps else lax.stop_gradient(theta)
            moved = _sgd(loss, augment, held, images, labels, alpha, batch, None, microbatches)
            return moved if through_steps else theta + (moved - held), None

        step = jax.checkpoint(step, policy=policy, prevent_cse=False)
        theta, _ = lax.scan(step, start, batches)
        return matching_loss(theta, start, target, select), theta

    (value, theta), gradients = jax.value_and_grad(matched, (0, 1, 2), has_aux=True)(
        images, labels, alpha
    )
    to_images, to_labels, to_alpha = gradients
    return Matching(value, to_images, to_labels, to_alpha, theta)


def _over_shares(tree, axis: str | None):
    """The sum over the devices that hold shares of a batch."""
    return tree if axis is None else lax.psum(tree, axis)
