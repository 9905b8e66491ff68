"""The stage of a run that distils: what it starts from, the loop, and the maps it shows."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from edf_jax import distilled_set
from edf_jax.config.resolve import flatten
from edf_jax.data import Dataset, DatasetInfo
from edf_jax.distill.cam_network import choose_cam_network
from edf_jax.distill.initial_set import initialise
from edf_jax.distill.loop import Learnable, distill, make_weight
from edf_jax.distill.watch import Watch
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models.choose import network_for
from edf_jax.runs.diagnosis import Finding
from edf_jax.runs.files import activation_maps_are_there, save_activation_maps
from edf_jax.runs.folder import check_same
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runs.statistics import Accuracies
from edf_jax.runtime import processes, randomness, storage
from edf_jax.training.trained import TrainedNetwork

_log = logging.getLogger(__name__)


def distill_run(
    config,
    dataset: Dataset,
    store: TrajectoryStore,
    metrics: MetricsWriter,
    workdir: pathlib.Path,
    teacher: Callable[[], TrainedNetwork],
    evaluate: Callable[[DistilledSet, int], Accuracies],
    mendable: Callable[[Finding], bool] = lambda finding: False,
) -> DistilledSet:
    """Initialises and distils, or continues; returns the last set.

    `teacher` is called where `cam.network` is `trained`, `evaluate` during the distillation.
    `mendable` says whether the run may start again with another number.

    Raises:
        NotLearning: it is to start again (`forget`).
    """
    info = dataset.info
    finished = distilled_set.from_first_process(
        "a finished set", lambda: _finished_set(config, workdir, info)
    )
    network = network_for(config, dataset.info)
    start = distilled_set.from_first_process(
        "the first set", lambda: _first_set(config, workdir, info)
    )
    if start is None:
        made = initialise(config, dataset, network, store)
        start = distilled_set.from_first_process("a new set", lambda: made) or made
        # It is the set of iteration 0, wherever the checkpoint is from which the loop continues.
        start.save(workdir / "distilled" / "step_0.safetensors")
    if finished is not None:
        parameters = finished.parameters
        if not processes.from_first_process(
            "maps", lambda: activation_maps_are_there(workdir, parameters)
        ):
            cam = choose_cam_network(config, dataset, network, store, teacher)
            _save_maps(config, cam, finished, workdir)
        return finished
    cam = choose_cam_network(config, dataset, network, store, teacher)
    weighed = config.distill.pixel_weight == "dae"
    last = distill(
        config,
        network,
        start,
        store,
        cam if weighed else None,
        evaluate,
        metrics,
        workdir,
        Watch(config, metrics, evaluate, mendable),
    )
    _save_maps(config, cam, last, workdir)
    return last


def forget(workdir: pathlib.Path, metrics: MetricsWriter) -> None:
    """Takes back a distillation that is to start again."""
    storage.remove(workdir / "checkpoints")
    for stage in ("distill", "evaluate"):
        metrics.truncate_after(stage, -1)


def _save_maps(config, cam: TrainedNetwork, last: DistilledSet, workdir: pathlib.Path) -> None:
    maps, weight = make_weight(config, cam)(
        Learnable(*map(jnp.asarray, (last.parameters, last.labels, np.float32(last.alpha)))),
        randomness.stream(config.seed, "shown maps"),
    )
    arrays = (last.parameters, np.asarray(maps), np.asarray(weight))
    save_activation_maps(workdir, *arrays, network=cam.name)


def _first_set(config, workdir: pathlib.Path, info: DatasetInfo) -> DistilledSet | None:
    """The set that an earlier sitting started from; None where it has to be made."""
    if not (workdir / "checkpoints").exists():
        return None
    try:
        found = _own_set(workdir, "step_0", info)
        return dataclasses.replace(found, config=flatten(config), origin=info.identity)
    except storage.DamagedFile as error:
        _log.warning("%s: made again", error)
        return None


def _finished_set(config, workdir: pathlib.Path, info: DatasetInfo) -> DistilledSet | None:
    """The last set of a finished distillation; None where there is more to do.

    Raises:
        UserError: it was made with another config.
    """
    if not (workdir / "distilled" / "last.safetensors").exists():
        return None
    try:
        last = _own_set(workdir, "last", info)
        check_same(workdir / "distilled", last.config, config)
        if last.step != config.distill.iterations:
            return None
        steps: dict[str, int | None] = {"best_on_test": last.best.get("best_on_test")}
        if config.data.held_out:
            steps["best_on_held_out"] = last.best.get("best_on_held_out")
        if config.distill.average:
            steps["average"] = last.step
        for name, step in steps.items():
            found = _own_set(workdir, name, info, step)
            check_same(workdir / "distilled", found.config, config)
        return last
    except storage.DamagedFile as error:
        _log.warning("%s: made again from the last checkpoint", error)
        return None


def _own_set(
    workdir: pathlib.Path, name: str, info: DatasetInfo, step: int | None = None
) -> DistilledSet:
    """A set in a run's folder, of these data and, where it is known, of this step.

    Raises:
        DamagedFile: it is missing, damaged or another.
        UserError: it is another run's.
    """
    path = workdir / "distilled" / f"{name}.safetensors"
    found = distilled_set.load(path)
    place = {"step": found.step, "data": found.origin.get("digest", info.fingerprint)}
    wanted = {"step": found.step if step is None else step, "data": info.fingerprint}
    storage.check_place(path, place, wanted)
    return found
