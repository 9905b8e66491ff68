"""What a distillation continues from: its state on disk, and files that agree with it."""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax import distilled_set
from edf_jax.config.resolve import flatten
from edf_jax.matching.iteration import SynState
from edf_jax.runs.folder import check_same
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import processes, storage
from edf_jax.runtime.errors import UserError

WINDOW = 100
_KEPT = 2
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Position:
    """Where the loop is: all that a checkpoint holds beside arrays.

    Attributes:
        iteration: the next to run.
        skipped: how many moved nothing.
        recent_losses, recent_skips: of the last `WINDOW` iterations.
        alpha_is_positive: at the last iteration.
        warned_of_loss: the last iteration that was told to have no usable loss or gradient.
        evaluations: how many periodic ones there were, of those that can be compared.
        best, best_iteration: the best periodic evaluation, in percent, and its set's step.
        best_held_out, best_held_out_iteration: the same on held-out training images.
    """

    iteration: int = 0
    skipped: int = 0
    recent_losses: collections.deque = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=WINDOW)
    )
    recent_skips: collections.deque = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=WINDOW)
    )
    alpha_is_positive: bool = True
    warned_of_loss: int = -WINDOW
    evaluations: int = 0
    best: float = -math.inf
    best_iteration: int = -1
    best_held_out: float = -math.inf
    best_held_out_iteration: int = -1

    def to_details(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, collections.deque) else v for k, v in fields.items()}

    def best_steps(self) -> dict[str, int]:
        """The steps of the best sets so far, by name."""
        steps = {
            "best_on_test": self.best_iteration,
            "best_on_held_out": self.best_held_out_iteration,
        }
        return {name: step for name, step in steps.items() if step >= 0}

    @classmethod
    def from_details(cls, details: dict[str, Any]) -> Position:
        fields = dict(details)
        for name in ("recent_losses", "recent_skips"):
            fields[name] = collections.deque(fields[name], maxlen=WINDOW)
        return cls(**fields)


def _protocol(config: Mapping[str, Any]) -> list[Any]:
    """What decides the accuracies of periodic evaluations, of a flat config."""
    names = ("during_num", "batch", "momentum", "weight_decay")
    epochs = config["evaluate.during_epochs"] or config["evaluate.epochs"]
    # A config from before there was this key has no fresh networks.
    fresh = config.get("evaluate.during_fresh", False)
    return [epochs, fresh, *(config[f"evaluate.{name}"] for name in names)]


