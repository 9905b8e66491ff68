"""The experiment on real scenes: which runs it makes, in what order, and how it goes on."""

from __future__ import annotations

import dataclasses

import pytest

from edf_jax import extending
from edf_jax.config.schema import SCHEMA
from experiments import controls, real_scenes
from experiments.rows import Row


@pytest.fixture(autouse=True)
def _with_controls(monkeypatch):
    monkeypatch.setitem(SCHEMA, "distill.loss_mask", SCHEMA["distill.loss_mask"])
    monkeypatch.setitem(
        extending._TABLES, "distill.loss_mask", dict(extending._TABLES["distill.loss_mask"])
    )
    controls.add()


def _row(run, **changes) -> Row:
    row = Row(run.experiment, run.row, "imagenette", 32, 10, 0, (50.0,), settings=run.settings)
    return dataclasses.replace(row, **changes)


def _all(kept):
    return real_scenes.runs(kept, "imagenette", 10, range(2), 32, tuple(real_scenes.ROWS))


def test_each_method_tries_the_same_rates_and_takes_the_best_on_held_out_images():
    kept, made = [], []
    for run in _all(kept):
        made.append(run)
        held_out = {"edf, lr_img 3000": 60.0, "datm, lr_img 300": 61.0}.get(run.row, 40.0)
        kept.append(_row(run, held_out=held_out))
    trials = [run for run in made if run.trial]
    assert [run.row for run in trials[:3]] == [f"datm, lr_img {r}" for r in (300, 1000, 3000)]
    assert len(trials) == 12 and made[:12] == trials
    rates = {run.row: run.values["distill.lr_img"] for run in made[12:] if run.row != "initial"}
    assert rates["datm, crop 0.25"] == rates["datm, crop 0.125"] == 300.0
    assert rates["edf without CPD"] == 3000.0 and rates["mtt"] == 300.0
    assert all(run.values["evaluate.during_epochs"] == 1 for run in made[12:])


def test_runs_have_identities_of_their_own_and_keep_them():
    kept = []
    for run in _all(kept):
        assert real_scenes._digest(run) not in {row.digest for row in kept}
        kept.append(_row(run, held_out=1.0))
    again = [run for run in _all(kept) if real_scenes._digest(run) not in {k.digest for k in kept}]
    assert again == []


@pytest.mark.parametrize("ipc", [1, 10])
def test_cpd_drops_nothing_at_one_image_a_class(ipc):
    rows = real_scenes.runs([], "imagewoof", ipc, range(1), 32, tuple(real_scenes.ROWS))
    edf = next(run for run in rows if run.row.startswith("edf"))
    assert edf.values["distill.drop"] == (0.0 if ipc == 1 else 0.25)
