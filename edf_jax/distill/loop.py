"""The outer loop: synthetic images and labels that make students follow the experts.

One loop serves the whole trajectory-matching family; where methods differ, a small function is
chosen by a name in the config (`edf_jax.methods.family`).

References:
  Wang et al., EDF (2410.17193); Guo et al., DATM (2310.05773).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.distill import tensorboard
from edf_jax.distill.checkpoints import Checkpoints, Position, make_consistent
from edf_jax.distill.journal import Journal
from edf_jax.distill.pairs import Pairs
from edf_jax.distill.watch import Watch
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.matching.iteration import (
    Learnable,
    initial_state,
    make_iteration,
)
from edf_jax.matching.pixel_weight import make_weight
from edf_jax.matching.placement import Placement
from edf_jax.models import Network
from edf_jax.plan.memory import place_iteration
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runs.statistics import Accuracies
from edf_jax.runtime import preemption, processes, randomness
from edf_jax.runtime.errors import Preempted, UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training import parallel
from edf_jax.training.trained import TrainedNetwork

_log = logging.getLogger(__name__)
# (set, iteration) -> its accuracies
Evaluate = Callable[[DistilledSet, int], Accuracies]


def distill(
    config,
    network: Network,
    initial: DistilledSet,
    store: TrajectoryStore,
    cam: TrainedNetwork | None,
    evaluate: Evaluate,
    metrics: MetricsWriter,
    workdir: pathlib.Path,
    watch: Watch | None = None,
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
        watch: called after every iteration.

    Returns:
        The set after the last update.

    Raises:
        UserError: `distill.on_nan=stop`, and an iteration had no usable loss or gradient.
        Preempted: asked to stop; a checkpoint holds all until then.
        NotLearning: `watch` says so.
    """
    options = config.distill
    placement = place_iteration(config, network, len(initial.labels))
    iterate = make_iteration(config, network, len(initial.labels), placement)
    work = _Distillation(config, initial, store.digest, cam, metrics, workdir, placement)
    first, last = work.position.iteration, options.iterations
    pairs = Pairs(config, network, store, first, placement)
    with Progress("distill", last, "iteration", start=first) as bar:
        began = time.monotonic()
        for it in range(first, last + 1):
            if it % options.eval_every == 0 or it == last:
                work.evaluate(it, evaluate)
            if it == last:
                break
            work.weigh(it)
            used, starts, targets = pairs.of_iteration(it)
            key = jax.random.fold_in(work.key, 2 * it + 1)
            work.state, report = iterate(work.state, starts, targets, work.weight, key)
            work.journal.expect(it, used, report)
            if it == first:
                work.journal.settle()
                _log.info("first iteration after %.1f s", time.monotonic() - began)
            work.end_iteration(it)
            bar.update(loss=work.journal.loss, skipped=work.position.skipped)
            if watch is not None:
                watch(it + 1, functools.partial(work.current, it + 1))
        took = max(time.monotonic() - began, 1e-9)
        _log.info(
            "%d iterations in %.1f s, evaluations included; %.1f%% of it waiting for snapshots",
            last - first, took, 100 * pairs.waited / took,
        )  # fmt: skip
    final = dataclasses.replace(work.current(last), best=work.position.best_steps())
    final.save(workdir / "distilled" / "last.safetensors")
    return final


