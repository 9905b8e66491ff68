"""A run told in one file: `report.html`, without network, and the figures beside it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from edf_jax.report import charts, figures, sections
from edf_jax.runs import pictures
from edf_jax.runs.diagnosis import diagnose
from edf_jax.runs.files import RunFiles, open_run
from edf_jax.runtime import storage


def write_report(workdir: str | Path) -> Path:
    """Writes `workdir/report.html` and `workdir/figures/*.png` from the run's files.

    What the run does not have (yet) is left out.

    Returns:
      The report's path.

    Raises:
      UserError: `workdir` is no run.
    """
    run = open_run(workdir)
    light = draw_charts(run, charts.LIGHT)
    for name, png in {**draw_pictures(run), **light}.items():
        storage.write_bytes(run.workdir / "figures" / f"{name}.png", png)
    path = run.workdir / "report.html"
    storage.write_bytes(path, render(run, light).encode())
    return path


def render(run: RunFiles, light: Mapping[str, bytes] | None = None, *, refresh: int = 0) -> str:
    """The page of a run as HTML; nothing is written.

    Args:
      run: the run.
      light: its curves for light pages, drawn here where None.
      refresh: seconds after which a browser loads it again until the run has finished; 0 never.
    """
    light = draw_charts(run, charts.LIGHT) if light is None else light
    dark = draw_charts(run, charts.DARK)
    uri = pictures.png_uri
    return _template("page.html").render(
        refresh=refresh,
        **sections.header(run),
        **sections.results(run),
        gallery=sections.gallery(run),
        stored=sections.stored_images(run),
        maps=sections.activation_maps(run),
        history=sections.history(run),
        charts=[(name.replace("_", " "), uri(light[name]), uri(dark[name])) for name in light],
        findings=diagnose(run),
        found=sections.found_numbers(run),
        **sections.provenance(run),
        # The themes' colours as CSS variables, so that page and figures agree.
        light={"page": "#f4f6f9", **dataclasses.asdict(charts.LIGHT)},
        dark={"page": "#0d1117", **dataclasses.asdict(charts.DARK)},
    )


def render_side_by_side(names: Sequence[str]) -> str:
    """The page of several runs: a frame for each, which shows the page at its number."""
    return _template("side_by_side.html").render(names=names)


@functools.cache
def _template(name: str) -> jinja2.Template:
    """A page; everything that it is given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edf_jax.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def draw_charts(run: RunFiles, theme: charts.Theme) -> dict[str, bytes]:
    """The run's curves as PNG, by name: loss, accuracy, experts, start_epochs."""
    drawn: dict[str, bytes] = {}
    rows = [row for row in run.rows("distill") if "loss" in row]
    if rows:
        steps = _column(rows, "step")
        drawn["loss"] = charts.loss_curve(
            steps,
            _column(rows, "loss"),
            _column(rows, "skipped") == 1.0,
            # 0 is no gate.
            threshold=run.config.get("distill", {}).get("threshold") or None,
            theme=theme,
        )
    evaluations = [row for row in run.rows("evaluate") if row.get("accuracy_mean") is not None]
    if evaluations:
        drawn["accuracy"] = charts.accuracy_curve(
            _column(evaluations, "step"),
            _column(evaluations, "accuracy_mean"),
            np.nan_to_num(_column(evaluations, "accuracy_std")),
            random=_reference(run, "random"),
            full=_reference(run, "full"),
            theme=theme,
        )
    experts = [row for row in run.rows("experts") if row.get("test_accuracy") is not None]
    if experts:
        drawn["experts"] = charts.expert_accuracy(*_experts_table(experts), theme=theme)
    started = [row for row in rows if row.get("start_epoch") is not None]
    if started:
        upper = _column(started, "max_start_epoch")
        drawn["start_epochs"] = charts.start_epochs(
            _column(started, "step"),
            _column(started, "start_epoch"),
            upper if np.isfinite(upper).all() else None,
            theme=theme,
        )
    return drawn


def draw_pictures(run: RunFiles, theme: charts.Theme = charts.LIGHT) -> dict[str, bytes]:
    """Images of the run as PNG, by name: before_after, activation_maps."""
    drawn: dict[str, bytes] = {}
    last, first, activation = run.last, run.first, run.activation_maps()
    if last is not None and first is not None:
        drawn["before_after"] = figures.before_after(
            first.pixels, last.pixels, run.classes, last.class_names, theme=theme
        )
    if last is not None and activation is not None:
        drawn["activation_maps"] = figures.activation_maps(
            last.pixels,
            activation.maps,
            activation.weights,
            run.classes,
            last.class_names,
            theme=theme,
        )
    return drawn


def _column(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """One key of all rows as floats, not-a-number where a row has none."""
    return np.array([np.nan if row.get(key) is None else float(row[key]) for row in rows])


def _reference(run: RunFiles, kind: str) -> tuple[float, float] | None:
    mean = run.result.get(f"{kind}_mean")
    return None if mean is None else (mean, run.result.get(f"{kind}_std") or 0.0)


def _experts_table(rows: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Epochs `[E]` and test accuracies `[groups, E]` from the experts' rows."""
    measured = {
        (row.get("group", 0), row.get("epoch", row["step"])): row["test_accuracy"] for row in rows
    }
    groups, epochs = (sorted({key[i] for key in measured}) for i in (0, 1))
    table = [[measured.get((group, epoch), np.nan) for epoch in epochs] for group in groups]
    return np.array(epochs), np.array(table, float)
