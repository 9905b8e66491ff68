"""The outer loop: synthetic images and labels that make students follow the experts.

One loop serves the whole trajectory-matching family; where methods differ, a small function is
chosen by a name in the config.

References:
  Wang et al., EDF (2410.17193); Guo et al., DATM (2310.05773).
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from edf_jax import augment, gradcam, losses, matching, randomness, storage
from edf_jax.metrics import MetricsWriter
from edf_jax.models import Network
from edf_jax.progress import Progress
from edf_jax.synthetic import DistilledSet
from edf_jax.trajectories import Pair, TrajectoryStore

_WINDOW = 100
_KEPT_CHECKPOINTS = 2


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
    """

    values: Learnable
    momentum: Any


def start_epoch_bound(iteration: int, first: int, last: int, expansion_end: int) -> int:
    """The bound that start epochs stay below, growing from `first` to `last` (DATM).

    Args:
        iteration: the outer iteration.
        first: the bound at iteration 0.
        last: the bound from `expansion_end` on.
        expansion_end: an iteration.
    """
    return min(first + int((last - first) * iteration / expansion_end), last)


def choices(config, iteration: int) -> list[tuple[int, int]]:
    """The `(expert, start epoch)` of each trajectory that an iteration matches.

    Experts come in shuffled order without replacement, start epochs uniformly from those allowed.
    All of it follows from the seed and the iteration, so a resumed run chooses the same.
    """
    options = config.distill
    upper = options.max_start_epoch
    if options.start_schedule == "sequential":
        upper = start_epoch_bound(
            iteration,
            options.current_max_start_epoch,
            options.max_start_epoch,
            options.expansion_end,
        )
    chosen = []
    for draw in range(iteration * options.trajectories, (iteration + 1) * options.trajectories):
        turn, place = divmod(draw, config.experts.num)
        order = randomness.host_stream(config.seed, "expert order", turn)
        expert = int(order.permutation(config.experts.num)[place])
        start = randomness.host_stream(config.seed, "start epoch", draw)
        chosen.append((expert, int(start.integers(options.min_start_epoch, upper))))
    return chosen


def outer_optimiser(options) -> optax.GradientTransformation:
    """SGD with momentum on images, labels and alpha, each at its own rate."""
    learned = options.labels == "soft_learned"
    return optax.partition(
        {
            "images": optax.sgd(options.lr_img, options.momentum_img or None),
            "labels": optax.sgd(options.lr_y, options.momentum_y or None)
            if learned
            else optax.set_to_zero(),
            "alpha": optax.sgd(options.lr_lr, options.momentum_lr or None),
        },
        Learnable("images", "labels", "alpha"),
    )


def outer_step(
    optimiser: optax.GradientTransformation,
    state: SynState,
    loss: jax.Array,
    gradients: Learnable,
    weight: jax.Array,
    threshold: float,
) -> tuple[SynState, jax.Array]:
    """Moves the set by its gradients, unless the matching loss is over the gate.

    Args:
        optimiser: of `Learnable`.
        state: the set and its momentum.
        loss: the matching loss.
        gradients: of the loss.
        weight: `[n, H, W, 1]`, multiplies the images' gradient (DAE).
        threshold: the gate; 0 is none. Past it, or where a number isn't finite, nothing moves,
            momentum included.

    Returns:
        The new state, and whether the iteration was skipped.
    """
    finite = jnp.isfinite(loss)
    for leaf in gradients:
        finite &= jnp.all(jnp.isfinite(leaf))
    keep = finite & ((loss <= threshold) if threshold else True)
    gradients = gradients._replace(images=gradients.images * weight)
    updates, momentum = optimiser.update(gradients, state.momentum, state.values)
    moved = SynState(optax.apply_updates(state.values, updates), momentum)
    return jax.tree.map(lambda new, old: jnp.where(keep, new, old), moved, state), ~keep


def _selection(options) -> matching.Selection | None:
    if options.loss_mask == "cpd":
        return matching.common_pattern_dropout(options.drop)
    if options.loss_mask == "deep_layers":
        return matching.deep_layers(options.depth_ratio)
    return None


