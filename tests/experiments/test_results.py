"""The tables of docs/results.md follow from the rows beside it, which runs and comparisons give."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from edf_jax.report import comparison
from edf_jax.runtime.errors import UserError
from experiments import keep, rows, tables
from tests import test_compare
from tests.report.test_report import make_run

_DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
_FILES = tables.files(_DOCS / "results")
_MADE = {
    "command": "python -m edf_jax.compare",
    "hardware": {"device": "cpu", "cores": "2"},
    "versions": {"jax": "0.10.2"},
    "seconds": 30.0,
}


def _compared(folder, methods="random,edf", **options):
    """A comparison whose runs are made up, and its rows."""
    plan = test_compare._plan(folder, methods, **options)
    made = test_compare.compare.compare(plan, folder, "", test_compare._pretend()[0])
    for cell in plan.runs.values():
        (cell.workdir / "config.json").write_text(cell.config.to_json())
        path = cell.workdir / "result.json"
        result = {**json.loads(path.read_text()), **_MADE, "full_accuracies": [90.0, 92.0]}
        path.write_text(json.dumps(result))
    return made


def _filled(marker: str, folder) -> str:
    return tables.filled(f"a\n<!-- {marker} -->\nold\n<!-- end -->\nb\n", folder)


def test_the_pages_tables_are_what_the_rows_say():
    text = (_DOCS / "results.md").read_text(encoding="utf-8")
    assert tables.filled(text, _DOCS / "results") == text
    shown = " ".join(re.findall("<!-- (?:table|runs): (.*?) -->", text)).split()
    assert sorted(shown) == sorted({row.experiment for f in _FILES for row in rows.read(f)})


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_what_stands_there_for_readers_is_what_the_row_says(path):
    for row, line in zip(rows.read(path), rows.read_lines(path), strict=True):
        told = row.line()
        for name, value in (("mean", row.mean), ("std", row.std)):
            assert float(line[name]) == pytest.approx(value, abs=0.006)
            told[name] = line[name]
        assert line == told


def test_a_repository_can_carry_the_results():
    files = [path for path in (_DOCS / "results").rglob("*") if path.is_file()]
    assert _FILES and len(files) <= 60
    assert max(path.stat().st_size for path in files) < 500_000


def test_a_comparison_kept_makes_the_same_table(tmp_path):
    made = _compared(tmp_path / "cmp", "random,ftd,edf", seeds=2)
    keep.keep(tmp_path / "cmp", tmp_path / "all.csv")
    table = f"a\n<!-- table: cmp -->\n\n{comparison.to_markdown(made)}\n<!-- end -->\nb\n"
    assert _filled("table: cmp", tmp_path) == table == tables.filled(table, tmp_path)
    experts = [row for row in rows.read(tmp_path / "all.csv") if row.method == "experts-gsam"]
    assert [row.accuracies for row in experts] == [(90.0, 92.0)]


def test_a_run_kept_tells_each_set_that_it_measured(tmp_path):
    accuracies = {f"{kind}_accuracies": [60.0, 63.0] for kind in ("distilled", "best_on_test")}
    accuracies |= {"herding_accuracies": [40.0], "full_accuracies": [91.0]}
    run = make_run(tmp_path / "one", **accuracies)
    keep.keep(run, tmp_path / "all.csv")
    made = _filled("runs: one", tmp_path)
    assert "old" not in made and "random" not in made
    assert "| one | herded real images | 40.0 ± 0.0 | 1 | 0.07 |" in made
    assert "| one | distilled, last | 61.5 ± 1.5 | 2 | 0.07 |" in made
    assert "| one | distilled, best on test | 61.5 ± 1.5 | 2 | 0.07 |" in made
    assert "| one | all real data (the experts) | 91.0 ± 0.0 | 1 | 0.07 |" in made
    _, edf, _ = rows.read(tmp_path / "all.csv")
    assert (edf.method, edf.data, edf.ipc) == ("edf", "cluttered_digits", 2)
    metrics = keep.read_metrics(run, "distill")
    assert edf.skipped == sum(row["skipped"] for row in metrics)
    curve = rows.read_lines(tmp_path / "curves" / "all.csv")
    distilling = [line for line in curve if line["stage"] == "distill"]
    assert len(distilling) == 20 and distilling[-1]["step"] == "39"
    assert sum(int(line["skipped"]) for line in distilling) == edf.skipped
    # The loss of iteration 3 is no number: that of iteration 2 stands for both.
    assert float(distilling[1]["loss"]) == pytest.approx(metrics[2]["loss"], rel=1e-4)
    assert {"experts", "evaluate"} < {line["stage"] for line in curve}


def test_keeping_again_takes_the_place_of_what_was_there(tmp_path):
    _compared(tmp_path / "cmp", "random,edf")
    for _ in range(2):
        keep.keep(tmp_path / "cmp", tmp_path / "all.csv", "first")
        keep.keep(tmp_path / "cmp", tmp_path / "all.csv", "second")
    kept = rows.read(tmp_path / "all.csv")
    assert [row.experiment for row in kept] == ["first"] * 3 + ["second"] * 3


def test_gains_are_paired_by_the_seeds_that_both_have(tmp_path):
    _compared(tmp_path / "one")
    _compared(tmp_path / "two", seeds=2)
    for name in ("one", "two"):
        keep.keep(tmp_path / name, tmp_path / "all.csv")
    made = _filled("gains over random: one two", tmp_path)
    assert "| gain over random | one | two |\n|---|---|---|\n| edf | +40.0 | +40.0 (" in made
    edf = [row for row in rows.read(tmp_path / "all.csv") if row.method == "edf"][1]
    other = dict(seed=1, accuracies=(20.0,), experiment="more", method="other")
    rows.append(tmp_path / "all.csv", rows.dataclasses.replace(edf, **other))
    # Seed 1 of random has 12 on average.
    assert "| other | +8.0 |" in _filled("gains over random: two+more", tmp_path)
    with pytest.raises(UserError, match="no method is called 'random'"):
        _filled("gains over random: more", tmp_path)
    with pytest.raises(UserError, match="two rows of random, seed 0"):
        _filled("gains over random: one+two", tmp_path)


def test_a_table_without_rows_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no CSV file has a row of the experiment gone"):
        _filled("table: gone", tmp_path)


def test_a_run_that_is_not_finished_is_not_kept(tmp_path):
    run = make_run(tmp_path / "one", finished=False)
    with pytest.raises(UserError, match="isn't finished"):
        keep.keep(run, tmp_path / "all.csv")
    assert not (tmp_path / "all.csv").exists()
