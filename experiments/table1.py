"""EDF's main table (2410.17193) from a folder of ImageNet, cell by cell.

Called by `launch/reproduce_table1.sh`, whose `--help` tells it. Each cell is a run of
`edf_jax.main` in a folder and a process of its own; all share one folder of experts. Random real
images and all the real data come with EDF's cells.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from edf_jax.config.flags import parse as parse_flags
from edf_jax.data.catalogue import is_fastai
from edf_jax.runtime import console, storage
from edf_jax.runtime.errors import UserError

_TABLE = pathlib.Path(__file__).with_name("table1.json")
_METHODS = ("edf", "datm", "ftd", "mtt")
_TEACHER = "edf_kd"
_CHOSEN = ("best_on_test", "paper_statistic")
_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
_DESCRIPTION = """\
Every cell of EDF's table that this software makes, from an ImageNet folder: six subsets and
ImageNet100, IPC 1, 10 and 50, methods EDF, DATM, FTD and MTT where the paper has a figure, random
real images, all real data, and EDF's set with a teacher. The published accuracy stands beside each
cell as it finishes, and in WORKDIR/table.md."""
_EPILOG = """\
The same command continues: finished cells are skipped. Experts are trained once for each subset and
optimiser. EDF, DATM and FTD share theirs at all IPCs; MTT's are its own.

MTT and FTD take EDF's published settings of the cell with their own parts, not their authors'
settings for other networks. ImageNet100's classes and settings weren't published: see
configs/imagenet100.py. The paper's maps are an ImageNet ResNet-18's: give its weights with
--config.cam.weights=FILE, else an expert's are taken. The teacher is a ConvNet with batch norm
trained here, for the paper names none; RDED's and SRe2L's own sets are not made here.

Beside each figure of ours, the mean of new networks on the last set, stands the paper's statistic:
the largest of a run's evaluations, each by one new network. That one is to be compared with the
published figure, and lies some two deviations of a network over a mean.

examples:
  bash launch/reproduce_table1.sh /data/imagenet --dry_run
  bash launch/reproduce_table1.sh /data/imagenet --subsets=imagenette --ipc=10 --methods=edf,datm"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of the table.

    Attributes:
        subset: a config's name.
        ipc: images per class.
        method: its name, or `edf_kd`: EDF's set with a teacher.
        folder: of its run.
        flags: of `edf_jax.main`.
    """

    subset: str
    ipc: str
    method: str
    folder: pathlib.Path
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.subset} ipc{self.ipc} {self.method}"


def published() -> dict[str, dict[str, dict[str, float]]]:
    """The paper's accuracies in percent by subset, IPC and column; blank cells are left out."""
    return json.loads(_TABLE.read_text(encoding="utf-8"))


def cells(options: argparse.Namespace, overrides: Sequence[str]) -> Iterator[Cell]:
    """The cells asked for, in the order that they run in."""
    workdir = pathlib.Path(options.workdir)
    for subset in options.subsets:
        for ipc in options.ipc:
            columns = published()[subset][ipc]
            for method in options.methods:
                if method not in columns:
                    continue
                # A teacher labels EDF's set, so it follows EDF's cell.
                own = "edf" if method == _TEACHER else method
                folder = workdir / f"{subset}_ipc{ipc}_{method}"
                given = [
                    f"--config={_CONFIGS / subset}.py:ipc{ipc},method={own}",
                    f"--config.data.path={options.imagenet}",
                    f"--config.experts.dir={workdir / 'experts'}",
                    f"--config.seed={options.seed}",
                    "--config.evaluate.during_fresh=true",
                    *overrides,
                    f"--workdir={folder}",
                ]
                if method == _TEACHER:
                    given += [
                        f"--config.evaluate.distilled={workdir / f'{subset}_ipc{ipc}_edf'}",
                        f"--config.evaluate.protocol={options.protocol}",
                        f"--config.teacher.dir={workdir / 'teachers'}",
                        "--config.evaluate.baselines=",
                        "--stage=evaluate",
                    ]
                elif method != "edf":
                    given.append("--config.evaluate.baselines=")
                yield Cell(subset, ipc, method, folder, tuple(given))