def make_iteration(config, network: Network, num_images: int) -> Callable:
    """The compiled outer iteration.

    Returns:
        `(state, starts [T, P], targets [T, P], weight [n, H, W, 1], key) -> (state, report)` for
        T trajectories; the report holds `loss`, `skipped` and the gradients' norms.
    """
    options = config.distill
    optimiser = outer_optimiser(options)
    select = _selection(options)

    def student_loss(theta, images, labels, mask):
        return losses.soft_cross_entropy(network.apply(theta, images, train=True), labels, mask)

    def transform(key, images):
        return augment.dsa(
            key,
            images,
            strategy=config.augment.strategy,
            crop_ratio=config.augment.crop_ratio,
        )

    def one(values, start, target, key):
        return matching.matching_gradient(
            student_loss,
            transform,
            start,
            target,
            *values,
            matching.student_batches(key, num_images, options.batch_syn, options.syn_steps),
            select=select,
            through_steps=options.gradient == "exact",
        )

    @jax.jit
    def iteration(state, starts, targets, weight, key):
        keys = jax.random.split(key, len(starts))
        results = lax.map(lambda t: one(state.values, *t)._replace(theta=None), (starts, targets, keys))
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), results)
        gradients = Learnable(mean.images, mean.labels, mean.alpha)
        state, skipped = outer_step(
            optimiser, state, mean.loss, gradients, weight, options.threshold
        )
        report = {
            "loss": mean.loss,
            "skipped": skipped,
            "alpha": state.values.alpha,
            "gradient_images": optax.tree.norm(gradients.images),
            "gradient_labels": optax.tree.norm(gradients.labels),
            "gradient_alpha": jnp.abs(gradients.alpha),
        }
        return state, report

    return iteration


@dataclasses.dataclass(frozen=True)
class CamNetwork:
    """The network that class activation maps are taken from.

    Attributes:
        network: the architecture.
        theta: `[P]`.
        batch_stats: {} where it has none.
        class_indices: `[C]`, its class for each of ours.
        name: which one it is, for people.
    """

    network: Network
    theta: jax.Array
    batch_stats: Any
    class_indices: jax.Array
    name: str


def make_weight(config, cam: CamNetwork) -> Callable:
    """The compiled function `(values, key) -> (maps [n, H, W], DAE weight [n, H, W, 1])`."""

    @jax.jit
    def weight(values: Learnable, key):
        maps = gradcam.class_activation_maps(
            config.cam.method,
            lambda x: cam.network.features(cam.theta, x, cam.batch_stats),
            lambda f: cam.network.classify(cam.theta, f, cam.batch_stats),
            values.images,
            cam.class_indices[jnp.argmax(values.labels, axis=-1)],
            key=key,
        )
        return maps, gradcam.dae_weight(maps, config.cam.beta, config.cam.threshold)

    return weight


@dataclasses.dataclass
class _Position:
    """Where the loop is: all that a checkpoint holds beside arrays."""

    iteration: int = 0
    skipped: int = 0
    recent_losses: collections.deque = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=_WINDOW)
    )
    recent_skips: collections.deque = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=_WINDOW)
    )
    best: float = -math.inf
    best_iteration: int = -1

    def to_details(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, collections.deque) else v for k, v in fields.items()}

    @classmethod
    def from_details(cls, details: dict[str, Any]) -> _Position:
        fields = dict(details)
        for name in ("recent_losses", "recent_skips"):
            fields[name] = collections.deque(fields[name], maxlen=_WINDOW)
        return cls(**fields)


def distill(
    config,
    network: Network,
    initial: DistilledSet,
    store: TrajectoryStore,
    cam: CamNetwork | None,
    evaluate: Callable[[DistilledSet, int], Any],
    metrics: MetricsWriter,
    workdir: pathlib.Path,
) -> DistilledSet:
    """Runs or continues a distillation.

    Args:
        config: resolved.
        network: the student's architecture, which is the experts'.
        initial: the set to start from; used on the first sitting only.
        store: the experts.
        cam: whose activation maps weigh pixel gradients; None where none do.
        evaluate: `(set, iteration) -> Accuracies`, called at iteration 0, every `eval_every` and
            at the last.
        metrics: gets a row per iteration and per evaluation.
        workdir: `checkpoints/` and `distilled/` are written here.

    Returns:
        The set after the last update.
    """
    options = config.distill
    num_images = len(initial.images)
    iterate = make_iteration(config, network, num_images)
    weigh = make_weight(config, cam) if cam is not None else None
    key = randomness.stream(config.seed, "distill")
    checkpoints = _Checkpoints(workdir / "checkpoints")
    state, weight, position = _begin(config, initial, checkpoints)
    metrics.truncate_after("distill", position.iteration - 1)
    metrics.truncate_after("evaluate", position.iteration - 1)
    pairs = _pairs(config, store, position.iteration)
    pending: list[tuple[int, list[Pair], dict[str, jax.Array]]] = []

    def current(step: int) -> DistilledSet:
        return dataclasses.replace(
            initial,
            images=np.asarray(state.values.images),
            labels=np.asarray(state.values.labels),
            alpha=float(state.values.alpha),
            step=step,
        )

    def settle() -> None:
        """Writes the rows of iterations whose results have arrived."""
        for it, used, report in pending:
            _record(config, metrics, position, it, used, report)
        pending.clear()

    with Progress(
        "distill", options.iterations, "iteration", start=position.iteration
    ) as bar:
        began = time.monotonic()
        for it in range(position.iteration, options.iterations + 1):
            last = it == options.iterations
            if it % options.eval_every == 0 or last:
                settle()
                _evaluate(current(it), it, evaluate, metrics, position, workdir)
            if last:
                break
            if weigh is not None and it % config.cam.every == 0:
                _, weight = weigh(state.values, jax.random.fold_in(key, 2 * it))
            used = [next(pairs) for _ in range(options.trajectories)]
            state, report = iterate(
                state,
                np.stack([pair.start for pair in used]),
                np.stack([pair.target for pair in used]),
                weight,
                jax.random.fold_in(key, 2 * it + 1),
            )
            pending.append((it, used, report))
            if it == position.iteration:
                loss = float(report["loss"])
                logging.info("first iteration after %.1f s", time.monotonic() - began)
            if len(pending) > 1:
                # One iteration behind the device, so that it never waits for the host.
                row = pending.pop(0)
                loss = _record(config, metrics, position, *row)
            bar.update(loss=loss, skipped=position.skipped)
            if (it + 1) % options.save_every == 0 or it + 1 == options.iterations:
                settle()
                position.iteration = it + 1
                checkpoints.save(state, weight, position)
    final = current(options.iterations)
    final.save(workdir / "distilled" / "last.safetensors")
    return final


