"""Distilling images that are stored as something else than their pixels."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax import distilled_set
from edf_jax.distill.initial_set import initialise
from edf_jax.matching.iteration import Learnable, initial_state, make_iteration
from edf_jax.methods import family
from edf_jax.training.trained import TrainedNetwork
from edf_jax.tune.measure import Gradients
from tests import tiny

_GRID = {"distill.parametrisation": "multi_formation", "distill.parametrisation_factor": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.made_up_experts(tmp_path_factory.mktemp("experts"))


def _initial(config) -> distilled_set.DistilledSet:
    """A set to start from: one stored image per class, and soft labels of the decoded ones."""
    stored = family.parametrisation(config.distill)
    real = tiny.initial_set(ipc=stored.images)
    parameters = tiny.initial_set(1, ipc=1).parameters
    return dataclasses.replace(real, parameters=parameters, parametrisation=stored)


def _cam(store) -> TrainedNetwork:
    return TrainedNetwork(tiny.network(), jnp.asarray(store.snapshot(0, 4)), None, "an expert")


def _gradient(config, parameters, labels, store, weight):
    """What the images' parameters of one iteration move against: at rate 1 and from rest."""
    iteration = make_iteration(config, tiny.network(), len(labels))
    values = Learnable(jnp.asarray(parameters), jnp.asarray(labels), jnp.float32(0.05))
    pair = store.pair(0, 1, 2)
    state, _ = iteration(
        initial_state(config.distill, values), pair.start[None], pair.target[None],
        jnp.asarray(weight), jax.random.key(3),
    )  # fmt: skip
    return np.asarray(values.images - state.values.images)


@pytest.mark.parametrize("name", ["multi_formation", "frequency", "mirror"])
def test_the_weighed_gradient_of_the_decoded_images_reaches_the_parameters(name, store):
    at_rest = {"distill.lr_img": 1.0, "distill.momentum_img": 0.0, "distill.threshold": 0.0}
    config = tiny.config("edf", **at_rest, **{"distill.parametrisation": name})
    stored = family.parametrisation(config.distill)
    initial = _initial(config)
    count, rng = len(initial.labels), np.random.default_rng(0)
    weight = rng.uniform(1, 2, (count, tiny.SIDE, tiny.SIDE, 1)).astype(np.float32)
    found = _gradient(config, initial.parameters, initial.labels, store, weight)
    # The same students see the same images, stored as pixels.
    of_images = _gradient(
        tiny.config("edf", **at_rest), initial.images, initial.labels, store, np.ones_like(weight)
    )
    size = initial.parameters[0].size
    units = np.eye(size, dtype=np.float32).reshape(size, *initial.parameters.shape[1:])
    decoded = np.asarray(stored.decode(units), np.float64).reshape(size, -1)
    weighed = (of_images.astype(np.float64) * weight).reshape(len(initial.parameters), -1)
    expected = (weighed @ decoded.T).reshape(found.shape)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


class _Killed(BaseException):
    pass


def test_a_killed_run_of_grids_continues_bit_identically(tmp_path, store):
    config = tiny.config("edf", **_GRID, **{"distill.average": 0.9})
    run = {"initial": _initial(config), "cam": _cam(store)}
    expected = tiny.run_distillation(config, tmp_path / "whole", store, **run)

    def kill_at_3(distilled, iteration):
        if iteration == 3:
            raise _Killed
        return tiny.evaluate(distilled, iteration)

    killed = tmp_path / "killed"
    with pytest.raises(_Killed):
        tiny.run_distillation(config, killed, store, on=kill_at_3, **run)
    found = tiny.run_distillation(config, killed, store, **run)
    assert found.parameters.shape == (3, 8, 8, 3) and found.images.shape == (12, 8, 8, 3)
    np.testing.assert_array_equal(found.parameters, expected.parameters)
    assert not np.array_equal(found.parameters, run["initial"].parameters)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert tiny.rows(killed) == tiny.rows(tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "distilled").glob("*.safetensors")):
        same = distilled_set.load(killed / "distilled" / path.name)
        assert same.parametrisation == run["initial"].parametrisation
        np.testing.assert_array_equal(same.parameters, distilled_set.load(path).parameters)


@pytest.mark.parametrize("method", ["mtt", "tesla"])
def test_methods_with_other_labels_distil_grids_too(method, tmp_path, store):
    config = tiny.config(method, **_GRID, **{"distill.iterations": 2})
    initial = _initial(config)
    found = tiny.run_distillation(config, tmp_path, store, initial=initial)
    assert not np.array_equal(found.parameters, initial.parameters)
    assert found.labels.shape == (12, 3) and np.isfinite(found.labels).all()


def test_rates_are_found_for_what_is_stored(store):
    config = tiny.config("edf", **_GRID, **{"distill.threshold": 0.0})
    initial = _initial(config)
    found = Gradients(config, tiny.network(), initial, store, [(0, 0), (1, 1)])
    start = Learnable(*map(jnp.asarray, (initial.parameters, initial.labels, jnp.float32(0.05))))
    loss, gradients = found.at(start, 0)
    assert np.isfinite(loss) and gradients.images.shape == initial.parameters.shape
    rms = float(np.sqrt(np.mean(np.square(gradients.images))))
    assert found.start(1)[0] == pytest.approx(rms) and rms > 0


@pytest.mark.parametrize("init", ["real", "noise"])
@pytest.mark.parametrize("name", ["multi_formation", "mirror"])
def test_a_run_starts_from_as_many_real_images_as_it_stores(init, name, store):
    parametrisation = {"distill.parametrisation": name, "distill.init": init}
    config, data = tiny.config("edf", **parametrisation), tiny.dataset()
    stored = family.parametrisation(config.distill)
    initial = initialise(config, data, tiny.network(), store)
    assert initial.parameters.shape == (6, tiny.SIDE, tiny.SIDE, 3)
    assert initial.labels.shape == (6 * stored.images, 3)
    assert initial.images.shape == (6 * stored.images, tiny.SIDE, tiny.SIDE, 3)
    if init == "noise":
        own = np.repeat(np.arange(3), 2 * stored.images)
        np.testing.assert_array_equal(initial.classes, own)
        return
    # Shrinking halves a side here, which keeps the mean but for what lies at the edges.
    real = np.asarray(data.info.normalisation.apply(data.train.images)).mean((1, 2, 3))
    began_as = initial.parameters.mean((1, 2, 3))
    if name == "multi_formation":
        began_as = initial.parameters.reshape(6, 2, 4, 2, 4, 3).mean((2, 4, 5)).ravel()
    nearest = np.abs(began_as[:, None] - real).min(axis=1)
    assert nearest.max() < 0.01 and len(set(began_as.tolist())) == 6 * stored.real
