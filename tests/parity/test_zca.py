"""ZCA against kornia's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.data import whitening
from edf_jax.data.normalisation import Normalisation
from tests.parity import reference


def _nhwc(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def test_whitening_and_its_inverse_match_the_reference(tmp_path):
    fixture = reference.load_npz("zca")
    images, whitened, restored = (_nhwc(fixture[k]) for k in ("images", "whitened", "restored"))
    normalisation = Normalisation.fit_zca(images, tmp_path, eps=float(fixture["eps"]))
    ours = normalisation.apply(images)
    mean, _ = whitening.load(str(tmp_path), normalisation.zca.digest)
    inverse = whitening.load_inverse(str(tmp_path), normalisation.zca.digest)
    errors = {
        "whitened": reference.relative_error(ours, whitened),
        "whitened, compiled": reference.relative_error(
            jax.jit(normalisation.apply)(jnp.asarray(images)), whitened
        ),
        "restored": reference.relative_error(whitening.restore(whitened, mean, inverse), restored),
        "clipped": reference.relative_error(
            normalisation.invert(jnp.asarray(whitened)), restored.clip(0, 1)
        ),
    }
    for name, error in errors.items():
        print(f"relative error {name}: {error:.2e}")
        assert error < 1e-4


def test_batches_do_not_change_the_matrix():
    images = _nhwc(reference.load_npz("zca")["images"])
    mean, matrix = whitening.fit_zca(images)
    mean_in_parts, matrix_in_parts = whitening.fit_zca(images, batch=7)
    np.testing.assert_allclose(mean_in_parts, mean, rtol=1e-6)
    np.testing.assert_allclose(matrix_in_parts, matrix, atol=1e-5)
