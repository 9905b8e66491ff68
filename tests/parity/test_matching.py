"""The student, the matching gradients and whole outer iterations against the official loop."""

from __future__ import annotations

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.config import resolve as config
from edf_jax.matching import gradient as matching
from edf_jax.matching import iteration
from edf_jax.methods.cpd import common_pattern_dropout
from edf_jax.methods.dae import dae_weight
from edf_jax.models import Network, torch_layout
from edf_jax.training import losses
from tests.parity import reference, reference_networks
from tests.parity.reference_networks import nhwc

_SETTINGS, _ARRAYS = reference.meta()["matching"], reference.load_npz("matching")
_CASES = sorted({match[0] for name in _ARRAYS if (match := re.match(r"drop[^_]+_beta[^_]+", name))})
_TOLERANCE = {"float32": 1e-3, "float64": 1e-5}


def _drop_and_beta(case: str) -> tuple[float, float]:
    drop, beta = re.fullmatch(r"drop(.+)_beta(.+)", case).groups()
    return float(drop), float(beta)


def _network() -> Network:
    return reference_networks.build(_SETTINGS, nhwc(_ARRAYS["images"]).shape[1:])


def _orders(index: int) -> list[np.ndarray]:
    return [_ARRAYS[f"order_it{index}_step{step}"] for step in range(int(_SETTINGS["syn_steps"]))]


def _batches(index: int) -> matching.StudentBatches:
    """The file's batches as the pipeline holds them: the smaller ones filled up and masked."""
    orders = _orders(index)
    size = max(map(len, orders))
    full = all(len(order) == size for order in orders)
    return matching.StudentBatches(
        jnp.asarray([np.pad(order, (0, size - len(order))) for order in orders], jnp.int32),
        None if full else jnp.asarray([np.arange(size) < len(o) for o in orders], jnp.float32),
        jax.random.split(jax.random.key(0), len(orders)),
    )


def _start(network: Network, dtype: str) -> tuple:
    """Start and target parameters, and the values that distillation moves."""
    start, target = (
        torch_layout.from_torch_flat(network, _ARRAYS[name]).astype(dtype)
        for name in ("start", "target")
    )
    values = iteration.Learnable(
        jnp.asarray(nhwc(_ARRAYS["images"]), dtype),
        jnp.asarray(_ARRAYS["labels"], dtype),
        jnp.asarray(_SETTINGS["lr_init"], dtype),
    )
    return start, target, values


def _compare(case: str, pairs: dict, tolerance: float) -> None:
    errors = {name: reference.relative_error(*pair) for name, pair in pairs.items()}
    for name, error in errors.items():
        print(f"relative error {case} {name}: {error:.2e}")
    assert max(errors.values()) < tolerance


@pytest.mark.parametrize("dtype", _TOLERANCE)
@pytest.mark.parametrize("drop", sorted({_drop_and_beta(case)[0] for case in _CASES}))
def test_gradients_of_the_first_iteration_are_the_official_ones(drop, dtype):
    network = _network()

    def loss(theta, images, labels, mask):
        return losses.soft_cross_entropy(network.apply(theta, images, train=True), labels, mask)

    @jax.jit
    def gradient(start, target, values, batches):
        return matching.matching_gradient(
            loss,
            lambda key, images: images,
            start,
            target,
            *values,
            batches,
            select=common_pattern_dropout(drop),
        )

    with jax.enable_x64(True):
        start, target, values = _start(network, dtype)
        result = gradient(start, target, values, _batches(0))
        final = torch_layout.to_torch_flat(network, result.theta)
        assert result.images.dtype == dtype
    for case in _CASES:
        if _drop_and_beta(case)[0] != drop:
            continue
        expected = {name.removeprefix(f"{case}_"): array for name, array in _ARRAYS.items()}
        _compare(
            f"{case} {dtype}",
            {
                "images' gradient": (result.images, nhwc(expected["grad_images_raw"])),
                "labels' gradient": (result.labels, expected["grad_labels"]),
                "alpha's gradient": (result.alpha, expected["grad_lr"]),
                "student's parameters": (final, expected["final_params"]),
                "loss": (result.loss, expected["losses"][0]),
            },
            _TOLERANCE[dtype],
        )
        origin = _ARRAYS["start"].astype(np.float64)
        way = reference.relative_error(final - origin, expected["final_params"] - origin)
        print(f"relative error {case} {dtype} student's way: {way:.2e}")
        assert way < reference.WAY_TOLERANCE


@pytest.mark.parametrize("drop", sorted({_drop_and_beta(case)[0] for case in _CASES}))
def test_outer_iterations_are_the_official_ones(drop):
    network, count = _network(), int(_SETTINGS["outer_iterations"])
    optim = _SETTINGS["optim"]
    resolved = config.resolve(
        config.default_config(
            **{
                "method": "edf",
                "augment.strategy": "none",
                "distill.syn_steps": int(_SETTINGS["syn_steps"]),
                "distill.batch_syn": int(_SETTINGS["batch_syn"]),
                "distill.drop": drop,
                "distill.threshold": 0.0,
                "distill.lr_img": optim["images"]["lr"],
                "distill.momentum_img": optim["images"]["momentum"],
                "distill.lr_y": optim["labels"]["lr"],
                "distill.momentum_y": optim["labels"]["momentum"],
                "distill.lr_lr": optim["lr"]["lr"],
                "distill.momentum_lr": optim["lr"]["momentum"],
            }
        )
    )
    iterate = iteration.make_iteration(resolved, network, len(_ARRAYS["images"]))

    @jax.jit
    def step(state, start, target, weight, batches):
        # Only the choice of batches is the file's; all else is what a run compiles.
        with mock.patch.object(matching, "student_batches", lambda *_: batches):
            return iterate(state, start[None], target[None], weight, jax.random.key(0))

    for case in _CASES:
        of_case, beta = _drop_and_beta(case)
        if of_case != drop:
            continue
        start, target, values = _start(network, "float32")
        weight = dae_weight(_ARRAYS["maps"], beta, _SETTINGS["mask_threshold"])
        state, found = iteration.initial_state(resolved.distill, values), []
        for i in range(count):
            state, report = step(state, start, target, weight, _batches(i))
            assert not report["skipped"]
            found.append(report["loss"])
        expected = {
            re.sub(r"_after\d+$", "", name.removeprefix(f"{case}_")): array
            for name, array in _ARRAYS.items()
        }
        values = state.values
        _compare(
            f"{case} float32, {count} iterations:",
            {
                "losses": (found, expected["losses"]),
                "images": (values.images, nhwc(expected["images"])),
                "labels": (values.labels, expected["labels"]),
                "alpha": (values.alpha, expected["lr"]),
            },
            _TOLERANCE["float32"],
        )


def test_batches_have_the_official_sizes_and_order():
    count, steps = len(_ARRAYS["images"]), int(_SETTINGS["syn_steps"])
    ours = matching.student_batches(jax.random.key(0), count, int(_SETTINGS["batch_syn"]), steps)
    mask = np.ones(ours.indices.shape) if ours.mask is None else np.asarray(ours.mask)
    orders = _orders(0)
    assert mask.sum(axis=1).tolist() == [len(order) for order in orders]
    chunks = -(-count // ours.indices.shape[1])
    for first in range(0, steps - chunks + 1, chunks):
        seen = np.concatenate(orders[first : first + chunks])
        assert sorted(seen) == list(range(count))
        kept = np.asarray(ours.indices)[first : first + chunks][mask[first : first + chunks] > 0]
        assert sorted(kept) == list(range(count))
