"""The tables of docs/results.md follow from the logs beside them."""

from __future__ import annotations

import pathlib
import re

import pytest

from benchmarks import keep_logs, tables
from edf_jax.report import comparison
from edf_jax.report.__main__ import main
from edf_jax.runtime.errors import UserError
from tests import test_compare
from tests.report.test_report import make_run

_DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
_KEPT = sorted(path for path in (_DOCS / "results").glob("*") if path.is_dir())


def test_the_pages_tables_are_what_the_logs_say():
    text = (_DOCS / "results.md").read_text(encoding="utf-8")
    assert tables.filled(text, _DOCS / "results") == text
    shown = " ".join(re.findall("<!-- table: (.*?) -->", text)).split()
    assert sorted(shown) == [path.name for path in _KEPT]


def test_the_report_of_all_logs_holds_each_table(capsys):
    assert _KEPT
    assert main(["--table", *map(str, _KEPT)]) == 0
    printed = capsys.readouterr().out
    for folder in _KEPT:
        if comparison.is_comparison(folder):
            assert comparison.to_markdown(comparison.load(folder)[1]) in printed
        else:
            assert f"| {folder.name} |" in printed


def test_a_page_is_filled_from_runs_and_comparisons(tmp_path):
    plan = test_compare._plan(tmp_path / "cmp", "random,edf")
    test_compare.compare.compare(plan, tmp_path / "cmp", "", test_compare._pretend()[0])
    make_run(tmp_path / "one")
    page = "a\n<!-- table: cmp -->\nold\n<!-- end -->\nb\n<!-- table: one -->\n<!-- end -->\nc\n"
    made = tables.filled(page, tmp_path)
    assert "old" not in made and "| edf | 51.0 ± 1.0 |" in made
    assert "| one | distilled, last | 61.5 ± 1.2 | 5 | 0.07 |" in made
    assert made.startswith("a\n") and "\nb\n" in made and made.endswith("\nc\n")
    assert tables.filled(made, tmp_path) == made
    plan = test_compare._plan(tmp_path / "two", "random,edf", seeds=2)
    test_compare.compare.compare(plan, tmp_path / "two", "", test_compare._pretend()[0])
    made = tables.filled("<!-- gains over random: cmp two -->\n<!-- end -->\n", tmp_path)
    assert "| gain over random | cmp | two |\n|---|---|---|\n| edf | +40.0 | +40.0 (" in made
    both = tables.filled("<!-- gains over random: cmp+cmp -->\n<!-- end -->\n", tmp_path)
    assert "| gain over random | cmp+cmp |\n|---|---|\n| edf | +40.0 |" in both
    with pytest.raises(UserError, match="there is no"):
        tables.filled("<!-- table: gone -->\n<!-- end -->", tmp_path)


def test_logs_are_kept_without_arrays(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "pytorch").mkdir()
    (run / "pytorch" / "metrics.jsonl").write_text("{}\n")
    keep_logs.keep(run, tmp_path / "kept", metrics=True, figures=True)
    kept = {p.relative_to(tmp_path / "kept").as_posix() for p in (tmp_path / "kept").rglob("*.*")}
    asked = {"config.json", "result.json", "metrics.jsonl", "pytorch.jsonl"}
    assert asked | {"figures/before_after.png"} <= kept
    assert not any(name.endswith(".safetensors") for name in kept)
    assert main([str(run), str(tmp_path / "kept")]) == 0
    first, second = capsys.readouterr().out.strip().splitlines()[2:]
    assert first.replace("| run |", "") == second.replace("| kept |", "")


def test_a_comparisons_logs_make_its_table(tmp_path):
    plan = test_compare._plan(tmp_path / "cmp", "random,edf", seeds=2)
    rows = test_compare.compare.compare(plan, tmp_path / "cmp", "", test_compare._pretend()[0])
    for cell in plan.cells.values():
        (cell.workdir / "config.json").write_text("{}")
    keep_logs.keep(tmp_path / "cmp", tmp_path / "kept", metrics=False, figures=False)
    assert comparison.load(tmp_path / "kept") == (plan.title, rows)
