"""Does EDF hold on real complex scenes? EDF beside DATM, its parts and controls, on real images.

    python -m experiments.real_scenes --images=FOLDER --workdir=runs/real_scenes

FOLDER holds `imagenette-128` and `imagewoof-128` (any folders of train|val/<WordNet id>/* of those
classes). Every run is a process of `edf_jax.main` in a folder of its own, and every finished run a
line of `--csv`; the same command goes on from that file, on any machine: experts are trained again
where they are missing, runs are not made again where their line is there.

All rows share the experts, the initial images, the evaluation and the budget. A tenth of the
training images is set aside; each method chooses its images' rate among the same trials by the
accuracy on those. Test images are looked at once a run, at its end.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from edf_jax.config.resolve import default_config, resolve
from edf_jax.runs.files import open_run
from experiments import command as command_line
from experiments import controls, keep, rows
from experiments.rows import Row

# Chosen by hand before this experiment, for experts that learn and students that follow them.
BASE: dict[str, Any] = {
    "data.source": "folder",
    "experts.seed": 0,
    "data.held_out": 0.1,
    "model.name": "ConvNet",
    "model.width": 32,
    "experts.num": 4,
    "experts.epochs": 24,
    "experts.batch": 256,
    "experts.lr": 0.05,
    "distill.iterations": 300,
    "distill.syn_steps": 20,
    "distill.batch_syn": 100,
    "distill.expert_epochs": 2,
    "distill.min_start_epoch": 0,
    "distill.current_max_start_epoch": 4,
    "distill.max_start_epoch": 12,
    "distill.expansion_end": 200,
    "distill.lr_teacher": 0.04,
    "distill.lr_y": 2.0,
    "distill.lr_lr": 1e-5,
    "distill.threshold": 1.5,
    "distill.eval_every": 100000,
    "distill.save_every": 50,
    "cam.every": 50,
    "cam.beta": 1.0,
    "evaluate.num": 5,
    "evaluate.epochs": 500,
    "evaluate.during_num": 1,
    "evaluate.during_epochs": 1,
    "evaluate.baselines": "",
    "log.tensorboard": False,
}
# Trials are shorter, and judged on the training images set aside.
TRIAL: dict[str, Any] = {
    "distill.iterations": 150,
    "distill.expansion_end": 100,
    "evaluate.during_num": 3,
    "evaluate.during_epochs": 500,
}
RATES = (300.0, 1000.0, 3000.0)
_TRIAL_SEED = 100
WIDE, NARROW = 0.25, 0.125
_EDF = {"method": "edf", "distill.drop": 0.25}
_FOUR = {**_EDF, "distill.parametrisation": "multi_formation"}
# What chooses its images' rate by trials of its own.
_TRIED: dict[str, dict[str, Any]] = {
    "datm": {"method": "datm"},
    "edf": _EDF,
    "mtt": {"method": "mtt"},
    "edf, four in one": _FOUR,
}
# By label: whose trials choose the rate, of `_TRIED`, and what the row changes.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "datm, crop 0.25": ("datm", {"method": "datm", "augment.crop_ratio": WIDE}),
    "edf, crop 0.25": ("edf", {**_EDF, "augment.crop_ratio": WIDE}),
    "datm, crop 0.125": ("datm", {"method": "datm", "augment.crop_ratio": NARROW}),
    "edf, crop 0.125": ("edf", {**_EDF, "augment.crop_ratio": NARROW}),
    "edf without CPD": (
        "edf",
        {**_EDF, "augment.crop_ratio": WIDE, "distill.loss_mask": "none"},
    ),
    "edf without DAE": (
        "edf",
        {**_EDF, "augment.crop_ratio": WIDE, "distill.pixel_weight": "none"},
    ),
    "edf, LayerCAM of all experts": (
        "edf",
        {
            **_EDF,
            "augment.crop_ratio": WIDE,
            "cam.method": "layer_cam",
            "cam.network": "experts",
        },
    ),
    "mtt": ("mtt", {"method": "mtt", "augment.crop_ratio": WIDE}),
    "edf, four in one": ("edf, four in one", {**_FOUR, "augment.crop_ratio": WIDE}),
    "edf, a random quarter dropped": (
        "edf",
        {**_EDF, "augment.crop_ratio": WIDE, "distill.loss_mask": "random"},
    ),
    "edf, loss rescaled as by CPD": (
        "edf",
        {**_EDF, "augment.crop_ratio": WIDE, "distill.loss_mask": "rescaled"},
    ),
}
_CONTROLS = ("random", "rescaled")
# One run that distils nothing: real images by every choice, and the set that all rows start from.
_REAL = {
    "method": "datm",
    "augment.crop_ratio": WIDE,
    "distill.iterations": 0,
    "evaluate.baselines": "random,herding,k_centre,real_soft,downsampled",
}
MADE_OF_REAL = ("random", "herding", "k_centre", "real_soft", "downsampled")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the experiment.

    Attributes:
        experiment: the table that it belongs to.
        row: its label there.
        values: the config keys that it sets, without paths.
        trial: whether it chooses a rate, and is judged on held-out images alone.
    """

    experiment: str
    row: str
    values: Mapping[str, Any]
    trial: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Its identity (see `rows.settings_of`)."""
        return rows.settings_of(resolve(default_config(**self.values)))

    @property
    def name(self) -> str:
        slug = self.row.replace(",", "").replace(" ", "-")
        return f"{self.experiment}-{slug}-seed{self.values['seed']}"


def runs(
    kept: list[Row], data: str, ipc: int, seeds: range, resolution: int, labels: tuple[str, ...]
) -> Iterator[Run]:
    """Some runs of one table, in order; rates are chosen once the trials' rows are there.

    Args:
        kept: the finished runs; grows while runs are made.
        data: `imagenette` or `imagewoof`.
        ipc: images per class.
        seeds: of the distillations.
        resolution: side of the images.
        labels: the rows, of `ROWS`.
    """
    table = f"{data}_{resolution}_ipc{ipc}"
    common = {**BASE, "data.subset": data, "data.resolution": resolution, "distill.ipc": ipc}

    def run(row: str, seed: int, values: Mapping[str, Any], *, trial: bool = False) -> Run:
        own = {**common, **values, "seed": seed}
        if ipc == 1 and own["method"] == "edf":
            own["distill.drop"] = 0.0
        return Run(f"{table}_trials" if trial else table, row, own, trial)

    def trials(method: str) -> dict[float, Run]:
        return {
            rate: run(
                f"{method}, lr_img {rate:g}",
                _TRIAL_SEED,
                {**_TRIED[method], **TRIAL, "augment.crop_ratio": WIDE, "distill.lr_img": rate},
                trial=True,
            )
            for rate in RATES
        }

    def chosen(method: str) -> float:
        known = {row.digest: row.held_out for row in kept}
        digests = {rate: _digest(made) for rate, made in trials(method).items()}
        return max(RATES, key=lambda rate: known[digests[rate]] or 0.0)

    for method in dict.fromkeys(ROWS[label][0] for label in labels):
        yield from trials(method).values()
    for seed in seeds:
        yield run("initial", seed, _REAL)
        for label in labels:
            method, changes = ROWS[label]
            yield run(label, seed, {**changes, "distill.lr_img": chosen(method)})


def _digest(run: Run) -> str:
    return Row("", "", "", 0, 0, 0, (), settings=run.settings).digest


def _config_file(run: Run) -> str:
    data = run.values["data.subset"]
    if run.values.get("distill.loss_mask") in _CONTROLS:
        return f"experiments/controls.py:{data}"
    return f"configs/{data}.py:ipc{run.values['distill.ipc']}"


def make(run: Run, images: pathlib.Path, workdir: pathlib.Path) -> list[Row]:
    """Runs it, or continues; returns its rows.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    folder = workdir / run.name
    data, resolution = run.values["data.subset"], run.values["data.resolution"]
    values = {
        **run.values,
        "data.path": str(images / f"{data}-128"),
        "experts.dir": str(workdir / f"experts-{data}-{resolution}"),
    }
    command = [
        "-m",
        "edf_jax.main",
        f"--config={_config_file(run)}",
        *(f"--config.{key}={value}" for key, value in values.items()),
        f"--workdir={folder}",
        f"--stage={'distill' if run.trial else 'evaluate'}",
    ]
    began = time.monotonic()
    subprocess.run([sys.executable, *command], check=True)
    found = open_run(folder)
    if not run.trial:
        kinds = {run.row: "distilled"}
        if run.row == "initial":
            kinds |= {name: name for name in MADE_OF_REAL} | {"all data": "full"}
        return [
            dataclasses.replace(
                keep.row_of(run.experiment, label, found, kind), settings=run.settings
            )
            for label, kind in kinds.items()
            if found.result.get(f"{kind}_accuracies")
        ]
    iterations = found.rows("distill")
    return [
        Row(
            run.experiment,
            run.row,
            data,
            resolution,
            run.values["distill.ipc"],
            run.values["seed"],
            (),
            held_out=found.rows("evaluate")[-1]["held_out_accuracy_mean"],
            seconds=round(time.monotonic() - began, 1),
            skipped=sum(bool(row["skipped"]) for row in iterations),
            command=f"python {shlex.join(command)}",
            settings=run.settings,
        )
    ]


