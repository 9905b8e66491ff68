"""The built-in data."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edf_jax.data import cluttered_digits, load_dataset
from edf_jax.runtime.errors import UserError
from tests.data_layouts import data_config


def _make(**changes):
    usual = {
        "resolution": 16,
        "difficulty": 0.5,
        "composites": 1,
        "test_composites": 1,
        "seed": 0,
    }
    return cluttered_digits.make_splits(**usual | changes)


def test_a_seed_gives_the_same_bytes_on_every_machine():
    sources = "bffe5144"
    if not cluttered_digits.sources_digest().startswith(sources):
        pytest.skip("this Pillow decodes scikit-learn's photographs to other pixels")
    (train, _), (test, _) = _make(resolution=32)
    digest = hashlib.sha256(train.tobytes() + test.tobytes()).hexdigest()
    assert digest.startswith("1253c0f3")


def test_other_seeds_give_other_pictures_and_another_split():
    (first, first_labels), _ = _make()
    (second, second_labels), _ = _make(seed=1)
    assert (first != second).any()
    assert (first_labels != second_labels).any()


def test_more_composites_leave_the_first_ones_as_they_are():
    (once, _), (test_once, _) = _make()
    (twice, labels), (test_twice, _) = _make(composites=2, test_composites=3)
    np.testing.assert_array_equal(twice[: len(once)], once)
    np.testing.assert_array_equal(test_twice[: len(test_once)], test_once)
    assert (twice[len(once) :] != once).any()
    assert len(labels) == len(twice) == 2874 and len(test_twice) == 1080


def test_no_digit_is_in_both_splits_and_classes_keep_their_shares():
    from sklearn.datasets import load_digits

    labels = load_digits().target
    train, test = cluttered_digits.split_by_class(labels, seed=0)
    assert len(train) == 1437 and len(test) == 360
    assert sorted([*train, *test]) == list(range(len(labels)))
    share = np.bincount(labels[test]) / np.bincount(labels)
    assert np.abs(share - 0.2).max() < 0.01


@pytest.mark.parametrize("resolution", [8, 17, 48])
def test_any_resolution(resolution):
    (train, labels), (test, _) = _make(resolution=resolution)
    assert train.shape == (1437, resolution, resolution, 3) and train.dtype == np.uint8
    assert test.shape == (360, resolution, resolution, 3)
    assert labels.dtype == np.int32 and set(labels) == set(range(10))


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_every_digit_contrasts_with_what_it_covers(difficulty):
    generator = np.random.default_rng(0)
    # The hardest for it: backgrounds of every brightness, noise, edges.
    level = np.linspace(0, 255, 200)[:, None, None, None]
    noise = generator.uniform(-80, 80, (200, 12, 12, 3))
    background = np.clip(level + noise, 0, 255).astype(np.int64)
    opacity = generator.integers(0, 257, (200, 12, 12))
    contrast = cluttered_digits.minimum_contrast(difficulty)
    target = cluttered_digits._stand_out(background, opacity, generator.random((200, 3)), contrast)
    colour = cluttered_digits._colour(generator.random((200, 3)), target)
    weights = np.array([0.299, 0.587, 0.114])
    covered = np.sum((background @ weights) * opacity, (1, 2)) / opacity.sum((1, 2))
    assert np.abs(colour @ weights - covered).min() >= contrast


def test_difficulty_shrinks_digits_and_busies_backgrounds():
    digits, _, photographs = cluttered_digits._load_sources()
    atlas = cluttered_digits._Atlas(photographs)
    draws = np.random.default_rng(0).random((200, 5))
    areas, bustles = [], []
    for difficulty in (0.0, 0.25, 0.5, 0.75, 1.0):
        opacity = cluttered_digits._opacity(digits[:200], draws[:, :3], 32, difficulty)
        areas.append(opacity.mean())
        crops = cluttered_digits._background(draws, atlas, 32, difficulty)
        bustles.append(np.abs(np.diff(crops, axis=1)).mean())
    assert (np.diff(areas) < 0).all()
    assert (np.diff(bustles) > 0).all()


@pytest.mark.parametrize(
    "wrong",
    [{"difficulty": 1.5}, {"difficulty": -0.1}, {"resolution": 4}, {"composites": 0},
     {"test_composites": 0}],
)  # fmt: skip
def test_impossible_settings_are_named(wrong):
    (key,) = wrong
    with pytest.raises(UserError, match=f"data.{key}"):
        load_dataset(data_config(source="cluttered_digits", **wrong))


def test_it_comes_through_the_common_interface():
    calls = []
    config = data_config(source="cluttered_digits", composites=2)
    dataset = load_dataset(config, progress=lambda done, total: calls.append((done, total)))
    assert len(dataset.train) == 2874 and len(dataset.test) == 360
    assert dataset.info.image_shape == (16, 16, 3)
    assert dataset.info.num_classes == 10 and dataset.info.class_names[3] == "three"
    assert calls[-1] == (3234, 3234)
    again = load_dataset(config)
    other = load_dataset(data_config(source="cluttered_digits", composites=2, difficulty=0.6))
    assert dataset.info.fingerprint == again.info.fingerprint != other.info.fingerprint


def test_opacity_tells_where_the_digits_are():
    (images, _), _ = _make(composites=2, resolution=24)
    positions = np.array([3, 1500, 1437 + 3, 2000])
    opacity = cluttered_digits.training_opacity(
        positions, resolution=24, difficulty=0.5, composites=2, seed=0
    )
    assert opacity.shape == (4, 24, 24) and opacity.min() == 0 and opacity.max() == 1
    for image, covered in zip(images[positions], opacity):
        # The digit is of one colour, the background isn't.
        assert len(np.unique(image[covered == 1], axis=0)) == 1
        assert len(np.unique(image[covered == 0], axis=0)) > 10
