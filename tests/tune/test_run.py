"""A whole run that finds its numbers, by the command."""

from __future__ import annotations

import json

import pytest

from edf_jax import main
from edf_jax.runs.files import open_run
from edf_jax.tune.tuning import Tuning
from tests import tiny_run

_AUTO = (
    "experts__batch", "experts__lr", "experts__epochs", "distill__syn_steps",
    "distill__expert_epochs", "distill__lr_teacher", "distill__min_start_epoch",
    "distill__current_max_start_epoch", "distill__max_start_epoch", "distill__expansion_end",
    "distill__lr_img", "distill__lr_y", "distill__lr_lr", "distill__clip",
)  # fmt: skip


def _arguments(workdir, **settings):
    values = {**dict.fromkeys(_AUTO, "auto"), "data__held_out": 0.1, **settings}
    return ["edf_jax", *tiny_run.arguments(workdir, **values)]


@pytest.mark.slow
def test_a_run_finds_its_numbers_goes_on_with_them_and_shows_them(tmp_path, monkeypatch):
    arguments = _arguments(tmp_path, distill__threshold="auto", distill__iterations="auto",
                           budget__minutes=0.2)  # fmt: skip
    assert main.main([*arguments, "--stage=experts"]) == 0
    chosen = json.loads((tmp_path / "tuned.json").read_text())["chosen"]
    assert chosen["experts.lr"] > 0 and "distill.lr_img" not in chosen
    assert main.main(arguments) == 0
    run = open_run(tmp_path)
    assert run.result["tuned"].items() >= chosen.items()
    assert run.config["distill"]["iterations"] == run.result["tuned"]["distill.iterations"]
    assert len(run.rows("distill")) == run.config["distill"]["iterations"]
    page = (tmp_path / "report.html").read_text()
    assert "Numbers found from the data" in page
    assert f"--config.distill.lr_img={run.result['tuned']['distill.lr_img']:g}" in page
    monkeypatch.setattr(Tuning, "keep", None)  # Nothing is chosen again.
    assert main.main(arguments) == 0


@pytest.mark.slow
def test_a_run_that_cannot_learn_tries_twice_tells_and_goes_on(tmp_path, caplog):
    assert main.main(_arguments(tmp_path, distill__threshold=1e-9)) == 0
    record = json.loads((tmp_path / "tuned.json").read_text())
    first, second = (value for _, value, _ in record["mended"])
    assert {key for key, _, _ in record["mended"]} == {"distill.lr_teacher"}
    assert second == pytest.approx(first / 2, rel=0.1)
    told = [r.getMessage() for r in caplog.records if "changed nothing" in r.getMessage()]
    assert len(told) >= 3
    run = open_run(tmp_path)
    assert len(run.rows("distill")) == run.config["distill"]["iterations"]
    assert "What to mend" in (tmp_path / "report.html").read_text()