class Checkpoints:
    """The resumable state in a run's `checkpoints/`, the last few of it.

    Args:
        workdir: the run's folder.
        config: resolved.
        of: digests of what decides the numbers beside the config: data, experts.
    """

    def __init__(self, workdir: pathlib.Path, config, of: Mapping[str, str]):
        self._folder = workdir / "checkpoints"
        self._config, self._of = config, dict(of)

    def _paths(self) -> dict[int, pathlib.Path]:
        """Checkpoints by iteration, in order."""
        paths = {path.name[10:]: path for path in self._folder.glob("iteration_*")}
        return dict(sorted((int(name), path) for name, path in paths.items() if name.isdigit()))

    def _is_scheduled(self, iteration: int) -> bool:
        options = self._config.distill
        return iteration % options.save_every == 0 or iteration == options.iterations

    def save(self, state: SynState, weight: jax.Array, position: Position) -> None:
        """Writes the state before `position.iteration`, and removes old ones."""
        leaves = jax.tree.leaves((state, weight))
        arrays = {f"leaf_{i:02d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        details = {"position": position.to_details(), "config": flatten(self._config)}
        path = self._folder / f"iteration_{position.iteration:06d}"
        storage.save_arrays(path, arrays, details, self._place(position.iteration))
        self._prune()

    def _place(self, iteration: int) -> dict[str, Any]:
        return {"iteration": iteration, **self._of}

    def _prune(self) -> None:
        """Keeps the newest, and of those that every uninterrupted run writes the last few."""
        paths = self._paths()
        kept = {*[i for i in paths if self._is_scheduled(i)][-_KEPT:], *list(paths)[-1:]}
        for iteration in set(paths) - kept:
            storage.remove(paths[iteration])

    def restore(self, state: SynState, weight: jax.Array) -> tuple[SynState, jax.Array, Position]:
        """The newest state that can be read; the one given where there is none.

        Damaged checkpoints are removed with a warning.

        Raises:
            UserError: it is of another config.
        """
        leaves, treedef = jax.tree.flatten((state, weight))
        shapes = [leaf.shape for leaf in leaves]
        details, arrays = processes.arrays_from_first_process(
            "the checkpoint", lambda: self._newest(shapes)
        )
        if details is None:
            return state, weight, Position()
        read = [jnp.asarray(arrays[name]) for name in sorted(arrays)]
        position = Position.from_details(details["position"])
        if _protocol(details["config"]) != _protocol(flatten(self._config)):
            position.evaluations = 0
            position.best, position.best_iteration = -math.inf, -1
            position.best_held_out, position.best_held_out_iteration = -math.inf, -1
            _log.warning(
                "evaluate.* is not what it was before iteration %d: the best set so far is sought "
                "anew, for accuracies of unlike trainings can't be compared",
                position.iteration,
            )
        return (*jax.tree.unflatten(treedef, read), position)

    def _newest(self, shapes: list[tuple[int, ...]]) -> tuple[Any, dict[str, np.ndarray]]:
        """Details and arrays of the newest checkpoint that can be read; None and {} of none."""
        for iteration, path in reversed(self._paths().items()):
            place = self._place(iteration)
            try:
                arrays = storage.load_arrays(path, place=place)
                details = storage.load_details(path, place)
            except storage.DamagedFile as error:
                _log.warning("%s: going back to the checkpoint before", error)
                storage.remove(path)
                continue
            check_same(path, details["config"], self._config)
            if shapes != [arrays[name].shape for name in sorted(arrays)]:
                raise UserError(f"{path} is another version's: remove {self._folder} to start anew")
            self._prune()
            return details, arrays
        return None, {}


def make_consistent(
    workdir: pathlib.Path, config, position: Position, metrics: MetricsWriter
) -> None:
    """Takes back what a run did after the checkpoint that it continues from.

    Rows and sets of later iterations go, for they are made again; `best_on_test` and
    `best_on_held_out` become the best ones of the iterations before.

    Raises:
        UserError: the best set before is lost.
    """
    iteration, options = position.iteration, config.distill
    rows = metrics.rows("distill")
    if rows and rows[-1]["step"] >= iteration + options.save_every:
        _log.warning(
            "%s lacks the state after iteration %d: continuing after iteration %d",
            workdir / "checkpoints", rows[-1]["step"], iteration,
        )
    for stage, every in (("distill", 1), ("evaluate", options.eval_every)):
        metrics.truncate_after(stage, iteration - 1)
        steps = {row["step"] for row in metrics.rows(stage)}
        missing = len(set(range(0, iteration, every)) - steps)
        if missing:
            _log.warning(
                "%s lacks %d rows of stage %s before iteration %d: curves leave them out",
                workdir / "metrics.jsonl", missing, stage, iteration,
            )
    for path in (workdir / "distilled").glob("step_*.safetensors"):
        step = path.stem[5:]
        if step.isdigit() and int(step) >= iteration:
            path.unlink()
    for name in ("best_on_test", "best_on_held_out"):
        _restore_best(workdir, name, position.best_steps().get(name))


def _restore_best(workdir: pathlib.Path, name: str, iteration: int | None) -> None:
    """Makes a best set that of an iteration; None: there is none yet."""
    best = workdir / "distilled" / f"{name}.safetensors"
    if iteration is None:
        best.unlink(missing_ok=True)
        return
    try:
        if distilled_set.load(best).step == iteration:
            return
    except storage.DamagedFile as error:
        _log.warning("%s: made again from the set of iteration %d", error, iteration)
    try:
        distilled_set.load(workdir / "distilled" / f"step_{iteration}.safetensors").save(best)
    except UserError as error:
        raise UserError(
            f"{error}, and neither can {name}: remove {workdir / 'checkpoints'} to distil again "
            "from the start"
        ) from error
