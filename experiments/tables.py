"""The tables of docs/results.md, made again from the rows in docs/results/*.csv.

    python -m experiments.tables            writes them
    python -m experiments.tables --check    ends with status 2 where the page says something else

NAME is an experiment, as `experiments.rows` means it. Between `<!-- table: NAME -->` and
`<!-- end -->` stands the table of a comparison, a line a method; after `<!-- runs: NAME NAME -->` a
line for each set that the runs measured; after `<!-- gains over ROW: NAME NAME -->` what the other
methods of comparisons gain over one, seed by seed; `NAME+NAME` takes the rows of both. After
`<!-- maps: SET SET -->` stands what `experiments.maps` measured on those data sets.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys

import numpy as np

from edf_jax.distilled_set import StoredBytes
from edf_jax.report import comparison
from edf_jax.runtime import console, storage
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.tables import to_markdown
from experiments import rows
from experiments.rows import Row

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "results.md"
_TABLE = re.compile(
    r"(<!-- (table|runs|maps|gains over (?P<over>\w+)): (?P<names>[\w. +-]+?) -->\n)"
    r".*?(<!-- end -->)",
    re.DOTALL,
)
# Its rows are activation maps, not runs.
_MAPS = "maps.csv"
# What a set was made by, in words.
_SETS = {
    "random": "random real images",
    "herding": "herded real images",
    "k_centre": "k-centre real images",
    "real_soft": "random real images, soft labels",
    "initial": "initial images",
    "ours": "distilled by edf_jax",
    "pytorch": "distilled by the PyTorch steps",
    "full": "all real data (the experts)",
}


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The CSV files in a folder whose rows are runs."""
    return sorted(path for path in folder.glob("*.csv") if path.name != _MAPS)


def filled(text: str, folder: pathlib.Path) -> str:
    """A page with its tables made again.

    Args:
        text: of the page.
        folder: of the CSV files.

    Raises:
        UserError: there are no rows for a table.
    """
    kept = [row for path in files(folder) for row in rows.read(path)]

    def table(match: re.Match) -> str:
        if match[2] == "maps":
            found = rows.read_lines(folder / _MAPS)
            return f"{match[1]}\n{_maps(found, match['names'].split())}\n<!-- end -->"
        columns = {name: _rows_of(kept, name) for name in match["names"].split()}
        if match["over"]:
            made = _gains(columns, match["over"])
        elif match[2] == "table":
            made = "\n".join(_comparison(found) for found in columns.values())
        else:
            made = _runs(columns)
        return f"{match[1]}\n{made}\n<!-- end -->"

    return _TABLE.sub(table, text)


def _rows_of(kept: list[Row], names: str) -> list[Row]:
    """The rows of experiments `NAME+NAME`."""
    found = []
    for name in names.split("+"):
        own = [row for row in kept if row.experiment == name]
        if not own:
            raise UserError(f"no CSV file has a row of the experiment {name}")
        found += own
    return found


def _by_method(found: list[Row]) -> dict[str, dict[int, Row]]:
    """An experiment's rows by method and seed, without those of the experts.

    Raises:
        UserError: a method has two rows of a seed.
    """
    trainers = {row.experts for row in found}
    methods: dict[str, dict[int, Row]] = {}
    for row in found:
        if row.method not in trainers:
            seeds = methods.setdefault(row.method, {})
            if row.seed in seeds:
                raise UserError(f"{row.experiment} has two rows of {row.method}, seed {row.seed}")
            seeds[row.seed] = row
    return methods


def _comparison(found: list[Row]) -> str:
    trainers = {row.method: row.own_seconds for row in found}
    table = [_line(list(s.values()), trainers) for s in _by_method(found).values()]
    return comparison.to_markdown(table)


