"""The one writer of tables: what each form escapes, and which columns it leaves out."""

from __future__ import annotations

import csv
import io

from edf_jax.runtime import tables

_ROWS = [
    {"name": "a|b", "mean": 61.5, "note": None},
    {"name": "50% of {x}_1 & \\more", "mean": -3, "note": ""},
]


def test_markdown_keeps_its_columns_and_leaves_empty_ones_out():
    assert tables.to_markdown(_ROWS).splitlines() == [
        "| name | mean |",
        "| --- | --- |",
        "| a\\|b | 61.5 |",
        "| 50% of {x}_1 & \\more | -3 |",
    ]
    assert tables.to_markdown(_ROWS, all_columns=True).startswith("| name | mean | note |\n")
    assert tables.to_markdown([{"name": "two\nlines"}]).count("\n") == 3


def test_latex_prints_what_is_held():
    text = tables.to_latex(_ROWS, "100 ± 1 – all~of ^it")
    assert "50\\% of \\{x\\}\\_1 \\& \\textbackslash{}more & -3 \\\\\n" in text
    assert "\\caption{100 $\\pm$ 1 -- all\\textasciitilde{}of \\textasciicircum{}it}" in text
    assert "\\begin{tabular}{lr}" in text


def test_csv_reads_back_and_is_no_formula():
    rows = [{"label": 'a "b", c', "mean": -3.5}, {"label": "=HYPERLINK(1)", "mean": None}]
    found = list(csv.DictReader(io.StringIO(tables.to_csv(rows))))
    assert found[0] == {"label": 'a "b", c', "mean": "-3.5"}
    assert found[1] == {"label": "'=HYPERLINK(1)", "mean": ""}
    assert tables.to_csv([{"x": "-0.5"}]) == "x\n-0.5\n"


def test_text_is_aligned():
    rows = [{"name": "a", "mean": "9.5"}, {"name": "long", "mean": "10.25"}]
    assert tables.to_text(rows, right=("mean",)).splitlines() == [
        "name   mean",
        "a       9.5",
        "long  10.25",
    ]
