"""The stages of a run in order, each a function of the run and what came before."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from edf_jax import hosts, preemption, randomness, storage, synthetic
from edf_jax.cam_network import choose_cam_network, import_cam_network
from edf_jax.config import check_against_data, flatten
from edf_jax.data import Dataset, DatasetInfo, DatasetPlan, load_dataset
from edf_jax.data.normalisation import IMAGENET
from edf_jax.distill import CamNetwork, Learnable, distill, make_weight
from edf_jax.errors import UserError
from edf_jax.experts import expert_after, network_for, open_experts, train_experts
from edf_jax.initial_set import initialise
from edf_jax.metrics import MetricsWriter, open_metrics
from edf_jax.progress import Progress
from edf_jax.run import Run, check_same
from edf_jax.run_files import activation_maps_are_there, save_activation_maps
from edf_jax.synthetic import DistilledSet
from edf_jax.trajectories import DamagedSnapshot, TrajectoryStore

if TYPE_CHECKING:
    from edf_jax.evaluate.bench import RealNetworks
    from edf_jax.evaluate.teacher import Teacher

_log = logging.getLogger(__name__)
# A loading that takes less shows no bar.
_SECONDS_UNTOLD = 5.0
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
    config, workdir = run.config, run.workdir
    with run.stage("prepare"):
        with hosts.together():
            dataset = prepare(config)
        hosts.check_same("what the images are", dataset.info.fingerprint)
    for warning in warnings:
        _log.warning("%s", warning)
    if last == "prepare":
        return None
    with open_metrics(
        workdir,
        tensorboard=config.log.tensorboard,
        wandb_project=config.log.wandb_project or None,
        config=flatten(config),
    ) as metrics:

        def teacher() -> Teacher:
            from edf_jax.evaluate.teacher import get_teacher

            with run.stage("teacher"):
                return get_teacher(config, dataset, workdir, metrics)

        if last == "teacher":
            found = teacher()
            if hosts.is_first():
                told = f"teacher: {found.name}, {found.accuracy:.2f}% on test images"
                print(told, file=sys.stderr)
            return None
        store = open_experts(config, dataset, workdir)

        def learn() -> dict[str, Any] | None:
            """From experts to figures; what is there is not made again."""
            accuracies: list[float] = []
            foreign = bool(config.evaluate.distilled) and "evaluate" in wanted
            if not foreign or store.is_complete(config.experts.num, {config.experts.epochs}):
                with run.stage("experts"):
                    accuracies = train_experts(config, dataset, store, metrics)
            if "distill" not in wanted:
                return None
            if not foreign:
                with run.stage("distill"):
                    distil(config, dataset, store, metrics, workdir, teacher)
            if "evaluate" not in wanted:
                return None
            with run.stage("evaluate"):
                from edf_jax.evaluate.stage import evaluate_run

                return evaluate_run(
                    config,
                    dataset,
                    accuracies,
                    workdir,
                    real_networks=real_networks(config, dataset, store) if accuracies else None,
                    teacher=teacher,
                    provenance=run.origin(),
                )

        figures = _with_repairs(learn, store)
    if figures is None:
        return None
    result = {**figures, "method": config.method, "workdir": str(workdir), **run.provenance()}
    storage.write_text(workdir / "result.json", json.dumps(result, indent=1))
    if "report" in wanted:
        with run.stage("report"):
            hosts.shared("report", lambda: print(f"report: {_report(workdir)}", file=sys.stderr))
        result.update(run.provenance())
        storage.write_text(workdir / "result.json", json.dumps(result, indent=1))
    return result


def _report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes the report; damaged sets of single iterations are taken away, and left out of it."""
    from edf_jax.report import write_report

    try:
        return write_report(workdir)
    except storage.DamagedFile:
        for path in (workdir / "distilled").glob("step_*.safetensors"):
            try:
                synthetic.load(path)
            except UserError as error:
                _log.warning("%s: removed, and left out of the report", error)
                path.unlink()
        return write_report(workdir)


def _with_repairs(work: Callable[[], Any], store: TrajectoryStore) -> Any:
    """The result of `work`, which is begun again after a damaged snapshot is taken away.

    It trains what the store lacks, and continues from its own files otherwise.

    Raises:
        DamagedSnapshot: the same one is damaged again.
    """
    removed: set[tuple[int, int]] = set()
    while True:
        try:
            return work()
        except DamagedSnapshot as error:
            place = (error.group, error.epoch)
            if place in removed:
                raise
            removed.add(place)
            _log.warning("%s: trained again", error)
            with store.lock():
                store.remove(*place)


