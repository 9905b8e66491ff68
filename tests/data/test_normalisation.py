"""From pixels to network inputs and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.data import Normalisation, load_dataset, normalisation
from edf_jax.runtime.errors import UserError
from tests.data_layouts import data_config, photograph


@pytest.fixture
def images():
    return np.stack([photograph(i, 6, 5) for i in range(40)])


def test_published_constants():
    x = normalisation.IMAGENET.apply(np.full((1, 1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(x[0, 0, 0], (np.ones(3) - [0.485, 0.456, 0.406])
                               / [0.229, 0.224, 0.225], rtol=1e-6)  # fmt: skip
    assert normalisation.CIFAR.mean == (0.4914, 0.4822, 0.4465)
    assert normalisation.CIFAR.std == (0.2023, 0.1994, 0.2010)


def test_invert_undoes_apply(images):
    x = normalisation.IMAGENET.apply(images)
    assert x.dtype == np.float32
    np.testing.assert_allclose(normalisation.IMAGENET.invert(x), images / 255, atol=1e-6)


def test_bytes_and_unit_floats_agree_compiled_or_not(images):
    apply = normalisation.CIFAR.apply
    expected = apply(images)
    np.testing.assert_allclose(apply((images / 255).astype(np.float32)), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(apply)(jnp.asarray(images)), expected, atol=1e-6)


def test_double_precision_stays_double():
    with jax.enable_x64(True):
        x = normalisation.IMAGENET.apply(jnp.full((1, 2, 2, 3), 0.5, jnp.float64))
        assert x.dtype == jnp.float64
        assert normalisation.IMAGENET.invert(x).dtype == jnp.float64


def test_measured_constants_are_those_of_the_images(images):
    measured = Normalisation.measured(images, batch=7)
    np.testing.assert_allclose(measured.mean, (images / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(measured.std, (images / 255).std((0, 1, 2)), atol=1e-4)
    assert Normalisation.measured(np.zeros((3, 2, 2, 1), np.uint8)).std == (1.0,)


def test_json_keeps_everything(images, tmp_path):
    for original in (normalisation.SVHN, Normalisation.fit_zca(images, tmp_path)):
        assert Normalisation.from_json(original.to_json(), tmp_path) == original
        assert hash(Normalisation.from_json(original.to_json(), tmp_path)) == hash(original)


def test_whitened_training_images_are_nearly_uncorrelated(images, tmp_path):
    white = Normalisation.fit_zca(images, tmp_path, eps=1e-6)
    x = white.apply(images).reshape(len(images), -1)
    assert abs(np.linalg.matrix_rank(np.cov(x.T)) - np.trace(np.cov(x.T))) < 2.0
    np.testing.assert_allclose(white.invert(white.apply(images)), images / 255, atol=2e-3)


def test_a_missing_or_damaged_matrix_is_named(images, tmp_path):
    fitted = Normalisation.fit_zca(images, tmp_path)
    elsewhere = Normalisation.from_json(fitted.to_json(), tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"zca_.*\.npy is not in .*elsewhere"):
        elsewhere.apply(images)
    (path,) = tmp_path.glob("zca_*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        fitted.apply(images)
    path.write_bytes(content[:50])
    with pytest.raises(UserError, match="damaged"):
        fitted.apply(images)


def test_zca_of_a_dataset_is_fitted_once_and_named_by_its_digest(tmp_path, monkeypatch):
    config = data_config(source="cluttered_digits", resolution=8, zca=True, cache_dir=str(tmp_path))
    first = load_dataset(config)
    monkeypatch.setattr(Normalisation, "fit_zca", None)
    second = load_dataset(config)
    assert first.info == second.info
    digest = first.info.normalisation.zca.digest
    assert (tmp_path / f"zca_{digest[:32]}.npy").exists()
    plain = load_dataset(data_config(source="cluttered_digits", resolution=8))
    assert plain.info.fingerprint != first.info.fingerprint
    x = first.info.normalisation.apply(first.train.images[:50])
    back = first.info.normalisation.invert(x)
    np.testing.assert_allclose(back, first.train.images[:50] / 255, atol=1e-4)
