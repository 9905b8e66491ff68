"""The table of sets by protocols and networks."""

from __future__ import annotations

import csv
import json

import pytest

from edf_jax.evaluate import measure, table
from edf_jax.evaluate.measure import Evaluation
from edf_jax.runs.statistics import Accuracies
from edf_jax.runtime.errors import UserError
from edf_jax.training.trained import TrainedNetwork
from tests.evaluation_data import make_config, make_dataset, make_distilled


def test_rows_are_methods_baselines_or_paths():
    sets = table.parse_sets("random, edf,mine=runs/x/set.npz")
    assert sets == {"random": "", "edf": "", "mine": "runs/x/set.npz"}
    for wrong in ("edg", "random,=x", "mine="):
        with pytest.raises(UserError, match="--sets"):
            table.parse_sets(wrong)


def _figures(self, measurement, on_epochs):
    """Stands for a measurement."""
    start = 40.0 + len(measurement.protocol) + float(measurement.images.images[0, 0, 0, 0])
    figures = Accuracies((start, start + 1, start + 4), 30).figures()
    return {**figures, "rate": 0.1, "rate_from": "learned"}


def test_the_table_holds_every_cell_and_is_measured_once(tmp_path, monkeypatch):
    dataset = make_dataset()
    monkeypatch.setattr(table, "prepare", lambda config: dataset)
    monkeypatch.setattr(Evaluation, "run", _figures)
    monkeypatch.setattr(
        measure, "get_teacher", lambda *_: TrainedNetwork(None, (), {}, "a net", accuracy=70.0)
    )
    make_distilled(dataset).save(tmp_path / "mine.safetensors")
    sets = {"random": "", "mine": str(tmp_path / "mine.safetensors")}
    config = make_config()
    folder = tmp_path / "table"

    def make(command):
        protocols = ("plain", "sre2l")
        return table.make_table(config, sets, protocols, ("matched",), folder, command)

    found = make("the command")
    assert [(row["set"], row["protocol"]) for row in found["rows"]] == [
        ("random", "plain"), ("mine", "plain"), ("random", "sre2l"), ("mine", "sre2l"),
    ]
    text = (folder / "protocols.md").read_text()
    header, _, random, mine = text.splitlines()[:4]
    assert header == "| images | bytes, images + labels | plain, ConvNet | sre2l, ConvNet |"
    assert random.startswith("| Random real images | ") and mine.startswith("| mine | ")
    own = make_distilled(dataset).stored_bytes
    assert f" | {own.text} | " in mine and found["rows"][1]["label_bytes"] == own.labels
    row = found["rows"][1]
    low, high = row["interval"]
    assert f"{row['mean']:.1f} ± {row['std']:.1f} ({low:.1f} to {high:.1f})" in mine
    assert "the command" in text and "on 30 images" in text
    assert "Teacher: a net, 70.0% on the test images." in text
    with open(folder / "protocols.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 4 and float(lines[0]["mean"]) == found["rows"][0]["mean"]
    # 4 epochs and one more, by one batch of all six images.
    assert [line["epochs"] for line in lines] == ["5", "5", "3", "3"]
    assert {line["steps"] for line in lines} == {"1"}
    assert "Epochs x steps of a network: 5 x 1 (plain), 3 x 1 (sre2l)." in text
    assert json.loads((folder / "protocols.json").read_text())["rows"] == found["rows"]

    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("measured again"))
    assert make("another command")["rows"] == found["rows"]


def test_label_regimes_are_columns(tmp_path, monkeypatch):
    dataset = make_dataset()
    monkeypatch.setattr(table, "prepare", lambda config: dataset)
    monkeypatch.setattr(Evaluation, "run", _figures)
    monkeypatch.setattr(measure, "get_teacher", lambda *_: pytest.fail("no teacher is needed"))
    config = make_config(**{"evaluate.labels": "own,hard"})
    make_distilled(dataset, soft=True).save(tmp_path / "mine.safetensors")
    sets = {"random": "", "mine": str(tmp_path / "mine.safetensors")}
    found = table.make_table(config, sets, ("plain", "rded"), ("matched",), tmp_path / "t", "it")
    assert [(row["protocol"], row["labels"]) for row in found["rows"][::2]] == [
        ("plain", "own"), ("plain", "hard"), ("rded", "own"), ("rded", "hard"),
    ]
    header = (tmp_path / "t" / "protocols.md").read_text().splitlines()[0]
    shown = "| images | bytes, images + labels | plain, own labels, ConvNet | plain, hard labels, "
    assert header.startswith(shown)
    assert found["teacher"] is None


@pytest.mark.slow
def test_the_command_distils_and_evaluates(tmp_path, capsys):
    tiny = {
        "data.resolution": 16, "model.width": 4, "experts.num": 2, "experts.epochs": 3,
        "distill.iterations": 2, "distill.syn_steps": 2, "distill.expert_epochs": 1,
        "distill.max_start_epoch": 2, "distill.current_max_start_epoch": 1,
        "distill.eval_every": 2, "evaluate.epochs": 2, "evaluate.num": 2, "evaluate.kd_epochs": 3,
        "evaluate.width": 4, "teacher.epochs": 2, "log.tensorboard": False,
        "data.cache_dir": str(tmp_path / "cache"),
    }
    argv = ["table", "--config=configs/cluttered_digits.py:demo", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--config.{name}={value}" for name, value in tiny.items()]
    argv += ["--sets=random,herding,datm,edf", "--networks=matched,MLP"]
    for _ in range(2):
        assert table.main(argv) == 0
        result = capsys.readouterr().out.splitlines()[-1]
        rows = json.loads(result.removeprefix("RESULT "))["rows"]
        assert len(rows) == 4 * 3 * 2