def is_finished(cell: Cell) -> bool:
    """Whether a cell's result is there, made with its very flags."""
    try:
        record = storage.read_record(cell.folder / "cell.json")
    except storage.DamagedFile:
        return False
    return record.get("flags") == list(cell.flags) and (cell.folder / "result.json").exists()


def run_cell(cell: Cell) -> int:
    """Makes or continues a cell's run; returns its exit status."""
    status = subprocess.run([sys.executable, "-m", "edf_jax.main", *cell.flags]).returncode
    if status == 0:
        storage.write_record(cell.folder / "cell.json", {"flags": list(cell.flags)})
    return status


@dataclasses.dataclass(frozen=True)
class Figure:
    """What a finished cell says of one column, in percent.

    Attributes:
        mean: over networks trained on the last set, or on all real data.
        std: their deviation.
        best: of the set that was best on test data; None where there is no choice.
        paper_statistic: the largest of the run's evaluations, as the paper counts; likewise.
    """

    mean: float
    std: float
    best: float | None = None
    paper_statistic: float | None = None

    @property
    def text(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f}"


def figures(cell: Cell) -> dict[str, Figure]:
    """A finished cell's columns of the table."""
    result = json.loads((cell.folder / "result.json").read_text(encoding="utf-8"))
    kinds = {cell.method: "distilled"}
    if cell.method == "edf":
        kinds |= {"random": "random", "full": "full"}
    return {
        column: Figure(
            result[f"{kind}_mean"],
            result.get(f"{kind}_std") or 0.0,
            *(result.get(f"{k}_mean") for k in _CHOSEN if kind == "distilled"),
        )
        for column, kind in kinds.items()
        if result.get(f"{kind}_mean") is not None
    }


def expected(cell: Cell, column: str) -> float | None:
    """The paper's figure of a finished cell's column; None beside another split of the images."""
    result = json.loads((cell.folder / "result.json").read_text(encoding="utf-8"))
    if is_fastai(result.get("dataset", "")):
        return None
    return published()[cell.subset][cell.ipc].get(column)


