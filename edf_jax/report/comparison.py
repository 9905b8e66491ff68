"""The table of a comparison: gathered from its runs' results, written in four forms."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edf_jax.distilled_set import BYTES, StoredBytes
from edf_jax.methods.soft_labels import LABEL_REGIMES
from edf_jax.report import charts
from edf_jax.runs.files import RunFiles, selected
from edf_jax.runs.grid import Grid, GridRun
from edf_jax.runs.metrics import read_metrics
from edf_jax.runs.statistics import interval95, interval_text, mean_text
from edf_jax.runtime import storage, tables
from edf_jax.runtime.errors import UserError

_FILE = "comparison.json"
# Stages that runs share, or that come to nothing.
_NOT_THE_METHODS = ("set-up", "prepare", "experts", "report")


@dataclasses.dataclass(frozen=True)
class Figure:
    """Test accuracies of one kind of set, in percent.

    Attributes:
        by_seed: for each seed those of its networks.
    """

    by_seed: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> float:
        return float(np.mean([value for values in self.by_seed for value in values]))

    @property
    def std(self) -> float:
        """Over all networks of all seeds, ddof 0."""
        return float(np.std([value for values in self.by_seed for value in values]))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of the mean: over seeds where there are two or more, else over networks.

        A seed's networks are trained on one set, so they say little about another.
        """
        values = [float(np.mean(values)) for values in self.by_seed]
        if len(values) == 1:
            values = list(self.by_seed[0])
        return interval95(float(np.mean(values)), float(np.std(values)), len(values))

    @property
    def text(self) -> str:
        return mean_text(self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: what is compared.
        last: of the set that `distill.select` says, by default after the last iteration; of real
            images, theirs.
        best: the best on test data of each run; None for real images.
        average: of FTD's moving average.
        seconds: of distilling and evaluating, a run's mean; without the experts.
        memory: the largest resident size of a run, in MiB.
        device_memory: the most that an accelerator held, in MiB.
        experts: the name of the run that trained them, and its seconds.
        initial: of the images that each run started from; None where it wasn't measured.
        paper_statistic: the largest of each run's evaluations while distilling, each by networks of
            its own; None where they weren't.
        stored: what the set takes; None where its result doesn't tell.
        labels: whose labels all of these are with (`evaluate.labels`).
        by_labels: as `last`, of each label regime that was measured beside.
        length: epochs that each network was trained, and steps of each; None where unknown.
    """

    label: str
    last: Figure
    best: Figure | None
    average: Figure | None
    seconds: float
    memory: float
    device_memory: float | None
    experts: tuple[str, float] | None
    initial: Figure | None = None
    paper_statistic: Figure | None = None
    stored: StoredBytes | None = None
    labels: str = "own"
    by_labels: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    length: tuple[int, int] | None = None

    def figures(self) -> dict[str, Any]:
        """Everything as JSON and CSV hold it."""
        interval = self.last.interval or (None, None)
        figures: dict[str, Any] = {
            "method": self.label,
            "labels": self.labels,
            "mean": round(self.last.mean, 3),
            "std": round(self.last.std, 3),
            "interval_low": None if interval[0] is None else round(interval[0], 3),
            "interval_high": None if interval[1] is None else round(interval[1], 3),
            "seeds": len(self.last.by_seed),
            "networks": sum(len(values) for values in self.last.by_seed),
        }
        others = {
            "best_on_test": self.best,
            "paper_statistic": self.paper_statistic,
            "average": self.average,
            "initial": self.initial,
        }
        others |= {f"{name}_labels": self.by_labels.get(name) for name in LABEL_REGIMES}
        for name, figure in others.items():
            figures[f"{name}_mean"] = None if figure is None else round(figure.mean, 3)
            figures[f"{name}_std"] = None if figure is None else round(figure.std, 3)
        return {
            **figures,
            "epochs": self.length and self.length[0],
            "steps": self.length and self.length[1],
            "seconds": round(self.seconds, 1),
            "memory_mb": self.memory,
            "device_memory_mb": self.device_memory,
            "experts": self.experts and self.experts[0],
            "experts_seconds": self.experts and round(self.experts[1], 1),
            "image_bytes": self.stored and self.stored.images,
            "label_bytes": self.stored and self.stored.labels,
        }

    def cells(self) -> dict[str, str]:
        """The line as people read it, by column."""
        return {
            "method": self.label,
            "initial images, %": "" if self.initial is None else self.initial.text,
            "test accuracy, %": self.last.text,
            "95% interval": interval_text(self.last.interval),
            **{
                f"{name} labels, %": self.by_labels[name].text if name in self.by_labels else ""
                for name in LABEL_REGIMES
            },
            "best on test, %": "" if self.best is None else self.best.text,
            "as papers count, %": "" if (paper := self.paper_statistic) is None else paper.text,
            "moving average, %": "" if self.average is None else self.average.text,
            BYTES: "" if self.stored is None else self.stored.text,
            "labels": "" if self.labels == "own" else self.labels,
            "epochs x steps": "" if self.length is None else "{} x {}".format(*self.length),
            "seconds": f"{self.seconds:.0f}",
            "memory, MiB": f"{self.memory:.0f}",
            "device memory, MiB": "" if self.device_memory is None else f"{self.device_memory:.0f}",
            "experts": "" if self.experts is None else self.experts[0],
        }


def gather(grid: Grid) -> list[Row]:
    """The rows of a grid whose runs are all finished."""
    return [
        _row(label, [grid.runs[identity] for identity in ids], grid)
        for label, ids in grid.rows.items()
    ]


def _row(label: str, runs: Sequence[GridRun], grid: Grid) -> Row:
    results = [_result(run) for run in runs]
    kind = runs[0].baseline or selected(results[0])
    experts = None
    for identity, run in grid.runs.items():
        if run in runs and identity in grid.experts:
            trainer = grid.runs[grid.experts[identity]]
            experts = trainer.name, float(_result(trainer)["stages"].get("experts", 0.0))
    device = [m for result in results if (m := result.get("peak_device_memory_mb")) is not None]
    last = _figure(results, kind)
    if last is None:
        raise UserError(f"{runs[0].workdir} has no result of kind {kind}: remove it")
    return Row(
        label,
        last,
        _figure(results, "best_on_test"),
        _figure(results, "average"),
        float(np.mean([own_seconds(result) for result in results])),
        max(result["peak_memory_mb"] for result in results),
        max(device, default=None),
        experts,
        _figure(results, "initial"),
        _figure(results, "paper_statistic"),
        stored=StoredBytes.of_figures(results[0], kind),
        labels=results[0].get("labels", "own"),
        by_labels=_by_labels(results, kind),
        length=(results[0][f"{kind}_epochs"], results[0][f"{kind}_steps"])
        if f"{kind}_epochs" in results[0]
        else None,
    )


def _by_labels(results: Sequence[dict[str, Any]], kind: str) -> dict[str, Figure]:
    """The figures of label regimes beside the first, of the first network."""
    found = {}
    for labels in LABEL_REGIMES:
        if labels != results[0].get("labels"):
            values = tuple(
                tuple(row["accuracies"])
                for result in results
                for row in result.get("rows", ())
                if (row["kind"], row["network"]) == (kind, result.get("network"))
                and row.get("labels") == labels
            )
            if len(values) == len(results):
                found[labels] = Figure(values)
    return found


def own_seconds(result: Mapping[str, Any]) -> float:
    """What a run took for itself alone: distilling and evaluating, without what others share."""
    return sum(s for stage, s in result["stages"].items() if stage not in _NOT_THE_METHODS)


def _figure(results: Sequence[dict[str, Any]], kind: str) -> Figure | None:
    name = f"{kind}_accuracies"
    if not all(result.get(name) for result in results):
        return None
    return Figure(tuple(tuple(result[name]) for result in results))


def _result(run: GridRun) -> dict[str, Any]:
    result = RunFiles(run.workdir).result
    if not result:
        raise UserError(f"{run.workdir / 'result.json'} is missing: compare again")
    return result


def save_grid(grid: Grid, workdir: pathlib.Path) -> None:
    """Writes `comparison.json`, from which `load` makes the table again."""
    cells = {
        identity: {
            "name": run.name,
            "folder": run.workdir.relative_to(workdir).as_posix(),
            "kind": run.kind,
            "baseline": run.baseline,
        }
        for identity, run in grid.runs.items()
    }
    what = {"title": grid.title, "rows": grid.rows, "cells": cells, "experts": grid.experts}
    storage.write_record(workdir / _FILE, what)


def is_comparison(workdir: pathlib.Path) -> bool:
    """Whether a folder holds a finished comparison."""
    return (workdir / _FILE).exists()


def load(workdir: pathlib.Path) -> tuple[str, list[Row]]:
    """A comparison's title and rows, from its runs' results.

    Raises:
        UserError: its files can't be read.
    """
    grid = load_grid(workdir)
    return grid.title, gather(grid)


def load_grid(workdir: pathlib.Path) -> Grid:
    """A finished comparison's rows and runs, without the runs' configs.

    Raises:
        UserError: its file can't be read.
    """
    path = workdir / _FILE
    try:
        what = storage.read_record(path, sealed=False)
        runs = {
            identity: GridRun(
                cell["name"], workdir / cell["folder"], None, cell["kind"], cell["baseline"]
            )
            for identity, cell in what["cells"].items()
        }
        return Grid(what["title"], what["rows"], runs, what["experts"])
    except storage.DamagedFile as error:
        raise UserError(f"{error}: compare again") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error}): compare again") from error


def learning_curves(grid: Grid) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """How test accuracy grew while distilling, by label.

    Args:
        grid: whose runs are finished.

    Returns:
        For each label whose runs logged accuracies: iterations `[n]` that all its seeds have, the
        mean `[n]` and the deviation `[n]` (ddof 0) over seeds, in percent.
    """
    found = {}
    for label, identities in grid.rows.items():
        seeds = [_accuracies(grid.runs[identity].workdir) for identity in identities]
        steps = sorted(set.intersection(*map(set, seeds)))
        if steps:
            values = np.array([[seed[step] for step in steps] for seed in seeds])
            found[label] = (np.array(steps), values.mean(0), values.std(0))
    return found


def _accuracies(workdir: pathlib.Path) -> dict[int, float]:
    found = {row["step"]: row.get("accuracy_mean") for row in read_metrics(workdir, "evaluate")}
    return {step: accuracy for step, accuracy in found.items() if accuracy is not None}


def gains(rows: Sequence[Row], over: str) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """What each row gains over another, seed by seed.

    A seed's runs start from the same images, so pairs say more than two means do.

    Args:
        rows: of a table.
        over: the label of the row to compare with.

    Returns:
        By label, the mean over seeds of the difference, in percentage points, and its 95% interval
        (Student's t over seeds; None with one seed).

    Raises:
        UserError: no row is called that.
    """
    by_seed = {row.label: [np.mean(values) for values in row.last.by_seed] for row in rows}
    if over not in by_seed:
        raise UserError(f"no row is called {over!r}: {', '.join(by_seed)} are")
    found = {}
    for label, values in by_seed.items():
        if label != over:
            pairs = np.subtract(values, by_seed[over])
            spread = interval95(float(pairs.mean()), float(pairs.std()), len(pairs))
            found[label] = (float(pairs.mean()), spread)
    return found


def write(grid: Grid, rows: Sequence[Row], workdir: pathlib.Path) -> None:
    """Writes `table.md`, `.csv`, `.tex` and `.png`; `curves.png` where runs logged accuracies."""
    title = grid.title
    storage.write_text(workdir / "table.md", f"{title}\n\n{to_markdown(rows)}")
    storage.write_text(workdir / "table.csv", to_csv(rows))
    latex = tables.to_latex([row.cells() for row in rows], f"{title}. {_notes(rows)}")
    storage.write_text(workdir / "table.tex", latex)
    nothing = (float("nan"), float("nan"))
    shown = {"last": [(row.last.mean, row.last.std) for row in rows]}
    if any(row.best for row in rows):
        shown["best on test"] = [
            (row.best.mean, row.best.std) if row.best else nothing for row in rows
        ]
    picture = charts.comparison(
        [row.label for row in rows], shown, title=f"Test accuracy, %: {title}"
    )
    storage.write_bytes(workdir / "table.png", picture)
    write_curves(grid, workdir)


def write_curves(grid: Grid, workdir: pathlib.Path) -> None:
    """Writes `curves.png`, where runs logged accuracies while distilling."""
    if curves := learning_curves(grid):
        title = "Test accuracy while distilling, %"
        picture = charts.curves(curves, title=title, x_label="iteration")
        storage.write_bytes(workdir / "curves.png", picture)


def to_csv(rows: Sequence[Row]) -> str:
    """Every figure as comma-separated values."""
    return tables.to_csv([row.figures() for row in rows])


def to_markdown(rows: Sequence[Row]) -> str:
    """The table, and what its numbers are."""
    return tables.to_markdown([row.cells() for row in rows]) + "\n" + _notes(rows) + "\n"


def _notes(rows: Sequence[Row]) -> str:
    counts = [len(values) for row in rows for values in row.last.by_seed]
    seeds = len(rows[0].last.by_seed)
    networks = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    notes = [
        f"Mean and standard deviation over {networks} networks"
        + (f" of each of {seeds} seeds" if seeds > 1 else "")
        + "; interval by Student's t over "
        + ("seeds." if seeds > 1 else "networks."),
        "Best on test: the evaluation of each run that was best on test data.",
        "Seconds: distilling and evaluating, a run's mean.",
    ]
    if any(row.paper_statistic for row in rows):
        notes.append("As papers count: the largest of each run's evaluations, by new networks.")
    experts = dict(row.experts for row in rows if row.experts)
    if experts:
        shown = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in experts.items())
        notes.append(f"Training the experts, once for all rows that share them: {shown}.")
    return " ".join(notes)
