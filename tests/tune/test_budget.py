"""Sizes that fit the time there is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edf_jax.config.resolve import default_config, flatten, resolve
from edf_jax.runtime.errors import UserError
from edf_jax.tune import budget
from edf_jax.tune.budget import Sizes
from tests import tiny

# ImageNette by EDF at 32 and 64 pixels, widths 16, 32 and 128: operations.
FORWARDS = {(32, 16): 2.4e6, (32, 32): 7.7e6, (64, 32): 31e6, (64, 128): 4e8}


def sizes(num_train: int = 8500, batch: int = 256) -> list[Sizes]:
    return [
        Sizes(side, width, f, (6 * num_train + 4000) * f, 9 * 2000 * f, -(-num_train // batch))
        for (side, width), f in FORWARDS.items()
    ]


def chosen(minutes: float, speed: float, **data) -> dict[str, int]:
    found = sizes(**data)
    return budget.choose(found, [speed] * len(found), 60 * minutes)


def test_more_time_or_a_faster_machine_gives_a_larger_run():
    def cost(choice):
        side, width = choice["data.resolution"], choice["model.width"]
        return FORWARDS[side, width] * choice["experts.num"]

    costs = [cost(chosen(minutes, 1e11)) for minutes in (1, 5, 20, 60, 600)]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    assert cost(chosen(20, 1e13)) > cost(chosen(20, 1e11))


def test_twenty_minutes_of_two_cores_are_what_was_chosen_by_hand():
    choice = chosen(20, 9e10)
    assert (choice["data.resolution"], choice["model.width"]) == (32, 32)
    assert 3 <= choice["experts.num"] <= 6


def test_too_little_time_gives_the_smallest_run_there_is():
    assert chosen(0.1, 1e9) == {
        "data.resolution": 32, "model.width": 16, "experts.num": budget.FEWEST_EXPERTS,
    }  # fmt: skip


def test_what_is_chosen_fits():
    for minutes in (5, 20, 60):
        choice = chosen(minutes, 1e11)
        size = next(
            s for s in sizes()
            if (s.resolution, s.width) == (choice["data.resolution"], choice["model.width"])
        )  # fmt: skip
        epochs = choice["experts.num"] * budget.epochs_of(budget.FEWEST_STEPS, size.steps)
        assert epochs * size.epoch / 1e11 <= 0.5 * 60 * minutes


def _asked(**values):
    return resolve(default_config(**{"data.resolution": 16, "model.depth": 1, **values}))


def test_a_run_that_goes_on_keeps_its_sizes(tmp_path, monkeypatch):
    asked = _asked(**{"model.width": "auto", "experts.num": "auto", "budget.minutes": 1.0})
    first = budget.settle(asked, tmp_path, measure=False)
    assert first.model.width in budget.WIDTHS and first.data.resolution == 16
    record = {**flatten(first), "model.width": 24}
    (tmp_path / "config.json").write_text(json.dumps(record))
    monkeypatch.setattr(budget, "_choose", None)
    assert budget.settle(asked, tmp_path).model.width == 24


def test_what_goes_by_the_time_needs_a_budget(tmp_path):
    for key in (*budget.KEYS, "distill.iterations"):
        with pytest.raises(UserError, match="budget.minutes"):
            budget.settle(_asked(**{key: "auto"}), tmp_path)
    plain = _asked()
    assert budget.settle(plain, tmp_path) is plain


def test_speed_is_that_of_training_steps():
    speed = budget.measured_speed(tiny.network(), seconds=0.05, batch=4)
    assert 1e4 < speed < 1e13 and np.isfinite(speed)
