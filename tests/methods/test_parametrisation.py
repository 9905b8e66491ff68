"""How images are stored and decoded, against the definitions written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.methods.family import PARAMETRISATIONS

# Sides that no factor here divides, and that differ.
_SHAPE = (7, 5, 2)


def _bilinear(size: int, large: int) -> np.ndarray:
    """`[large, size]`: half-pixel centres, the outermost pixels repeated outside."""
    at = (np.arange(large) + 0.5) * size / large - 0.5
    low = np.floor(at).astype(int)
    matrix = np.zeros((large, size))
    for row, (first, share) in enumerate(zip(low, at - low)):
        matrix[row, np.clip(first, 0, size - 1)] += 1 - share
        matrix[row, np.clip(first + 1, 0, size - 1)] += share
    return matrix


def _cuts(side: int, factor: int) -> list[range]:
    """Pieces of a side that differ by a pixel at most, the larger first."""
    sizes = [side // factor + (i < side % factor) for i in range(factor)]
    return [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(factor)]


def _cosines(side: int) -> np.ndarray:
    """The orthonormal DCT-II `[frequency, place]`."""
    u, x = np.mgrid[:side, :side]
    basis = np.cos(np.pi * u * (2 * x + 1) / (2 * side)) * np.sqrt(2 / side)
    basis[0] /= np.sqrt(2)
    return basis


def _tiles_of(image: np.ndarray, factor: int) -> list[np.ndarray]:
    height, width, _ = image.shape
    return [
        np.einsum(
            "yh,xw,hwc->yxc",
            _bilinear(len(rows), height),
            _bilinear(len(columns), width),
            image[rows.start : rows.stop, columns.start : columns.stop],
        )
        for rows in _cuts(height, factor)
        for columns in _cuts(width, factor)
    ]


def _frequencies_of(image: np.ndarray, factor: int) -> list[np.ndarray]:
    height, width, channels = image.shape
    places = sorted(
        ((u, v) for u in range(height) for v in range(width)),
        key=lambda uv: ((uv[0] / height) ** 2 + (uv[1] / width) ** 2, uv),
    )
    flat, decoded = image.reshape(-1, channels), []
    for cut in _cuts(height * width, factor):
        spectrum = np.zeros((height, width, channels))
        for (u, v), number in zip(places, cut):
            spectrum[u, v] = flat[number]
        decoded.append(np.einsum("uy,vx,uvc->yxc", _cosines(height), _cosines(width), spectrum))
    return decoded


_DEFINITIONS = {
    "pixels": lambda image, factor: [image],
    "multi_formation": _tiles_of,
    "frequency": _frequencies_of,
    "mirror": lambda image, factor: [image, image[:, ::-1]],
}
_CASES = [
    ("pixels", 1), ("multi_formation", 1), ("multi_formation", 2), ("multi_formation", 3),
    ("frequency", 2), ("frequency", 3), ("mirror", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "factor"), _CASES)
def test_decoding_and_its_gradient_are_as_defined(name, factor):
    stored = PARAMETRISATIONS[name](factor)
    rng = np.random.default_rng(0)
    parameters = rng.standard_normal((3, *_SHAPE))
    expected = np.concatenate([_DEFINITIONS[name](image, factor) for image in parameters])
    assert len(expected) == 3 * stored.images
    # The definition is linear, so its values at unit vectors are its whole derivative.
    units = np.eye(parameters[0].size).reshape(-1, *_SHAPE)
    columns = np.stack([np.ravel(_DEFINITIONS[name](unit, factor)) for unit in units])
    with jax.enable_x64(True):
        images, pull_back = jax.vjp(stored.decode, jnp.asarray(parameters))
        assert images.dtype == jnp.float64
        np.testing.assert_allclose(images, expected, atol=1e-12)
        towards = rng.standard_normal(expected.shape)
        (gradient,) = pull_back(jnp.asarray(towards))
    flat = towards.reshape(3, -1) @ columns.T
    np.testing.assert_allclose(gradient, flat.reshape(parameters.shape), atol=1e-12)


@pytest.mark.parametrize(("name", "factor"), _CASES)
def test_a_stored_image_has_as_many_numbers_as_pixels(name, factor):
    stored = PARAMETRISATIONS[name](factor)
    images = np.random.default_rng(1).standard_normal((2 * stored.real, *_SHAPE))
    parameters = np.asarray(stored.encode(images.astype(np.float32)))
    assert parameters.shape == (2, *_SHAPE)
    assert stored.decode(parameters).shape == (2 * stored.images, *_SHAPE)
    assert stored.images % stored.real == 0


def test_a_grid_of_one_tile_is_the_image_bit_for_bit():
    images = np.random.default_rng(2).standard_normal((4, *_SHAPE)).astype(np.float32)
    stored = PARAMETRISATIONS["multi_formation"](1)
    np.testing.assert_array_equal(stored.encode(images), images)
    np.testing.assert_array_equal(stored.decode(images), images)


def test_shrunk_images_lie_in_their_tiles_in_order():
    stored = PARAMETRISATIONS["multi_formation"](2)
    images = np.arange(8, dtype=np.float32)[:, None, None, None] * np.ones(_SHAPE, np.float32)
    grids = np.asarray(stored.encode(images))
    np.testing.assert_allclose(grids[1, :4, :3], 4, rtol=1e-6)
    np.testing.assert_allclose(grids[1, 4:, 3:], 7, rtol=1e-6)
    np.testing.assert_allclose(stored.decode(grids), images, rtol=1e-6, atol=1e-6)


def test_frequencies_that_are_stored_come_back():
    stored = PARAMETRISATIONS["frequency"](3)
    parameters = np.random.default_rng(3).standard_normal((2, *_SHAPE)).astype(np.float32)
    np.testing.assert_allclose(stored.encode(stored.decode(parameters)), parameters, atol=1e-6)
    constant = np.full((3, *_SHAPE), 2.5, np.float32)
    np.testing.assert_allclose(stored.decode(stored.encode(constant)), constant, atol=1e-6)
