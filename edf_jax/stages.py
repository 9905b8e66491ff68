"""The stages of a run in order, each a function of the run and what came before."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from edf_jax import distilled_set
from edf_jax.config.resolve import flatten
from edf_jax.data import Dataset, DatasetInfo, DatasetPlan, describe_dataset
from edf_jax.distill.cam_network import import_cam_network
from edf_jax.distill.initial_set import initialise
from edf_jax.distill.stage import distill_run, forget
from edf_jax.distill.watch import NotLearning
from edf_jax.evaluate import labelled_images
from edf_jax.evaluate.real_baselines import trained_experts
from edf_jax.evaluate.stage import evaluate_run, periodic
from edf_jax.evaluate.teacher import get_teacher, import_teacher
from edf_jax.experts.train import open_experts, with_repairs
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models.choose import network_for
from edf_jax.plan import plan
from edf_jax.report.live import PageSoFar
from edf_jax.report.page import write_report
from edf_jax.runs.folder import Run
from edf_jax.runs.metrics import MetricsWriter, import_wandb, open_metrics
from edf_jax.runs.prepare import prepare
from edf_jax.runtime import processes, storage
from edf_jax.runtime.errors import UserError
from edf_jax.training import parallel
from edf_jax.training.trained import TrainedNetwork
from edf_jax.tune.distillation import for_distillation
from edf_jax.tune.tuning import Tuning

_log = logging.getLogger(__name__)
STAGES = ("prepare", "teacher", "experts", "distill", "evaluate", "report")


def run_stages(run: Run, last: str, warnings: Sequence[str] = ()) -> dict[str, Any] | None:
    """Runs all stages up to and including `last`; finished ones are not redone.

    The teacher is trained where `last` is `teacher`, else when it is first needed. A set from
    elsewhere (`evaluate.distilled`) is evaluated without experts or distillation.

    Args:
        run: open.
        last: one of `STAGES`, or `all`.
        warnings: for once the images are known to be good.

    Returns:
        The run's result once it is evaluated, else None.
    """
    wanted = STAGES if last == "all" else STAGES[: STAGES.index(last) + 1]
    with run.stage("prepare"):
        with processes.in_every_process():
            dataset = prepare(run.config)
        processes.check_same("what the images are", dataset.info.fingerprint)
    for warning in warnings:
        _log.warning("%s", warning)
    if last == "prepare":
        return None
    with open_metrics(
        run.workdir,
        tensorboard=run.config.log.tensorboard,
        wandb_project=run.config.log.wandb_project or None,
        config=flatten(run.config),
        after={"evaluate": PageSoFar(run.workdir)} if "report" in wanted else None,
    ) as metrics:
        work = _Work(run, dataset, metrics, Tuning(run.config, run.workdir))
        if last == "teacher":
            found = work.teacher()
            if processes.is_first():
                told = f"teacher: {found.name}, {found.accuracy:.2f}% on test images"
                print(told, file=sys.stderr)
            return None
        with run.stage("tune"):
            work.tuning.for_experts(dataset)
        store = open_experts(work.tuning.config, dataset, run.workdir)
        figures = with_repairs(lambda: work.learn(store, wanted), store)
    if figures is None:
        return None
    return _finish(run, {**figures, "metrics_rows": metrics.count}, wanted)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What the stages from experts to figures share; what is there is not made again."""

    run: Run
    dataset: Dataset
    metrics: MetricsWriter
    tuning: Tuning

    def teacher(self) -> TrainedNetwork:
        with self.run.stage("teacher"):
            return get_teacher(self.run.config, self.dataset, self.run.workdir, self.metrics)

    def learn(self, store: TrajectoryStore, wanted: Sequence[str]) -> dict[str, Any] | None:
        """From experts to figures; None where they aren't wanted."""
        config, dataset, workdir = self.tuning.config, self.dataset, self.run.workdir
        accuracies: list[float] = []
        foreign = bool(config.evaluate.distilled) and "evaluate" in wanted
        if not foreign or store.is_complete(config.experts.num, {config.experts.epochs}):
            with self.run.stage("experts"):
                accuracies = self.tuning.train_experts(dataset, store, self.metrics)
        if "distill" not in wanted:
            return None
        if not foreign:
            with self.run.stage("tune"):
                network = network_for(config, dataset.info)
                for_distillation(
                    self.tuning,
                    dataset,
                    store,
                    lambda config: initialise(config, dataset, network, store),
                    lambda: self.run.provenance()["seconds"],
                )
            with self.run.stage("distill"):
                self._distill(store)
        config = self.tuning.config
        if "evaluate" not in wanted:
            return None
        experts = functools.partial(trained_experts, config, dataset, store)
        with self.run.stage("evaluate"):
            figures = evaluate_run(
                config,
                dataset,
                accuracies,
                workdir,
                networks=experts if accuracies else None,
                teacher=self.teacher,
                provenance=self.run.origin(),
            )
        return {**figures, **self.tuning.figures()}

    def _distill(self, store: TrajectoryStore) -> None:
        """Distils; where that doesn't learn, with another number from the start."""
        tuning, workdir = self.tuning, self.run.workdir
        while True:
            config = tuning.config
            evaluate = periodic(config, self.dataset)
            try:
                distill_run(
                    config, self.dataset, store, self.metrics, workdir, self.teacher, evaluate,
                    tuning.can_mend,
                )  # fmt: skip
                return
            except NotLearning as error:
                forget(workdir, self.metrics)
                tuning.mend(error.finding)


def _finish(run: Run, figures: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Writes the result, and the report where it is wanted."""
    workdir = run.workdir
    result = {**figures, "method": run.config.method, "workdir": str(workdir), **run.provenance()}
    run.write_result(result)
    if "report" in wanted:
        with run.stage("report"):
            written = processes.from_first_process("report", lambda: str(_report(workdir)))
            if processes.is_first():
                print(f"report: {written}", file=sys.stderr)
        result.update(run.provenance())
        run.write_result(result)
    return result


def _report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes the report; damaged sets of single iterations are taken away, and left out of it."""
    try:
        return write_report(workdir)
    except storage.DamagedFile:
        for path in (workdir / "distilled").glob("step_*.safetensors"):
            try:
                distilled_set.load(path)
            except UserError as error:
                _log.warning("%s: removed, and left out of the report", error)
                path.unlink()
        return write_report(workdir)


def check_plan(config, workdir: pathlib.Path) -> tuple[str, ...]:
    """Refuses, before anything is written, what the plan tells to be impossible.

    Returns:
        The plan's warnings.

    Raises:
        UserError: says what, and what would do.
    """
    if config.log.wandb_project:
        import_wandb()
    parallel.matching_mesh(config.parallel.trajectory, max(1, config.parallel.data))
    data = describe_dataset(config.data)
    if not data.available:
        raise UserError(data.advice)
    planned = plan.make_plan(config, data, workdir)
    plan.check_memory(planned)
    check_files(config, data)
    return planned.warnings


def check_files(config, info: DatasetInfo | DatasetPlan) -> None:
    """Reads the files that a config names, so that a wrong one is told of before hours of work.

    Raises:
        UserError: one can't be read, or doesn't fit the data.
    """
    if config.experts.dir and pathlib.Path(config.experts.dir).expanduser().is_file():
        raise UserError(f"experts.dir={config.experts.dir} is a file: give a folder")
    if config.cam.weights:
        import_cam_network(config, info)
    if config.teacher.weights:
        import_teacher(config, info)
    if config.evaluate.distilled:
        labelled_images.check(config.evaluate.distilled, info)