def told(cell: Cell) -> list[str]:
    """A finished cell's lines: ours, and the published figure beside it."""
    lines = []
    for column, ours in figures(cell).items():
        told = ours.text
        if ours.best is not None:
            told += f", best on test {ours.best:.1f}"
        if ours.paper_statistic is not None:
            told += f", as the paper counts {ours.paper_statistic:.1f}"
        name = f"{cell.subset} ipc{cell.ipc} {column}"
        lines.append(f"{name}: {told}; published {_text(expected(cell, column))}")
    return lines


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def to_markdown(finished: Sequence[Cell]) -> str:
    """The table so far: `ours, as the paper counts (published)`; a dash where there is none."""
    columns = ("random", "mtt", "ftd", "datm", "edf", _TEACHER, "full")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    beside: dict[tuple[str, str], dict[str, float | None]] = {}
    for cell in finished:
        row = cell.subset, cell.ipc
        rows.setdefault(row, {}).update(figures(cell))
        # All cells of a row are of the same images.
        beside[row] = {column: expected(cell, column) for column in columns}
    lines = ["| subset | IPC | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for (subset, ipc), found in rows.items():
        texts = []
        for column in columns:
            paper = beside[subset, ipc][column]
            ours = found[column].text if column in found else "–"
            if column in found and found[column].paper_statistic is not None:
                ours += f", {_text(found[column].paper_statistic)}"
            texts.append(f"{ours} ({_text(paper)})")
        lines.append(f"| {subset} | {ipc} | " + " | ".join(texts) + " |")
    note = "Test accuracy in percent after the last iteration, mean ± deviation over networks; "
    note += "then, counted as the paper does, the largest of a run's evaluations, each by a new "
    note += "network; in brackets the paper's, which is of that kind.\n"
    if any(not any(row.values()) for row in beside.values()):
        note += "Where all are empty, the images are split as fast.ai does, not as the paper's.\n"
    return "\n".join([*lines, "", note])


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command's options, and the config's keys that go to every cell.

    Raises:
        UserError: one isn't known.
    """
    table = published()
    parser = argparse.ArgumentParser(
        prog="bash launch/reproduce_table1.sh",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    methods = (*_METHODS, _TEACHER)
    parser.add_argument("imagenet", help="folder with train/<WordNet id>/* and val/<WordNet id>/*")
    parser.add_argument("--workdir", default="runs/table1", help="default runs/table1")
    for name, known in (("subsets", list(table)), ("ipc", ["1", "10", "50"]), ("methods", methods)):
        told = ",".join(known)
        parser.add_argument(f"--{name}", default=told, metavar="A,B", help=f"of {told}")
    parser.add_argument("--protocol", choices=("rded", "sre2l"), default="rded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry_run", action="store_true", help="what each cell would take")
    parser.add_argument("--config.KEY", metavar="VALUE", help="another value, for all cells")
    options, rest = parser.parse_known_args(argv)
    for name, known in (("subsets", list(table)), ("ipc", ["1", "10", "50"]), ("methods", methods)):
        chosen = getattr(options, name).split(",")
        for value in chosen:
            if value not in known:
                raise UserError(f"--{name}: {value!r} is none of {', '.join(known)}")
        setattr(options, name, chosen)
    for flag in rest:
        if not flag.startswith("--config.") or "=" not in flag:
            raise UserError(f"there is no flag {flag} (see --help)")
    return options, rest


def dry_run(chosen: Sequence[Cell]) -> None:
    """Prints each cell's plan in short, and the experts' once."""
    from edf_jax.config.resolve import resolve
    from edf_jax.data.describe import describe_dataset
    from edf_jax.plan import plan

    def define(values) -> None:
        flags.DEFINE_string("stage", "", "of the cell", flag_values=values)

    experts: dict[tuple[str, str], tuple[float, float | None]] = {}
    advice = ""
    for cell in chosen:
        config = resolve(parse_flags(["table1", *cell.flags], define).config)
        data = describe_dataset(config.data)
        made = plan.make_plan(config, data, cell.folder)
        if cell.method != _TEACHER:
            size = made.experts_bytes / 2**30
            experts[cell.subset, config.experts.optimizer] = size, made.hours["experts"]
        advice = advice or ("" if data.available else data.advice)
        stages = ("evaluation",) if cell.method == _TEACHER else ("distillation", "evaluation")
        figure = f"published {published()[cell.subset][cell.ipc][cell.method]:.1f}"
        if is_fastai(data.name):
            figure = f"none published for {data.name}"
        print(
            f"{cell.name}: {'finished' if is_finished(cell) else 'to do'}; {figure}; "
            f"{made.num_images} images, "
            f"{config.distill.iterations} iterations, {max(made.memory.values()) / 2**30:.1f} GiB "
            f"of memory, {_hours([made.hours[stage] for stage in stages])} without experts"
        )
        print(f"  python -m edf_jax.main {shlex.join(cell.flags)}")
    for (subset, optimizer), (size, hours) in experts.items():
        print(f"experts of {subset}, {optimizer}: {size:.1f} GiB on disk, {_hours([hours])}")
    print(f"{len(chosen)} cells" + (f"; no data there yet: {advice}" if advice else ""))


def _hours(hours: Sequence[float | None]) -> str:
    known = [value for value in hours if value is not None]
    return f"{sum(known):,.1f} h" if known else "unknown hours on this device"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return console.exit_status(lambda: _run(argv), name="reproduce_table1")


def _run(argv: Sequence[str] | None) -> int:
    options, overrides = parse(argv)
    chosen = list(cells(options, overrides))
    if options.dry_run:
        dry_run(chosen)
        return 0
    done: list[Cell] = []
    for number, cell in enumerate(chosen, 1):
        if not is_finished(cell):
            print(f"reproduce_table1: {number} of {len(chosen)}, {cell.name}", flush=True)
            status = run_cell(cell)
            if status:
                return status
        done.append(cell)
        print("\n".join(told(cell)), flush=True)
        storage.write_text(pathlib.Path(options.workdir) / "table.md", to_markdown(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
