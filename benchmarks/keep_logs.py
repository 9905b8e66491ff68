"""The logs of runs and comparisons, made small enough to keep beside the tables they stand behind.

    python -m benchmarks.keep_logs runs/complex_scenes/hard_ipc10 docs/results/scenes_hard_ipc10
    python -m benchmarks.keep_logs runs/demo docs/results/demo --figures

Keeps `config.json` and `result.json` of each run on one line each, and the rows of `metrics.jsonl`
with five significant digits and whole seconds; no arrays. `python -m edf_jax.report docs/results/*`
makes the tables again. `--figures` keeps a run's curves and pictures too, of a comparison its own
curves and the pictures of each row's first seed; `--no_metrics` leaves the rows out.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

from edf_jax.report import comparison
from edf_jax.report import page as report
from edf_jax.runs.files import open_run
from edf_jax.runs.metrics import read_metrics
from edf_jax.runtime import console, storage
from edf_jax.runtime.errors import UserError

# Of the rows: what no curve shows.
_LEFT_OUT = ("gradient_alpha", "gradient_images", "gradient_labels", "num_images", "num_networks")
# Of the result: what the config and the rest say.
_REPEATED = ("rows", "scores", "workdir")


def keep(source: pathlib.Path, target: pathlib.Path, *, metrics: bool, figures: bool) -> None:
    """Keeps the logs of a run, or of a comparison with all its runs.

    Args:
        source: its folder.
        target: a folder, made where it isn't there.
        metrics: whether rows are kept.
        figures: whether curves and pictures are.

    Raises:
        UserError: `source` is neither.
    """
    if not comparison.is_comparison(source):
        _keep_run(source, target, metrics=metrics, figures=figures)
        return
    plan = json.loads((source / "comparison.json").read_text(encoding="utf-8"))
    storage.write_text(_made(target) / "comparison.json", json.dumps(plan, indent=1))
    for cell in plan["cells"].values():
        of_experts = cell["kind"] == "experts"
        where = (source / cell["folder"], target / cell["folder"])
        _keep_run(*where, metrics=metrics or of_experts, figures=False)
    if figures:
        for identity, *_ in plan["rows"].values():
            folder = plan["cells"][identity]["folder"]
            _keep_picture(open_run(source / folder), target / folder)
        comparison.write_curves(comparison.load_plan(source), target)


def _keep_run(source, target, *, metrics: bool, figures: bool) -> None:
    run = open_run(source)
    if not run.result:
        raise UserError(f"{source} has no result.json: its run isn't finished")
    result = {k: v for k, v in run.result.items() if k not in _REPEATED}
    storage.write_text(_made(target) / "config.json", _line(run.config))
    storage.write_text(target / "result.json", _line(result))
    rows = [_short(row) for row in read_metrics(source)] if metrics else []
    if rows:
        storage.write_text(target / "metrics.jsonl", "".join(map(_line, rows)))
    other = source / "pytorch" / "metrics.jsonl"  # of benchmarks.equal_footing
    if metrics and other.exists():
        storage.write_text(target / "pytorch.jsonl", other.read_text(encoding="utf-8"))
    if figures:
        for name, png in report.draw_charts(run, report.figures.LIGHT).items():
            storage.write_bytes(target / "figures" / f"{name}.png", png)
        _keep_picture(run, target)


def _keep_picture(run, target: pathlib.Path) -> None:
    if png := report.draw_pictures(run).get("before_after"):
        storage.write_bytes(target / "figures" / "before_after.png", png)


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _line(content: Any) -> str:
    return json.dumps(content) + "\n"


def _short(row: dict[str, Any]) -> dict[str, Any]:
    short = {k: _rounded(v) for k, v in row.items() if k not in _LEFT_OUT}
    short["time"] = round(row.get("time", 0))
    return short


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keep_logs")
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--no_metrics", action="store_true")
    parser.add_argument("--figures", action="store_true")
    options = parser.parse_args()

    def work() -> int:
        keep(
            options.source,
            options.target,
            metrics=not options.no_metrics,
            figures=options.figures,
        )
        return 0

    return console.exit_status(work, name="keep_logs")


if __name__ == "__main__":
    sys.exit(main())