class _Distillation:
    """What a distillation holds between iterations, in memory and in the run's folder.

    Attributes:
        state: the set and the outer optimiser's momentum.
        weight: of pixel gradients, `[n, H, W, 1]`.
        position: where the loop is.
        journal: the rows of iterations.
        key: of all iterations.
    """

    def __init__(self, config, initial, experts: str, cam, metrics, workdir, placement: Placement):
        self._config, self._initial = config, initial
        self._metrics, self._folder = metrics, workdir / "distilled"
        self._weigh = None if cam is None else make_weight(config, cam)
        self.key = randomness.stream(config.seed, "distill")
        of = {"data": initial.origin.get("digest", ""), "experts": experts}
        self._checkpoints = Checkpoints(workdir, config, of)
        values = Learnable(
            jnp.asarray(initial.parameters, jnp.float32),
            jnp.asarray(initial.labels, jnp.float32),
            jnp.asarray(initial.alpha, jnp.float32),
        )
        size = initial.parameters.shape[1:3]
        weight = jnp.ones((len(initial.labels), *size, 1), jnp.float32)
        state, weight, self.position = self._checkpoints.restore(
            initial_state(config.distill, values), weight
        )
        self.state, self.weight = parallel.from_first((state, weight), placement.mesh())
        self.journal = Journal(config, metrics, self.position)
        processes.from_first_process(
            "a run's files", lambda: make_consistent(workdir, config, self.position, metrics)
        )

    def current(self, step: int) -> DistilledSet:
        values = self.state.values
        return dataclasses.replace(
            self._initial,
            parameters=np.asarray(values.images),
            labels=np.asarray(values.labels),
            alpha=float(values.alpha),
            step=step,
        )

    def weigh(self, it: int) -> None:
        """Takes the activation maps anew where it is time."""
        if self._weigh is not None and it % self._config.cam.every == 0:
            _, self.weight = self._weigh(self.state.values, jax.random.fold_in(self.key, 2 * it))

    def evaluate(self, it: int, evaluate: Evaluate) -> None:
        """Evaluates the set before iteration `it`, keeps it, and keeps it as the best if it is.

        Raises:
            UserError, Preempted: as `distill`; what is done is saved.
        """
        self.journal.settle()
        try:
            now = self.current(it)
            now.save(self._folder / f"step_{it}.safetensors")
            self._show(it, now)
            averaged = None
            if self.state.average is not None:
                averaged = dataclasses.replace(now, parameters=np.asarray(self.state.average))
                averaged.save(self._folder / "average.safetensors")
            fresh = self._config.evaluate.during_fresh
            for name in _evaluate(now, averaged, it, evaluate, self._metrics, self.position, fresh):
                now.save(self._folder / f"{name}.safetensors")
        except Preempted:
            self._save(it)
            self._refuse_fault(it)
            raise

    def _show(self, it: int, now: DistilledSet) -> None:
        maps = None
        if self._weigh is not None:
            key = jax.random.fold_in(self.key, 2 * it)
            maps = np.asarray(self._weigh(self.state.values, key)[0])
        if processes.is_first():
            tensorboard.show_set(self._metrics, it, now, maps)

    def end_iteration(self, it: int) -> None:
        """Writes rows, and the state where it is time or the run has to stop.

        Raises:
            UserError, Preempted: as `distill`; what is done is saved.
        """
        options = self._config.distill
        scheduled = (it + 1) % options.save_every == 0 or it + 1 == options.iterations
        # One iteration behind the device, so that it never waits for the host.
        self.journal.settle(behind=0 if scheduled else 1)
        stops, asked = processes.from_first_process("whether to stop", self._stopping)
        if scheduled or stops or asked:
            self._save(it + 1)
            # Saving settles the iteration that was still pending.
            stops, _ = processes.from_first_process("whether to stop after all", self._stopping)
        if stops:
            self._refuse_fault(it + 1)
        if asked:
            preemption.stop()

    def _stopping(self) -> tuple[bool, bool]:
        return self._stops_for_fault(), preemption.asked()

    def _stops_for_fault(self) -> bool:
        return self.journal.fault is not None and self._config.distill.on_nan == "stop"

    def _save(self, it: int) -> None:
        self.journal.settle()
        self._metrics.sync()
        self.position.iteration = it
        self._checkpoints.save(self.state, self.weight, self.position)

    def _refuse_fault(self, it: int) -> None:
        if self._stops_for_fault():
            path = self._folder / f"step_{it}.safetensors"
            self.current(it).save(path)
            raise UserError(
                f"{self.journal.fault}; {path} holds the set after iteration {it - 1}, which is "
                "good: --config.distill.on_nan=skip continues from it"
            )


def _evaluate(
    now: DistilledSet,
    averaged: DistilledSet | None,
    it: int,
    evaluate: Evaluate,
    metrics: MetricsWriter,
    position: Position,
    fresh: bool,
) -> list[str]:
    """Writes an evaluation's row; returns what the set is the best of so far.

    Where each evaluation has `fresh` networks, the row tells the largest accuracy so far too.
    """
    result = evaluate(now, it)
    beside: dict[str, float] = {}
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
    position.evaluations += 1
    if fresh:
        beside["paper_statistic"] = max(result.mean, position.best)
        beside["paper_statistic_of"] = position.evaluations
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
