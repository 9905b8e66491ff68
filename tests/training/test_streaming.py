"""Images on the host give what images on the device give."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.data import Dataset, Split
from edf_jax.distill import initial_set
from edf_jax.evaluate import stage
from edf_jax.evaluate.teacher import get_teacher
from edf_jax.experts import difficulty
from edf_jax.experts.train import open_experts, train_experts
from edf_jax.methods import dsa
from edf_jax.models import build_network
from edf_jax.models.choose import network_for
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import devices
from edf_jax.training import loop as training
from edf_jax.training import losses, streaming
from tests import tiny

# Chunks of one batch of each of two networks, and of three.
_BATCH_BYTES = 6 * 8 * 8 * 3
_CHUNKS = (1, 2 * 3 * _BATCH_BYTES)


def _recipe(norm="instance", gsam=None, batch=6):
    network = build_network(
        "ConvNet", num_classes=3, image_shape=(8, 8, 3), width=4, depth=1, norm=norm
    )
    return training.Recipe(
        network,
        losses.hard_cross_entropy,
        training.sgd(0.9, 5e-4),
        lambda key, images: dsa.dsa(key, images, strategy="color_crop"),
        tiny.dataset().info.normalisation.apply,
        batch,
        gsam,
    )


def _on_disk(images: np.ndarray, folder) -> np.memmap:
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="r")


def _same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("norm", "gsam"),
    [("instance", training.Gsam(0.01, 0.3, True)), ("batch", None)],
    ids=["gsam", "batch norm"],
)
def test_epochs_of_two_networks_are_the_same_bits_whatever_the_chunks(norm, gsam, tmp_path):
    """40 images in batches of 6: the last is a remainder of 4."""
    train = tiny.dataset().train
    recipe = _recipe(norm, gsam)
    keys = jax.random.split(jax.random.key(1), 2)
    start = jax.vmap(lambda key: training.initial_state(recipe, key))(keys)
    rate = np.float32(0.05)

    def two_epochs(images, **options):
        epoch = streaming.make_epoch(recipe, images, train.labels, **options)
        states, _ = epoch(start, keys, rate)
        later = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return epoch(states, later, rate)

    whole, loss = two_epochs(jnp.asarray(train.images))
    assert not np.array_equal(whole.theta[0], whole.theta[1])
    images = _on_disk(train.images, tmp_path)
    for size in _CHUNKS:
        streamed, streamed_loss = two_epochs(images, workers=2, chunk_bytes=size)
        _same(whole, streamed)
        np.testing.assert_allclose(loss, streamed_loss, rtol=1e-6)


def test_an_epoch_is_that_of_the_training_loop():
    train = tiny.dataset().train
    recipe = _recipe()
    key = jax.random.key(2)
    state = training.initial_state(recipe, key)
    rate = jnp.float32(0.05)
    stretch = training.Epochs(jnp.arange(3, 4), rate[None], jnp.zeros(1, bool))
    expected, _ = jax.jit(
        lambda state: training.train_epochs(
            recipe, state, jnp.asarray(train.images), jnp.asarray(train.labels), stretch, key
        )
    )(state)
    epoch = streaming.make_epoch(recipe, train.images, train.labels, chunk_bytes=1)
    states = jax.tree.map(lambda x: x[None], state)
    actual, _ = epoch(states, jax.random.fold_in(key, 3)[None], rate)
    np.testing.assert_allclose(actual.theta[0], expected.theta, rtol=1e-5, atol=1e-6)


def test_an_epoch_of_some_images_reads_no_others():
    train = tiny.dataset().train
    recipe = _recipe()
    shown = difficulty.shown(np.arange(0, 28, 2, dtype=np.int32), 40, pads=True)
    keys = jax.random.split(jax.random.key(1), 2)
    start = jax.vmap(lambda key: training.initial_state(recipe, key))(keys)

    def moved(images, **options):
        epoch = streaming.make_epoch(
            recipe, images, train.labels, order=difficulty.shuffled, **options
        )
        return epoch(start, keys, np.float32(0.05), shown)

    whole, loss = moved(jnp.asarray(train.images))
    for size in _CHUNKS:
        streamed, streamed_loss = moved(train.images, chunk_bytes=size)
        _same(whole, streamed)
        np.testing.assert_allclose(loss, streamed_loss, rtol=1e-6)


def test_classes_and_accuracies_are_the_same_whatever_the_chunks(tmp_path):
    test = tiny.dataset(test=600).test
    recipe = _recipe("batch")
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.vmap(lambda key: training.initial_state(recipe, key))(keys)
    expected = streaming.make_classify(recipe.network, recipe.prepare)(
        states.theta, states.batch_stats, jnp.asarray(test.images)
    )
    assert expected.shape == (2, 600)
    images = _on_disk(test.images, tmp_path)
    right = np.mean(np.asarray(expected) == test.labels, axis=1)
    for size in (1, 2 * 256 * 8 * 8 * 3):
        options = {"workers": 2, "chunk_bytes": size}
        classify = streaming.make_classify(recipe.network, recipe.prepare, **options)
        _same(expected, classify(states.theta, states.batch_stats, images))
        accuracy = streaming.make_accuracy(recipe.network, recipe.prepare, **options)
        np.testing.assert_allclose(accuracy(states, images, test.labels), right, rtol=1e-6)


def test_chunks_hold_every_image_once_and_are_of_one_size():
    images = np.arange(22, dtype=np.uint8).reshape(22, 1, 1, 1)
    found = list(streaming.chunks(images, batch=4, chunk_bytes=8))
    assert [len(chunk) for _, chunk in found] == [8, 8, 8]
    positions = np.concatenate([positions for positions, _ in found])
    np.testing.assert_array_equal(positions[:22], np.arange(22))
    for positions, chunk in found:
        np.testing.assert_array_equal(chunk.ravel(), positions)


@pytest.mark.parametrize(
    ("room", "choice", "there"),
    [(3 * 7680, "auto", True), (2 * 7680, "auto", False), (None, "auto", True)]
    + [(10**9, "no", False), (1, "yes", True)],
)
def test_images_are_held_on_the_device_up_to_a_third_of_its_memory(
    monkeypatch, room, choice, there
):
    monkeypatch.setattr(devices, "local_device", lambda: devices.Device("toy", 1, room))
    dataset = tiny.dataset()
    images, prepare = streaming.place(dataset.train.images, dataset.info.normalisation, choice)
    assert isinstance(images, jax.Array) == there
    inputs = dataset.info.normalisation.apply(dataset.train.images)
    np.testing.assert_allclose(prepare(images), inputs, atol=1e-6)


def _everything(choice: str, folder, dataset: Dataset):
    """Experts, the first set, a teacher and references, with images held or streamed."""
    config = tiny.config(
        **{
            "data.on_device": choice,
            "data.workers": 2,
            "data.cache_dir": str(folder),
            "experts.num": 2,
            "experts.epochs": 3,
            "experts.schedule": "pad",
            "experts.difficulty_networks": 1,
            "experts.difficulty_epochs": 1,
            "distill.max_start_epoch": 1,
            "teacher.epochs": 1,
            "teacher.batch": 16,
            "evaluate.full_epochs": 1,
            "evaluate.epochs": 1,
            "evaluate.num": 1,
        }
    )
    network = network_for(config, dataset.info)
    store = open_experts(config, dataset, folder)
    with MetricsWriter(folder, tensorboard=False) as metrics:
        accuracies = train_experts(config, dataset, store, metrics)
    first = initial_set.initialise(config, dataset, network, store)
    teacher = get_teacher(config, dataset, folder)
    full = stage.full_data(config, dataset, network)
    during = stage.periodic(config, dataset)(first, 0)
    return (
        [store.snapshot(expert, epoch) for expert in range(2) for epoch in range(4)],
        accuracies,
        (first.images, first.labels),
        (teacher.theta, teacher.batch_stats, teacher.accuracy),
        (full.values, during.values),
    )


def test_a_run_with_images_on_the_host_gives_the_same_numbers(tmp_path):
    dataset = tiny.dataset()
    (tmp_path / "yes").mkdir()
    (tmp_path / "no").mkdir()
    mapped = Split(_on_disk(dataset.train.images, tmp_path), dataset.train.labels)
    held = _everything("yes", tmp_path / "yes", dataset)
    streamed = _everything("no", tmp_path / "no", dataclasses.replace(dataset, train=mapped))
    _same(held, streamed)
