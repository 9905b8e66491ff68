"""The teacher of the protocols that have one: a network trained on the real data, or imported.

A trained teacher is kept by the hash of everything that decides its numbers, and used again by
every run that asks for the same. Its file is a state dict in PyTorch's names and layout.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.config.resolve import flatten
from edf_jax.data import Dataset
from edf_jax.data.normalisation import default_cache_dir
from edf_jax.evaluate import crops
from edf_jax.models import Network, pretrained, torch_layout
from edf_jax.models.choose import network_for
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import preemption, processes, randomness, storage
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training import loop as training
from edf_jax.training import losses, streaming
from edf_jax.training.trained import TrainedNetwork

FORMAT = "edf_jax teacher 1"
_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_SAVES = 30.0
# Where in a run's folder an unfinished training is.
_TRAINING = "teacher"
# Test images labelled at once.
_CHUNK = 1024
# What doesn't decide a trained teacher's numbers.
_FREE = ("teacher.weights", "teacher.dir")


def teacher_network(config, info, *, num_classes: int | None = None) -> Network:
    """The teacher's architecture: `teacher.network`, with batch norm unless its name says another.

    References:
        RDED (2312.03526): its ConvNet teachers and students have batch norm.
    """
    return network_for(
        config,
        info,
        config.teacher.network,
        width=config.teacher.width,
        batch_norm=True,
        num_classes=num_classes,
    )


def settings(config, dataset: Dataset) -> dict[str, Any]:
    """All that decides a trained teacher's numbers."""
    flat = flatten(config)
    prefixes = ("teacher.", "model.") if not config.teacher.network else ("teacher.",)
    chosen = {k: v for k, v in flat.items() if k.startswith(prefixes) and k not in _FREE}
    return {
        **chosen,
        "seed": config.seed,
        "precision": config.precision,
        "dataset": dataset.info.fingerprint,
        "num_params": teacher_network(config, dataset.info).num_params,
    }


def get_teacher(
    config, dataset: Dataset, workdir: pathlib.Path, metrics: MetricsWriter | None = None
) -> TrainedNetwork:
    """The teacher that a config asks for: imported, found, or trained.

    Args:
        config: resolved.
        dataset: the real images.
        workdir: keeps the state of an unfinished training.
        metrics: gets a row per epoch of a training.

    Raises:
        UserError: `teacher.weights` can't be read, or isn't of the network.
    """
    network = teacher_network(config, dataset.info)
    if config.teacher.weights:
        return _tested(import_teacher(config, dataset.info), dataset)
    wanted = settings(config, dataset)
    key = storage.fingerprint(json.dumps(wanted, sort_keys=True).encode())[:16]
    folder = config.teacher.dir or pathlib.Path(config.data.cache_dir or default_cache_dir())
    path = pathlib.Path(folder) / "teachers" / f"{key}.safetensors"
    name = f"{network.name} trained {config.teacher.epochs} epochs on the real data"
    if not processes.from_first_process("a teacher", lambda: _is_intact(path, network, wanted)):
        theta, batch_stats = _train(config, dataset, network, workdir, key, metrics)
        trained = _tested(TrainedNetwork(network, theta, batch_stats, name), dataset)
        details = {**wanted, "accuracy": trained.accuracy}
        write_teacher(path, network, theta, batch_stats, details)
        storage.remove(workdir / _TRAINING)
    theta, batch_stats, details = _read_shared(path, network)
    return TrainedNetwork(network, theta, batch_stats, name, accuracy=details["accuracy"])


def _read_shared(path: pathlib.Path, network: Network) -> tuple[jax.Array, Any, dict[str, Any]]:
    """As `read_teacher`, by the first of processes that run together."""
    if processes.count() == 1:
        return read_teacher(path, network)

    def read() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        theta, batch_stats, details = read_teacher(path, network)
        leaves = enumerate(jax.tree.leaves((theta, batch_stats)))
        return details, {f"leaf{i}": np.asarray(leaf) for i, leaf in leaves}

    details, arrays = processes.arrays_from_first_process("a teacher's numbers", read)
    like = jax.eval_shape(network.init, jax.random.key(0))
    leaves = [jnp.asarray(arrays[f"leaf{i}"]) for i in range(len(arrays))]
    theta, batch_stats = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return theta, batch_stats, details


def import_teacher(config, info) -> TrainedNetwork:
    """The teacher of `teacher.weights`, not tested yet.

    It is of our classes, or of ImageNet's where the data has a subset of those.

    Raises:
        UserError: the file can't be read, or isn't of the network.
    """
    path = pathlib.Path(config.teacher.weights).expanduser()
    network = teacher_network(config, info)
    class_indices = None
    try:
        theta, batch_stats, _ = read_teacher(path, network)
    except UserError:
        if info.imagenet_indices is None:
            raise
        network = teacher_network(config, info, num_classes=pretrained.IMAGENET_CLASSES)
        theta, batch_stats, _ = read_teacher(path, network)
        class_indices = tuple(info.imagenet_indices)
    name = f"{network.name} imported from {path.name}"
    return TrainedNetwork(network, theta, batch_stats, name, class_indices)


def _is_intact(path: pathlib.Path, network: Network, wanted: Mapping[str, Any]) -> bool:
    """Whether a teacher is there; a damaged or another one is taken away with a warning."""
    if not path.exists():
        return False
    try:
        _, _, details = read_teacher(path, network)
        storage.check_place(path, details, json.loads(json.dumps(wanted)))
    except UserError as error:
        _log.warning("%s: trained again", error)
        path.unlink()
        return False
    return True


