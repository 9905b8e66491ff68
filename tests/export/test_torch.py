"""`edf_jax.torch.TensorSet`: a set as PyTorch trains on it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import edf_jax
from edf_jax.methods.dsa import dsa
from edf_jax.runtime.errors import UserError
from tests.evaluation_data import make_dataset, make_distilled

torch = pytest.importorskip("torch", reason="needs pip install 'edf_jax[interop]'")


def _set(**config):
    return dataclasses.replace(make_distilled(make_dataset(), soft=True), config=config)


def test_items_are_the_images_and_probabilities_of_the_set():
    distilled = _set(**{"augment.strategy": "none", "evaluate.epochs": 10})
    data = edf_jax.torch.TensorSet(distilled)
    assert len(data) == 6 and data.rate == 0.05 and (data.epochs, data.rate_falls) == (11, 7)
    image, label = data[4]
    np.testing.assert_array_equal(image, distilled.images[4].transpose(2, 0, 1))
    np.testing.assert_allclose(label, jax.nn.softmax(distilled.labels[4]), rtol=1e-5)


def test_batches_are_augmented_anew_by_the_set_s_dsa():
    distilled = _set(**{"augment.strategy": "crop_flip", "augment.crop_ratio": 0.5})
    loader = torch.utils.data.DataLoader(edf_jax.torch.TensorSet(distilled, seed=3), batch_size=6)
    (first, labels), (second, _) = next(iter(loader)), next(iter(loader))
    assert first.shape == (6, 3, 8, 8) and labels.shape == (6, 3)
    assert not torch.equal(first, second)
    key = jax.random.fold_in(jax.random.key(3), 0)
    expected = dsa(key, distilled.images, strategy="crop_flip", crop_ratio=0.5)
    np.testing.assert_allclose(first, np.transpose(expected, (0, 3, 1, 2)), atol=1e-6)


def test_augmentation_can_be_left_out():
    distilled = _set()
    data = edf_jax.torch.TensorSet(distilled, augment=False)
    np.testing.assert_array_equal(data[0][0], distilled.images[0].transpose(2, 0, 1))


def test_a_loader_s_worker_is_told_that_it_cannot(monkeypatch):
    monkeypatch.setattr(edf_jax.torch, "get_worker_info", lambda: "worker 0")
    with pytest.raises(UserError, match="num_workers=0"):
        edf_jax.torch.TensorSet(_set())[0]


def test_test_images_are_normalised_as_the_set_is():
    dataset, data = make_dataset(), edf_jax.torch.TensorSet(_set())
    inputs = data.normalise(dataset.test.images)
    expected = dataset.info.normalisation.apply(dataset.test.images)
    np.testing.assert_allclose(inputs, np.transpose(expected, (0, 3, 1, 2)), rtol=1e-6)
    digits = edf_jax.torch.TensorSet(edf_jax.load("zoo:cluttered_digits24-ipc5-edf"))
    images, labels = digits.test_data()
    assert images.shape == (360, 3, 24, 24) and labels.dtype == torch.int64


def test_test_images_of_other_classes_are_refused():
    distilled = _set(**{"data.source": "cluttered_digits", "data.resolution": 8})
    distilled = dataclasses.replace(distilled, origin={"classes": ["cat", "dog"]})
    with pytest.raises(UserError, match="other classes than the set's: cat, dog"):
        distilled.test_data()