# The rows on which the verdict hangs, and the two that it is asked of at other sizes.
_VERDICT, _PAIR = tuple(ROWS)[:4], ("datm, crop 0.25", "edf, crop 0.25")
_FOURS = (*_PAIR, "edf, four in one")
# In this order: what takes minutes and what the verdict hangs on come first.
TABLES = (
    ("imagenette", 1, range(0, 3), 32, _FOURS),
    ("imagewoof", 1, range(0, 3), 32, _FOURS),
    ("imagenette", 10, range(0, 3), 32, _VERDICT),
    ("imagewoof", 10, range(0, 3), 32, _VERDICT),
    ("imagenette", 10, range(0, 3), 32, tuple(ROWS)),
    ("imagewoof", 10, range(0, 3), 32, tuple(ROWS)),
    ("imagenette", 10, range(3, 5), 32, _VERDICT),
    ("imagewoof", 10, range(3, 5), 32, _VERDICT),
    ("imagenette", 10, range(0, 2), 64, _PAIR),
)


def main() -> int:
    options = command_line.parser("real_scenes").parse_args()
    return command_line.run("real_scenes", lambda: _make_all(options))


def _make_all(options: argparse.Namespace) -> int:
    controls.add()
    options.workdir.mkdir(parents=True, exist_ok=True)
    kept = rows.read(options.csv)
    for table in TABLES:
        for run in runs(kept, *table):
            if any(row.digest == _digest(run) for row in kept):
                continue
            print(f"{run.name} ({len(kept)} rows are kept)", file=sys.stderr, flush=True)
            for row in make(run, options.images, options.workdir):
                rows.append(options.csv, row)
                kept.append(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
