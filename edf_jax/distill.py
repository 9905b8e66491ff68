"""The outer loop: synthetic images and labels that make students follow the experts.

One loop serves the whole trajectory-matching family; where methods differ, a small function is
chosen by a name in the config (`edf_jax.parts`).

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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax import parts, randomness, storage, watching
from edf_jax.iteration import (
    CamNetwork,
    Learnable,
    SynState,
    initial_state,
    make_iteration,
    make_weight,
    outer_optimiser,
    outer_step,
)
from edf_jax.metrics import MetricsWriter
from edf_jax.models import Network
from edf_jax.parts import start_epoch_bound
from edf_jax.progress import Progress
from edf_jax.synthetic import DistilledSet
from edf_jax.trajectories import Pair, TrajectoryStore

__all__ = [
    "CamNetwork",
    "Learnable",
    "SynState",
    "choices",
    "distill",
    "make_iteration",
    "make_weight",
    "outer_optimiser",
    "outer_step",
    "start_bound",
    "start_epoch_bound",
]

_WINDOW = 100
_KEPT_CHECKPOINTS = 2


def start_bound(config, iteration: int) -> int:
    """The bound that an iteration's start epochs stay below."""
    options = config.distill
    return parts.START_BOUNDS[options.start_schedule](options, iteration)


def choices(config, iteration: int) -> list[tuple[int, int]]:
    """The `(expert, start epoch)` of each trajectory that an iteration matches.

    Experts come in shuffled order without replacement, start epochs uniformly from those allowed.
    All of it follows from the seed and the iteration, so a resumed run chooses the same.
    """
    options = config.distill
    upper = start_bound(config, iteration)
    chosen = []
    for draw in range(iteration * options.trajectories, (iteration + 1) * options.trajectories):
        turn, place = divmod(draw, config.experts.num)
        order = randomness.host_stream(config.seed, "expert order", turn)
        expert = int(order.permutation(config.experts.num)[place])
        start = randomness.host_stream(config.seed, "start epoch", draw)
        chosen.append((expert, int(start.integers(options.min_start_epoch, upper))))
    return chosen


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
    alpha_is_positive: bool = True
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
        return _to_set(initial, state.values, step)

    def evaluate_now(it: int) -> None:
        now = current(it)
        now.save(workdir / "distilled" / f"step_{it}.safetensors")
        maps = None
        if weigh is not None:
            maps = np.asarray(weigh(state.values, jax.random.fold_in(key, 2 * it))[0])
        watching.show_set(metrics, it, now, maps)
        averaged = None
        if state.average is not None:
            averaged = dataclasses.replace(now, images=np.asarray(state.average))
            averaged.save(workdir / "distilled" / "average.safetensors")
        if _evaluate(now, averaged, it, evaluate, metrics, position):
            now.save(workdir / "distilled" / "best_on_test.safetensors")

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
                evaluate_now(it)
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


def _to_set(initial: DistilledSet, values: Learnable, step: int) -> DistilledSet:
    return dataclasses.replace(
        initial,
        images=np.asarray(values.images),
        labels=np.asarray(values.labels),
        alpha=float(values.alpha),
        step=step,
    )


def _begin(config, initial: DistilledSet, checkpoints: _Checkpoints):
    values = Learnable(
        jnp.asarray(initial.images, jnp.float32),
        jnp.asarray(initial.labels, jnp.float32),
        jnp.asarray(initial.alpha, jnp.float32),
    )
    state = initial_state(config.distill, values)
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
        max_start_epoch=start_bound(config, it),
    )
    position.recent_losses.append(row["loss"])
    position.recent_skips.append(row["skipped"])
    position.skipped += row["skipped"]
    if not math.isfinite(row["loss"]):
        logging.warning(
            "iteration %d: the matching loss is %s (expert %d, start epoch %d); nothing moved",
            it, row["loss"], used[0].expert, used[0].start_epoch,
        )
    window_ends = (it + 1) % _WINDOW == 0 or it + 1 == config.distill.iterations
    if window_ends and sum(position.recent_skips) > len(position.recent_skips) / 2:
        logging.warning(
            "iteration %d: %d of the last %d iterations were skipped; median loss %.3f, "
            "distill.threshold %.3f",
            it, sum(position.recent_skips), len(position.recent_skips),
            float(np.nanmedian(position.recent_losses)), config.distill.threshold,
        )
    was_positive, position.alpha_is_positive = position.alpha_is_positive, row["alpha"] > 0
    if was_positive and not position.alpha_is_positive:
        logging.warning(
            "iteration %d: the student's rate alpha is %.3g, not positive; lower distill.lr_lr",
            it, row["alpha"],
        )
    return row["loss"]


def _evaluate(
    now: DistilledSet,
    averaged: DistilledSet | None,
    it: int,
    evaluate,
    metrics: MetricsWriter,
    position: _Position,
) -> bool:
    """Writes an evaluation's row; returns whether the set is the best so far."""
    result = evaluate(now, it)
    beside = {}
    if averaged is not None:
        of_average = evaluate(averaged, it)
        beside = {
            "average_accuracy_mean": of_average.mean,
            "average_accuracy_std": of_average.std,
        }
    metrics.write(
        it,
        "evaluate",
        accuracy_mean=result.mean,
        accuracy_std=result.std,
        num_networks=len(result.values),
        num_images=result.num_images,
        **beside,
    )
    better = result.mean > position.best
    if better:
        position.best, position.best_iteration = result.mean, it
    return better


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
