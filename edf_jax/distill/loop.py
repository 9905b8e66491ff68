"""The outer loop: synthetic images and labels that make students follow the experts.

One loop serves the whole trajectory-matching family; where methods differ, a small function is
chosen by a name in the config (`edf_jax.methods.family`).

References:
  Wang et al., EDF (2410.17193); Guo et al., DATM (2310.05773).
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.distill import tensorboard
from edf_jax.distill.checkpoints import WINDOW, Checkpoints, Position, make_consistent
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.trajectories import Pair, TrajectoryStore
from edf_jax.matching.iteration import (
    DIVERGED_LOSS,
    Learnable,
    SynState,
    initial_state,
    make_iteration,
)
from edf_jax.matching.pixel_weight import make_weight
from edf_jax.methods import family
from edf_jax.models import Network
from edf_jax.plan import memory
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import devices, preemption, processes, randomness
from edf_jax.runtime.errors import Preempted, UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training import parallel
from edf_jax.training.trained import TrainedNetwork

_log = logging.getLogger(__name__)


def start_bound(config, iteration: int) -> int:
    """The bound that an iteration's start epochs stay below."""
    options = config.distill
    return family.START_BOUNDS[options.start_schedule](options, iteration)


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


def distill(
    config,
    network: Network,
    initial: DistilledSet,
    store: TrajectoryStore,
    cam: TrainedNetwork | None,
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

    Raises:
        UserError: `distill.on_nan=stop`, and an iteration had no usable loss or gradient.
        Preempted: asked to stop; a checkpoint holds all until then.
    """
    options = config.distill
    num_images = len(initial.images)
    room = devices.local_device().memory
    store_of_steps = memory.choose_store(config, network, num_images, room)
    iterate = make_iteration(config, network, num_images, store=store_of_steps)
    weigh = make_weight(config, cam) if cam is not None else None
    key = randomness.stream(config.seed, "distill")
    checkpoints = Checkpoints(workdir, config, {"data": initial.data, "experts": store.digest})
    mesh = parallel.matching_mesh(config.parallel.trajectory, max(1, config.parallel.data))
    state, weight, position = _begin(config, initial, checkpoints)
    state, weight = parallel.from_first((state, weight), mesh)
    processes.shared(
        "a run's files", lambda: make_consistent(workdir, config, position, metrics)
    )
    first = position.iteration
    pairs = _pairs(config, store, position.iteration)
    pending: list[tuple[int, list[Pair], dict[str, jax.Array]]] = []
    loss, fault = math.nan, None

    def current(step: int) -> DistilledSet:
        return _to_set(initial, state.values, step)

    def evaluate_now(it: int) -> None:
        now = current(it)
        now.save(workdir / "distilled" / f"step_{it}.safetensors")
        maps = None
        if weigh is not None:
            maps = np.asarray(weigh(state.values, jax.random.fold_in(key, 2 * it))[0])
        if processes.is_first():
            tensorboard.show_set(metrics, it, now, maps)
        averaged = None
        if state.average is not None:
            averaged = dataclasses.replace(now, images=np.asarray(state.average))
            averaged.save(workdir / "distilled" / "average.safetensors")
        for name in _evaluate(now, averaged, it, evaluate, metrics, position):
            now.save(workdir / "distilled" / f"{name}.safetensors")

    def settle(behind: int = 0) -> None:
        """Writes the rows of all iterations but the last `behind`."""
        nonlocal loss, fault
        while len(pending) > behind:
            loss, found = _record(config, metrics, position, *pending.pop(0))
            fault = fault or found

    def stopping() -> tuple[bool, bool]:
        return fault is not None and options.on_nan == "stop", preemption.asked()

    def refuse_faults(it: int) -> None:
        if fault is not None and options.on_nan == "stop":
            path = workdir / "distilled" / f"step_{it}.safetensors"
            current(it).save(path)
            raise UserError(
                f"{fault}; {path} holds the set after iteration {it - 1}, which is good: "
                "--config.distill.on_nan=skip continues from it"
            )

    def save(it: int) -> None:
        settle()
        metrics.sync()
        position.iteration = it
        checkpoints.save(state, weight, position)

    with Progress("distill", options.iterations, "iteration", start=first) as bar:
        began, waited = time.monotonic(), 0.0
        for it in range(first, options.iterations + 1):
            last = it == options.iterations
            if it % options.eval_every == 0 or last:
                settle()
                try:
                    evaluate_now(it)
                except Preempted:
                    save(it)
                    refuse_faults(it)
                    raise
            if last:
                break
            if weigh is not None and it % config.cam.every == 0:
                _, weight = weigh(state.values, jax.random.fold_in(key, 2 * it))
            asked_at = time.monotonic()
            used = _next_pairs(config, network, pairs, it)
            waited += time.monotonic() - asked_at
            starts = np.stack([pair.start for pair in used])
            targets = np.stack([pair.target for pair in used])
            state, report = iterate(
                state,
                *parallel.from_first((starts, targets), mesh),
                weight,
                jax.random.fold_in(key, 2 * it + 1),
            )
            pending.append((it, used, report))
            if it == first:
                loss = float(report["loss"])
                _log.info("first iteration after %.1f s", time.monotonic() - began)
            scheduled = (it + 1) % options.save_every == 0 or it + 1 == options.iterations
            # One iteration behind the device, so that it never waits for the host.
            settle(behind=0 if scheduled else 1)
            bar.update(loss=loss, skipped=position.skipped)
            stops, asked = processes.shared("whether to stop", stopping)
            if scheduled or stops or asked:
                save(it + 1)
                # Saving settles the iteration that was still pending.
                stops, _ = processes.shared("whether to stop after all", stopping)
            if stops:
                refuse_faults(it + 1)
            if asked:
                raise Preempted(preemption.WHY)
        took = max(time.monotonic() - began, 1e-9)
        _log.info(
            "%d iterations in %.1f s, evaluations included; %.1f%% of it waiting for snapshots",
            options.iterations - first,
            took,
            100 * waited / took,
        )
    final = dataclasses.replace(current(options.iterations), best=position.best_steps())
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


def _begin(
    config, initial: DistilledSet, checkpoints: Checkpoints
) -> tuple[SynState, jax.Array, Position]:
    values = Learnable(
        jnp.asarray(initial.images, jnp.float32),
        jnp.asarray(initial.labels, jnp.float32),
        jnp.asarray(initial.alpha, jnp.float32),
    )
    state = initial_state(config.distill, values)
    weight = jnp.ones((*initial.images.shape[:3], 1), jnp.float32)
    return checkpoints.restore(state, weight)


def _pairs(config, store: TrajectoryStore, first: int) -> Iterator[Pair]:
    wanted = (
        choice
        for iteration in range(first, config.distill.iterations)
        for choice in choices(config, iteration)
    )
    return store.pairs(wanted, config.distill.expert_epochs)


def _next_pairs(config, network: Network, pairs: Iterator[Pair], it: int) -> list[Pair]:
    """An iteration's pairs; of processes that run together only the first has their numbers."""
    used: list[Pair] = []
    processes.shared("pairs", lambda: used.extend(itertools.islice(pairs, config.distill.trajectories)))
    nothing = np.zeros(0 if used else network.num_params, np.float32)
    return used or [Pair(*choice, nothing, nothing) for choice in choices(config, it)]


def _record(
    config, metrics, position: Position, it: int, used: list[Pair], report
) -> tuple[float, str | None]:
    """Writes one iteration's row, keeps count, and warns where the run looks wrong.

    Returns:
        The loss, and what was wrong with the iteration's numbers.
    """
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
    fault = _fault(config, it, used, row)
    if fault and it - position.warned_of_loss >= WINDOW:
        _log.warning("%s; nothing moved", fault)
        position.warned_of_loss = it
    window_ends = (it + 1) % WINDOW == 0 or it + 1 == config.distill.iterations
    if window_ends and sum(position.recent_skips) > len(position.recent_skips) / 2:
        _log.warning(
            "iteration %d: %d of the last %d iterations were skipped; median loss %.3f, "
            "distill.threshold %.3f; see 'nearly all iterations are skipped' in docs/faq.md",
            it, sum(position.recent_skips), len(position.recent_skips),
            float(np.nanmedian(position.recent_losses)), config.distill.threshold,
        )
    was_positive, position.alpha_is_positive = position.alpha_is_positive, row["alpha"] > 0
    if was_positive and not position.alpha_is_positive:
        _log.warning(
            "iteration %d: the student's rate alpha is %.3g, not positive; lower distill.lr_lr",
            it, row["alpha"],
        )
    return row["loss"], fault


def _fault(config, it: int, used: list[Pair], row: dict[str, Any]) -> str | None:
    """What keeps an iteration's numbers from being used, and where they come from."""
    threshold = config.distill.threshold
    diverged = not row["loss"] <= DIVERGED_LOSS
    if not diverged and (not row["skipped"] or 0 < threshold < row["loss"]):
        return None
    what = "a gradient or step isn't finite"
    if diverged:
        what = f"the matching loss is {row['loss']:.4g}"
    where = "; ".join(f"expert {pair.expert}, start epoch {pair.start_epoch}" for pair in used)
    return f"iteration {it}: {what} ({where})"


def _evaluate(
    now: DistilledSet,
    averaged: DistilledSet | None,
    it: int,
    evaluate,
    metrics: MetricsWriter,
    position: Position,
) -> list[str]:
    """Writes an evaluation's row; returns what the set is the best of so far."""
    result = evaluate(now, it)
    beside = {}
    if averaged is not None:
        of_average = evaluate(averaged, it)
        beside = {
            "average_accuracy_mean": of_average.mean,
            "average_accuracy_std": of_average.std,
        }
    held_out = float(np.mean(result.held_out)) if result.held_out else -math.inf
    if result.held_out:
        beside["held_out_accuracy_mean"] = held_out
        beside["held_out_accuracy_std"] = float(np.std(result.held_out))
    metrics.write(
        it,
        "evaluate",
        accuracy_mean=result.mean,
        accuracy_std=result.std,
        num_networks=len(result.values),
        num_images=result.num_images,
        **beside,
    )
    better = []
    if result.mean > position.best:
        position.best, position.best_iteration = result.mean, it
        better.append("best_on_test")
    if held_out > position.best_held_out:
        position.best_held_out, position.best_held_out_iteration = held_out, it
        better.append("best_on_held_out")
    return better
