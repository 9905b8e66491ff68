"""The tables of docs/results.md, made again from the logs beside it.

    python -m benchmarks.tables            writes them
    python -m benchmarks.tables --check    ends with status 2 where the page says something else

A table stands between `<!-- table: NAME NAME -->` and `<!-- end -->`, names of folders in
docs/results: what `python -m edf_jax.report` prints of a comparison, or a line for each of several
runs. Between `<!-- gains over ROW: NAME NAME -->` and `<!-- end -->` stands what the other rows of
comparisons gain over one; `NAME+NAME` takes the rows of both, which have the same seeds.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from typing import Any

from edf_jax.report import comparison
from edf_jax.runtime import console, storage
from edf_jax.runtime.errors import UserError

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "results.md"
_TABLE = re.compile(r"(<!-- table: ([\w. -]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_GAINS = re.compile(r"(<!-- gains over (\w+): ([\w. +-]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
# Of a run's result, in the order of the lines.
_KINDS = {
    "random": "random real images",
    "initial": "initial images",
    "distilled": "distilled, last",
    "best_on_test": "distilled, best on test",
    "ours": "distilled by edf_jax",
    "pytorch": "distilled by the PyTorch steps",
    "full": "all real data (the experts)",
}


def filled(text: str, folder: pathlib.Path) -> str:
    """A page with its tables made again.

    Args:
        text: of the page.
        folder: that holds the logs by name.

    Raises:
        UserError: a table's logs aren't there.
    """
    text = _TABLE.sub(lambda m: f"{m[1]}\n{_table(folder, m[2].split())}\n{m[3]}", text)
    return _GAINS.sub(lambda m: f"{m[1]}\n{_gains(folder, m[2], m[3].split())}\n{m[4]}", text)


def _gains(folder: pathlib.Path, over: str, names: list[str]) -> str:
    columns = []
    for name in names:
        _check(folder, parts := name.split("+"))
        rows = [row for part in parts for row in comparison.load(folder / part)[1]]
        columns.append(comparison.gains(rows, over))
    lines = [f"| gain over {over} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label in dict.fromkeys(label for column in columns for label in column):
        told = (_gain(*column[label]) if label in column else "" for column in columns)
        lines.append(f"| {label} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def _gain(mean: float, interval: tuple[float, float] | None) -> str:
    return f"{mean:+.1f}" + ("" if interval is None else " ({:+.1f} to {:+.1f})".format(*interval))


def _check(folder: pathlib.Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise UserError(f"there is no {folder / missing[0]}")


def _table(folder: pathlib.Path, names: list[str]) -> str:
    _check(folder, names)
    if comparison.is_comparison(folder / names[0]):
        return comparison.to_markdown(comparison.load(folder / names[0])[1])
    lines = ["| run | trained on | accuracy, % | networks | hours |", "|---|---|---|---|---|"]
    for name in names:
        result = json.loads((folder / name / "result.json").read_text(encoding="utf-8"))
        hours = f"{result['seconds'] / 3600:.2f}"
        for kind, told in _KINDS.items():
            if result.get(f"{kind}_mean") is not None:
                lines.append(f"| {name} | {told} | {_accuracy(result, kind)} | {hours} |")
    return "\n".join(lines) + "\n"


def _accuracy(result: dict[str, Any], kind: str) -> str:
    std = result.get(f"{kind}_std")
    count = result.get(f"{kind}_num_eval", result.get("num_eval"))
    deviation = "" if std is None else f" ± {std:.1f}"
    return f"{result[f'{kind}_mean']:.1f}{deviation} | {count}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()

    def work() -> int:
        text = _PAGE.read_text(encoding="utf-8")
        made = filled(text, _PAGE.with_suffix(""))
        if options.check and made != text:
            raise UserError(f"{_PAGE} isn't what the logs say: python -m benchmarks.tables")
        if made != text:
            storage.write_text(_PAGE, made)
        return 0

    return console.exit_status(work, name="tables")


if __name__ == "__main__":
    sys.exit(main())