def prepare(config) -> Dataset:
    """Loads the real images, and checks what only they can tell.

    Raises:
        UserError: they aren't there, or there are too few.
    """
    with contextlib.ExitStack() as stack:
        began, bar = time.monotonic(), None

        def show(done: int, total: int) -> None:
            nonlocal bar
            preemption.stop_if_asked_here()
            if bar is None and time.monotonic() - began > _SECONDS_UNTOLD:
                bar = stack.enter_context(Progress("prepare", total, "image", start=done))
            if bar is not None:
                bar.at(done, total)

        dataset = load_dataset(config.data, progress=show)
    counts = np.bincount(dataset.train.labels, minlength=dataset.info.num_classes)
    check_against_data(config, counts.tolist(), dataset.info.class_names)
    return dataset


def real_networks(config, dataset: Dataset, store: TrajectoryStore) -> RealNetworks:
    """The experts after their last epoch, as baselines use them."""
    from edf_jax.evaluate.bench import RealNetworks

    network, count = network_for(config, dataset.info), config.experts.num
    return RealNetworks(
        network,
        lambda expert: expert_after(network, store, expert, config.experts.epochs),
        count,
        f"{count} experts",
    )


def distil(
    config,
    dataset: Dataset,
    store: TrajectoryStore,
    metrics: MetricsWriter,
    workdir: pathlib.Path,
    teacher: Callable[[], Teacher],
) -> DistilledSet:
    """Initialises and distils, or continues; returns the last set.

    `teacher` is called where `cam.network` is `trained`.
    """
    from edf_jax.evaluate.stage import periodic

    finished = synthetic.shared("a finished set", lambda: _finished_set(config, workdir))
    network = network_for(config, dataset.info)
    if finished is not None:
        images = finished.images
        if not hosts.shared("maps", lambda: activation_maps_are_there(workdir, images)):
            cam = choose_cam_network(config, dataset, network, store, teacher)
            _save_maps(config, cam, finished, workdir)
        return finished
    start = synthetic.shared("the first set", lambda: _first_set(config, workdir))
    if start is None:
        made = initialise(config, dataset, network, store)
        start = synthetic.shared("a new set", lambda: made) or made
        # It is the set of iteration 0, wherever the checkpoint is from which the loop continues.
        start.save(workdir / "distilled" / "step_0.safetensors")
    cam = choose_cam_network(config, dataset, network, store, teacher)
    weighed = config.distill.pixel_weight == "dae"
    last = distill(
        config,
        network,
        start,
        store,
        cam if weighed else None,
        periodic(config, dataset),
        metrics,
        workdir,
    )
    _save_maps(config, cam, last, workdir)
    return last


def _save_maps(config, cam: CamNetwork, last: DistilledSet, workdir: pathlib.Path) -> None:
    maps, weight = make_weight(config, cam)(
        Learnable(jnp.asarray(last.images), jnp.asarray(last.labels), jnp.float32(last.alpha)),
        randomness.stream(config.seed, "shown maps"),
    )
    arrays = (last.images, np.asarray(maps), np.asarray(weight))
    save_activation_maps(workdir, *arrays, network=cam.name)


def _first_set(config, workdir: pathlib.Path) -> DistilledSet | None:
    """The set that an earlier sitting started from; None where it has to be made."""
    path = workdir / "distilled" / "step_0.safetensors"
    if not (workdir / "checkpoints").exists():
        return None
    try:
        return dataclasses.replace(synthetic.load(path), config=flatten(config))
    except UserError as error:
        _log.warning("%s: made again", error)
        return None


def _finished_set(config, workdir: pathlib.Path) -> DistilledSet | None:
    """The last set of a finished distillation; None where there is more to do.

    Raises:
        UserError: it was made with another config.
    """
    folder = workdir / "distilled"
    if not (folder / "last.safetensors").exists():
        return None
    try:
        last = synthetic.load(folder / "last.safetensors")
        best = [synthetic.load(folder / "best_on_test.safetensors")]
        if config.data.held_out:
            best.append(synthetic.load(folder / "best_on_held_out.safetensors"))
    except UserError as error:
        _log.warning("%s: made again from the last checkpoint", error)
        return None
    for found in (last, *best):
        check_same(folder, found.config, config)
    return last if last.step == config.distill.iterations else None


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
        from edf_jax.evaluate.teacher import import_teacher

        import_teacher(config, info)
    if config.evaluate.distilled:
        from edf_jax.evaluate import subjects

        # Where the real one is measured on the images, any other shows whether the file is good.
        normalisation = info.normalisation or IMAGENET
        normalised: Any = dataclasses.replace(info, normalisation=normalisation)
        subjects.read(config.evaluate.distilled, normalised)