def write_teacher(
    path: pathlib.Path, network: Network, theta, batch_stats, details: Mapping[str, Any]
) -> None:
    """Writes a teacher as a state dict in PyTorch's names, whole or not at all.

    Args:
        path: a `.safetensors` file.
        network: its architecture.
        theta: `[P]`.
        batch_stats: {} where it has none.
        details: what made it, as JSON holds it.
    """
    tensors = torch_layout.to_state_dict(network, theta, batch_stats)
    metadata = {
        "format": FORMAT,
        "network": network.name,
        "details": json.dumps(dict(details), sort_keys=True),
    }
    # Two runs may train the same teacher at the same time; the last one stays.
    storage.save_tensors(path, tensors, metadata)


def read_teacher(path: pathlib.Path, network: Network) -> tuple[jax.Array, Any, dict[str, Any]]:
    """Parameters, batch-norm statistics and, from our own files, what made them.

    Args:
        path: a state dict as `.safetensors`, `.pth` or `.pt`.
        network: the architecture that it is of.

    Raises:
        UserError: there is no such file, it is no state dict, or of another network.
        DamagedFile: one of ours isn't what was written.
    """
    tensors, metadata = pretrained.read_state_dict(path)
    if metadata.get("format") == FORMAT:
        storage.check_tensors(path, tensors, metadata)
    theta, batch_stats = torch_layout.from_state_dict(network, tensors, source=str(path))
    return theta, batch_stats, json.loads(metadata.get("details", "{}"))


def recipe(config, network: Network, prepare: training.Prepare) -> training.Recipe:
    """How teachers are trained: SGD with momentum, random resized crops and flips."""
    options = config.teacher
    return training.Recipe(
        network,
        losses.hard_cross_entropy,
        training.sgd(options.momentum, options.weight_decay),
        lambda key, images: crops.crop_and_flip(key, images, options.smallest_crop),
        prepare,
        options.batch,
    )


def rates(config) -> np.ndarray:
    """The rate of each epoch: from `teacher.lr` to zero along half a cosine."""
    epochs = config.teacher.epochs
    return config.teacher.lr * 0.5 * (1 + np.cos(np.pi * np.arange(epochs) / epochs))


def _train(
    config, dataset: Dataset, network: Network, workdir: pathlib.Path, key_name: str, metrics
) -> tuple[jax.Array, Any]:
    """Trains a teacher, or goes on where an earlier sitting stopped."""
    data = config.data
    images, prepare = streaming.place(
        dataset.train.images, dataset.info.normalisation, data.on_device
    )
    how = recipe(config, network, prepare)
    train = streaming.make_epoch(how, images, dataset.train.labels, workers=data.workers)
    key = randomness.stream(config.seed, "teacher")
    state = jax.jit(functools.partial(training.initial_state, how))(jax.random.fold_in(key, 0))
    saved = workdir / _TRAINING
    state, start = _restore(saved, key_name, state)
    if metrics is not None:  # Of an earlier sitting or teacher; they are written again.
        metrics.truncate_after("teacher", start)
    schedule = rates(config)

    def epoch(state, index: int):
        epoch_key = jax.random.fold_in(jax.random.fold_in(key, 1), index)
        states = jax.tree.map(lambda x: x[None], state)
        states, loss = train(states, epoch_key[None], jnp.float32(schedule[index]))
        return jax.tree.map(lambda x: x[0], states), loss[0]

    last_save = time.monotonic()
    with Progress("teacher", config.teacher.epochs, "epoch", start=start) as bar:
        for index in range(start, config.teacher.epochs):
            state, loss = epoch(state, index)
            value = float(loss)
            if metrics is not None:
                metrics.write(index + 1, "teacher", loss=value, rate=float(schedule[index]))
            bar.update(loss=value)
            asked = preemption.asked()
            if asked or time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
                details = {"teacher": key_name, "epoch": index + 1}
                storage.save_arrays(saved, _leaves(state), details)
                last_save = time.monotonic()
            if asked:
                preemption.stop()
    return state.theta, state.batch_stats


def _restore(saved: pathlib.Path, key_name: str, like: training.TrainState):
    """The state of an earlier sitting and the epochs it had done; `like` and 0 where none is."""

    def read() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return storage.load_details(saved), storage.load_arrays(saved)

    try:
        details, arrays = processes.arrays_from_first_process("a teacher's training", read)
    except storage.DamagedFile:
        return like, 0
    if details["teacher"] != key_name:
        return like, 0
    leaves = [jnp.asarray(arrays[name]) for name in _leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), details["epoch"]


def _leaves(state: training.TrainState) -> dict[str, np.ndarray]:
    return {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}


def _tested(teacher: TrainedNetwork, dataset: Dataset) -> TrainedNetwork:
    """The teacher with its accuracy on the real test images."""
    predict = jax.jit(lambda arrays, inputs: jnp.argmax(teacher.logits(arrays, inputs), axis=-1))
    right, count = 0, len(dataset.test.labels)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        inputs = dataset.info.normalisation.apply(np.asarray(dataset.test.images[part]))
        found = np.asarray(predict(teacher.arrays, inputs))
        right += int((found == dataset.test.labels[part]).sum())
    return dataclasses.replace(teacher, accuracy=100 * right / count)