def _begin(config, initial: DistilledSet, checkpoints: _Checkpoints):
    values = Learnable(
        jnp.asarray(initial.images, jnp.float32),
        jnp.asarray(initial.labels, jnp.float32),
        jnp.asarray(initial.alpha, jnp.float32),
    )
    state = SynState(values, outer_optimiser(config.distill).init(values))
    weight = jnp.ones((*initial.images.shape[:3], 1), jnp.float32)
    return checkpoints.restore(state, weight) or (state, weight, _Position())


def _pairs(config, store: TrajectoryStore, first: int) -> Iterator[Pair]:
    wanted = (
        choice
        for iteration in range(first, config.distill.iterations)
        for choice in choices(config, iteration)
    )
    return store.pairs(wanted, config.distill.expert_epochs)


def _record(config, metrics, position: _Position, it: int, used: list[Pair], report) -> float:
    """Writes one iteration's row, keeps count, and warns where the run looks wrong."""
    row = {name: value.item() for name, value in jax.device_get(report).items()}
    metrics.write(
        it,
        "distill",
        **row,
        expert=used[0].expert,
        start_epoch=used[0].start_epoch,
    )
    position.recent_losses.append(row["loss"])
    position.recent_skips.append(row["skipped"])
    position.skipped += row["skipped"]
    if not math.isfinite(row["loss"]):
        logging.warning(
            "iteration %d: the matching loss is %s (expert %d, start epoch %d); nothing moved",
            it, row["loss"], used[0].expert, used[0].start_epoch,
        )
    if (it + 1) % _WINDOW == 0 and sum(position.recent_skips) > _WINDOW / 2:
        logging.warning(
            "iteration %d: %d of the last %d iterations were skipped; median loss %.3f, "
            "distill.threshold %.3f",
            it, sum(position.recent_skips), len(position.recent_skips),
            float(np.nanmedian(position.recent_losses)), config.distill.threshold,
        )
    if not row["alpha"] > 0:
        logging.warning(
            "iteration %d: the student's rate alpha is %.3g, not positive; lower distill.lr_lr",
            it, row["alpha"],
        )
    return row["loss"]


def _evaluate(now: DistilledSet, it: int, evaluate, metrics, position: _Position, workdir) -> None:
    now.save(workdir / "distilled" / f"step_{it}.safetensors")
    result = evaluate(now, it)
    metrics.write(
        it,
        "evaluate",
        accuracy_mean=result.mean,
        accuracy_std=result.std,
        num_networks=len(result.values),
        num_images=result.num_images,
    )
    if result.mean > position.best:
        position.best, position.best_iteration = result.mean, it
        now.save(workdir / "distilled" / "best_on_test.safetensors")


class _Checkpoints:
    """The resumable state on disk, the last few of it."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def _paths(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("iteration_*"))

    def save(self, state: SynState, weight: jax.Array, position: _Position) -> None:
        leaves = jax.tree.leaves((state, weight))
        arrays = {f"leaf_{i:02d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        path = self._folder / f"iteration_{position.iteration:06d}"
        storage.save_arrays(path, arrays, position.to_details())
        for old in self._paths()[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def restore(self, state: SynState, weight: jax.Array):
        """The newest state that can be read, or None; damaged ones are removed with a warning."""
        for path in reversed(self._paths()):
            try:
                arrays = storage.load_arrays(path)
                details = storage.load_details(path)
            except storage.DamagedFile as error:
                logging.warning("%s: going back to the checkpoint before", error)
                shutil.rmtree(path)
                continue
            leaves = [jnp.asarray(arrays[name]) for name in sorted(arrays)]
            treedef = jax.tree.structure((state, weight))
            return (*jax.tree.unflatten(treedef, leaves), _Position.from_details(details))
        return None
