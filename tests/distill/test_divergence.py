"""Iterations whose numbers can't be used: what is said, what is kept, and how a run goes on."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax import distilled_set
from edf_jax.matching.iteration import Learnable, initial_state, outer_optimiser, outer_step
from edf_jax.runtime.errors import UserError
from tests import tiny

_FREE = {"distill.threshold": 0.0, "distill.eval_every": 100}


@pytest.fixture
def store(tmp_path):
    return tiny.made_up_experts(tmp_path / "experts")


def _spoil(store, expert, how):
    """Makes all that is learned from one expert unusable."""
    for epoch in store.epochs(0):
        theta, extra = store.read_group(0, epoch)
        if how == "nan":
            theta[expert, epoch] = np.nan
        else:  # Hardly moves, so that every student ends far from it.
            theta[expert] = store.snapshot(expert, 0) + 1e-5 * epoch
        store.write(0, epoch, theta, extra, store.details(0, epoch))


@pytest.mark.parametrize("how, what", [("nan", "nan"), ("stands still", r"[\d.e+]+")])
def test_a_skipped_iteration_is_told_with_expert_and_start_epoch(
    store, tmp_path, caplog, how, what
):
    _spoil(store, 1, how)
    last = tiny.run_distillation(tiny.config(**_FREE), tmp_path, store)
    assert np.isfinite(last.images).all() and np.isfinite(last.labels).all()
    rows = tiny.rows(tmp_path, "distill")
    skipped = {row["step"] for row in rows if row["skipped"]}
    assert skipped == {row["step"] for row in rows if row["expert"] == 1} != set()
    first = rows[min(skipped)]
    said = tiny.messages(caplog)[0]
    pattern = rf"iteration {first['step']}: the matching loss is {what} \(expert 1, start epoch 0\)"
    assert re.search(pattern, said), said
    # A word at the first one is enough: the next would say the same.
    assert sum("matching loss is" in line for line in tiny.messages(caplog)) == 1


@pytest.mark.parametrize("every", [1, 2, 100])
def test_a_run_that_stops_keeps_the_last_good_set_and_goes_on_when_told_to(
    store, tmp_path, every
):
    _spoil(store, 1, "nan")
    free = {**_FREE, "distill.save_every": every}
    skipping = tiny.run_distillation(tiny.config(**free), tmp_path / "skip", store)
    bad = min(row["step"] for row in tiny.rows(tmp_path / "skip", "distill") if row["skipped"])
    workdir = tmp_path / "stop"
    told = rf"iteration {bad}: .*expert 1, start epoch \d.*on_nan=skip"
    with pytest.raises(UserError, match=told) as raised:
        tiny.run_distillation(tiny.config(**free, **{"distill.on_nan": "stop"}), workdir, store)
    # Before the next is begun where a checkpoint comes between, else after it.
    assert bad <= tiny.rows(workdir, "distill")[-1]["step"] <= bad + (every > 1)
    kept = sorted(workdir.glob("distilled/step_*.safetensors"))
    assert str(kept[-1]) in str(raised.value)
    assert np.isfinite(distilled_set.load(kept[-1]).images).all()
    assert not (workdir / "distilled" / "last.safetensors").exists()
    going_on = tiny.run_distillation(tiny.config(**free), workdir, store)
    np.testing.assert_array_equal(going_on.images, skipping.images)
    assert tiny.rows(workdir) == tiny.rows(tmp_path / "skip")


def test_a_step_that_would_leave_the_finite_numbers_is_not_taken():
    options = tiny.config(**{"distill.lr_img": 1e30}).distill
    initial = tiny.initial_set()
    numbers = (initial.images, initial.labels, initial.alpha)
    values = Learnable(*(jnp.asarray(x, jnp.float32) for x in numbers))
    state = initial_state(options, values)
    gradients = jax.tree.map(lambda x: jnp.full_like(x, 1e10), values)
    after, skipped = outer_step(
        outer_optimiser(options), state, jnp.float32(0.5), gradients, jnp.ones(()), 0.0
    )
    assert skipped
    jax.tree.map(np.testing.assert_array_equal, after, state)
