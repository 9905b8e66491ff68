"""One table over several runs: what they differ in, and what came of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edf_jax.config import flatten
from edf_jax.progress import duration
from edf_jax.run_files import open_run

# Where a run lives, and what does not change its result.
_NOT_SETTINGS = ("log.", "parallel.", "data.cache_dir", "data.path", "data.workers", "experts.dir")
_ACCURACIES = {
    "random": "random",
    "distilled": "distilled (last)",
    "best_on_test": "best on test",
    "full": "all data",
}


def run_table(workdirs: Sequence[str | Path]) -> list[dict[str, str]]:
    """A row per run: its name, every config key that not all runs share, accuracies, time.

    Args:
      workdirs: folders of runs, finished or not.

    Returns:
      Rows with the same columns, all values as text; "" where a run has no value.

    Raises:
      UserError: one of them is no run.
    """
    runs = [open_run(workdir) for workdir in workdirs]
    settings = [flatten(run.config) for run in runs]
    rows = []
    for run, own in zip(runs, settings):
        result = run.result
        row = {"run": run.workdir.name}
        row.update({key: _text(own.get(key)) for key in _differing(settings)})
        for key, title in _ACCURACIES.items():
            row[title] = _accuracy(result, key)
        row["networks"] = _text(result.get("num_eval"))
        row["time"] = duration(result["seconds"]) if "seconds" in result else "not finished"
        rows.append(row)
    return rows


def to_markdown(rows: Sequence[dict[str, str]]) -> str:
    """The table in Markdown, columns that are empty everywhere left out."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [columns, ["---"] * len(columns)]
    lines += [[row[name].replace("|", "\\|") for name in columns] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def to_csv(rows: Sequence[dict[str, str]]) -> str:
    """The table as comma-separated values with a header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for own in settings for key in own)
    return [
        key
        for key in keys
        if not key.startswith(_NOT_SETTINGS)
        and any(own.get(key) != settings[0].get(key) for own in settings)
    ]


def _accuracy(result: dict[str, Any], key: str) -> str:
    mean, std = result.get(f"{key}_mean"), result.get(f"{key}_std")
    if mean is None:
        return ""
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def _text(value: Any) -> str:
    return "" if value is None else str(value)