def _line(seeds: list[Row], trainers: dict[str, float]) -> comparison.Row:
    """A method's runs as a line of a comparison's table."""
    first = seeds[0]
    device = [row.device_memory_mb for row in seeds if row.device_memory_mb is not None]
    best, average = ([getattr(row, n) for row in seeds] for n in ("best_on_test", "average"))
    return comparison.Row(
        first.method,
        comparison.Figure(tuple(row.accuracies for row in seeds)),
        comparison.Figure(tuple(best)) if all(best) else None,
        comparison.Figure(tuple(average)) if all(average) else None,
        float(np.mean([row.own_seconds for row in seeds])),
        max(row.memory_mb or 0 for row in seeds),
        max(device, default=None),
        (first.experts, trainers[first.experts]) if first.experts in trainers else None,
        stored=None
        if first.image_bytes is None or first.label_bytes is None
        else StoredBytes(first.image_bytes, first.label_bytes),
        length=None if first.epochs is None or first.steps is None else (first.epochs, first.steps),
    )


def _gains(columns: dict[str, list[Row]], over: str) -> str:
    gains = {name: _gains_over(_by_method(found), over) for name, found in columns.items()}
    lines = [f"| gain over {over} | {' | '.join(gains)} |", "|---" * (len(gains) + 1) + "|"]
    for label in dict.fromkeys(label for column in gains.values() for label in column):
        told = (column.get(label, "") for column in gains.values())
        lines.append(f"| {label} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def _gains_over(methods: dict[str, dict[int, Row]], over: str) -> dict[str, str]:
    """What each method gains over one, by label, over the seeds that both have."""
    if over not in methods:
        raise UserError(f"no method is called {over!r}: {', '.join(methods)} are")
    told = {}
    for label, own in methods.items():
        seeds = [seed for seed in own if seed in methods[over]]
        if label != over and seeds:
            pair = [_line([methods[m][seed] for seed in seeds], {}) for m in (label, over)]
            mean, interval = comparison.gains(pair, over)[label]
            spread = "" if interval is None else " ({:+.1f} to {:+.1f})".format(*interval)
            told[label] = f"{mean:+.1f}{spread}"
    return told


def _runs(columns: dict[str, list[Row]]) -> str:
    lines = ["| run | trained on | accuracy, % | networks | hours |", "|---|---|---|---|---|"]
    for name, found in columns.items():
        for row in found:
            told = {_SETS.get(row.method, "distilled, last"): row.accuracies}
            if row.best_on_test:
                told["distilled, best on test"] = row.best_on_test
            for trained_on, accuracies in told.items():
                text, count = comparison.Figure((accuracies,)).text, len(accuracies)
                hours = f"{row.seconds / 3600:.2f}"
                lines.append(f"| {name} | {trained_on} | {text} | {count} | {hours} |")
    return "\n".join(lines) + "\n"


def _maps(lines: list[rows.Line], names: list[str]) -> str:
    """A line for each choice of networks and method: what its maps find on each data set.

    Raises:
        UserError: there are no rows of a data set.
    """
    made: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        own = [line for line in lines if line["data"] == name]
        if not own:
            raise UserError(f"{_MAPS} has no row of {name}")
        for line in own:
            told = made.setdefault((line["network"], line["method"]), {})
            told |= {"maps of": line["network"] or "none", "method": line["method"]}
            if line["on_object"]:
                told[f"{name}: on the object, %"] = line["on_object"]
            score, error = float(line["score"]), float(line["score_error"])
            told[f"{name}: insertion less deletion"] = f"{score:+.1f} ± {error:.1f}"
    columns = list(dict.fromkeys(column for told in made.values() for column in told))
    return to_markdown([{c: told.get(c, "") for c in columns} for told in made.values()])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.tables")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()

    def work() -> int:
        text = _PAGE.read_text(encoding="utf-8")
        made = filled(text, _PAGE.with_suffix(""))
        if options.check and made != text:
            raise UserError(f"{_PAGE} isn't what the rows say: python -m experiments.tables")
        if made != text:
            storage.write_text(_PAGE, made)
        return 0

    return console.exit_status(work, name="tables")


if __name__ == "__main__":
    sys.exit(main())
