"""The experiment on numbers that a run finds: its runs exist, differ, and are what they say."""

from __future__ import annotations

from edf_jax.config import files
from edf_jax.config.resolve import autos, flatten, resolve
from experiments import auto_settings


def test_every_run_has_a_config_and_an_identity_of_its_own():
    made = list(auto_settings.runs())
    assert len({(run.experiment, run.row) for run in made}) == len(made)
    assert len({run.name for run in made}) == len(made)
    by_table: dict[str, list] = {}
    for run in made:
        by_table.setdefault(run.experiment, []).append(run.settings)
    for settings in by_table.values():
        assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


def test_auto_rows_give_no_number_and_wrong_rows_one_wrong_rate():
    for run in auto_settings.runs():
        flat = flatten(resolve(files.load(*run.config), **run.values))
        if run.experiment.endswith(("_ipc1", "_ipc10")):
            assert bool(autos(flat)) == (run.row == "auto")
        if run.row.startswith("100 times"):
            assert autos(flat) == ()
        elif run.experiment.endswith("lr_img"):
            assert autos(flat) == ("distill.lr_img",)
