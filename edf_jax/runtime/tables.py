"""The one writer of tables: rows of named cells as Markdown, LaTeX, CSV or aligned text.

Rows are mappings with the same keys, the columns in order; None is an empty cell. Each form
escapes what means something in it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

_LATEX = {
    **{letter: f"\\{letter}" for letter in "%_&#{}$"},
    "\\": "\\textbackslash{}",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "±": "$\\pm$",
    "–": "--",
}


def _cells(rows: Rows, *, all_columns: bool = False) -> list[list[str]]:
    """The header and the lines as text, without columns that are empty everywhere."""
    filled = [k for k in rows[0] if all_columns or any(_text(row[k]) for row in rows)]
    return [filled, *([_text(row[name]) for name in filled] for row in rows)]


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def to_markdown(rows: Rows, *, all_columns: bool = False) -> str:
    """A Markdown table, columns that are empty everywhere left out unless asked for."""
    head, *lines = _cells(rows, all_columns=all_columns)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    escaped.insert(1, ["---"] * len(head))
    return "".join("| " + " | ".join(line) + " |\n" for line in escaped)


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_latex(rows: Rows, caption: str) -> str:
    """A `tabular` with a caption, which needs no package; empty columns left out."""
    head, *lines = (" & ".join(map(escape_latex, line)) + " \\\\\n" for line in _cells(rows))
    columns = "l" + "r" * (len(_cells(rows)[0]) - 1)
    return (
        f"\\begin{{table}}\n\\caption{{{escape_latex(caption)}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n{head}\\hline\n{''.join(lines)}"
        "\\end{tabular}\n\\end{table}\n"
    )


def to_csv(rows: Rows) -> str:
    """Comma-separated values with a header; no text of theirs is a formula to a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_not_a_formula(name) for name in rows[0])
    writer.writerows([_not_a_formula(row[name]) for name in rows[0]] for row in rows)
    return buffer.getvalue()


def _not_a_formula(value: Any) -> Any:
    risky = isinstance(value, str) and re.match(r"[=+@\t\r-](?![\d.]+$)", value)
    return f"'{value}" if risky else value


def to_text(rows: Rows, *, right: Sequence[str] = ()) -> str:
    """Lines of aligned columns with a header.

    Args:
        rows: of the table.
        right: columns that are aligned to the right.
    """
    lines = _cells(rows, all_columns=True)
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = [
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(lines[0], line, widths)
        ).rstrip()
        for line in lines
    ]
    return "\n".join(aligned)
