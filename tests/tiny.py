"""Small problems that tests of the loops share: a config, made-up images, made-up experts."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from edf_jax.config.resolve import parse_variant, resolve
from edf_jax.data import Dataset, DatasetInfo, Normalisation, Split
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.models import Network, build_network
from edf_jax.models.convolution import choose_convolution
from edf_jax.runs.metrics import MetricsWriter, read_metrics

SIDE, CLASSES, WIDTH = 8, 3, 4
_VALUES: dict[str, Any] = {
    "data.resolution": SIDE,
    "model.width": WIDTH,
    "model.depth": 1,
    "experts.num": 3,
    "experts.epochs": 4,
    "experts.batch": 16,
    "experts.lr": 0.1,
    "distill.ipc": 2,
    "distill.iterations": 6,
    "distill.syn_steps": 3,
    "distill.batch_syn": 4,
    "distill.expert_epochs": 2,
    "distill.current_max_start_epoch": 1,
    "distill.max_start_epoch": 3,
    "distill.expansion_end": 4,
    "distill.lr_img": 10.0,
    "distill.lr_y": 1.0,
    "distill.lr_lr": 1e-4,
    "distill.lr_teacher": 0.05,
    "distill.threshold": 50.0,
    "distill.eval_every": 3,
    "distill.save_every": 2,
    "cam.every": 2,
    "evaluate.num": 2,
    "evaluate.epochs": 2,
    "evaluate.baseline_rates": "0.01",
    "log.tensorboard": False,
}
_NORMALISATION = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
_NAMES = tuple("abcdefghij"[:CLASSES])


def config(method: str = "edf", **values: Any):
    """A resolved config of a run that takes seconds; a method's own numbers stand."""
    made = parse_variant("tiny", {"tiny": _VALUES}, "tests")
    return resolve(made, **{"method": method, **values})


def network() -> Network:
    """What `config` names, for the images here."""
    return build_network(
        "ConvNet",
        num_classes=CLASSES,
        image_shape=(SIDE, SIDE, 3),
        width=WIDTH,
        depth=1,
        convolution=choose_convolution("auto"),
    )


def dataset(seed: int = 0, train: int = 40, test: int = 12) -> Dataset:
    """Images whose mean brightness tells the class, under noise."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> Split:
        labels = (np.arange(count) % CLASSES).astype(np.int32)
        centres = 70 + 50 * labels[:, None, None, None]
        images = centres + rng.normal(0, 40, (count, SIDE, SIDE, 3))
        return Split(images.clip(0, 255).astype(np.uint8), labels)

    info = DatasetInfo("shades", _NAMES, (SIDE, SIDE, 3), _NORMALISATION, None, f"shades {seed}")
    return Dataset(split(train), split(test), info)


def initial_set(seed: int = 0, ipc: int = 2) -> DistilledSet:
    """A set to start from, with soft labels."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(CLASSES), ipc)
    labels = 2 * np.eye(CLASSES)[classes] + rng.normal(0, 0.3, (len(classes), CLASSES))
    images = rng.standard_normal((len(classes), SIDE, SIDE, 3))
    return DistilledSet(
        images.astype(np.float32), labels.astype(np.float32), 0.05, _NAMES, _NORMALISATION
    )


def with_hard_labels(initial: DistilledSet) -> DistilledSet:
    """The same images with one-hot labels."""
    return dataclasses.replace(initial, labels=hard_labels(initial.classes, CLASSES))


def made_up_experts(folder: pathlib.Path, *, num: int = 3, epochs: int = 4) -> TrajectoryStore:
    """A store of experts that walk at random from their initialisations."""
    rng = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), num)
    theta = np.stack([np.asarray(network().init(key)[0]) for key in keys])
    store = TrajectoryStore(folder)
    store.create({"settings": {}, "num_experts": num, "group_size": num})
    for epoch in range(epochs + 1):
        store.write(0, epoch, theta, {}, {"test_accuracy": [50.0] * num, "loss": [1.0] * num})
        theta = (theta + 0.01 * rng.standard_normal(theta.shape)).astype(np.float32)
    return store


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Stands for an evaluation's result."""

    mean: float
    std: float = 0.0
    values: tuple[float, ...] = (0.0,)
    num_images: int = 1
    held_out: tuple[float, ...] = ()


def evaluate(distilled: DistilledSet, iteration: int) -> Accuracy:
    """A number that only the images decide."""
    del iteration
    return Accuracy(float(np.abs(distilled.images).mean()))


def rows(workdir: pathlib.Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if k not in ("time", "check")}
        for row in read_metrics(workdir, stage)
    ]


def run_distillation(
    configured, workdir: pathlib.Path, store: TrajectoryStore, *, initial=None, cam=None, on=None
):
    """Runs or continues `distill` in a folder; returns the last set.

    `on` stands for the evaluation, `cam` for the network of the maps.
    """
    from edf_jax.distill.loop import distill

    with MetricsWriter(workdir, tensorboard=configured.log.tensorboard) as metrics:
        return distill(
            configured,
            network(),
            initial or initial_set(),
            store,
            cam,
            on or evaluate,
            metrics,
            workdir,
        )


def messages(caplog, level: int = logging.WARNING) -> list[str]:
    """What was logged at a level or above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]
