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
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

# Chosen by hand before this experiment, for experts that learn and students that follow them.
BASE: dict[str, Any] = {
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
WIDE, NARROW = 0.25, 0.125
_EDF = {"method": "edf", "distill.drop": 0.25}
# By label: the method whose trials choose the rate, and what the row changes.
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
    "mtt": ("mtt", {"method": "mtt", "augment.crop_ratio": WIDE}),
}
# One run that distils nothing: real images by every choice, and the set that all rows start from.
_REAL = {
    "method": "datm",
    "augment.crop_ratio": WIDE,
    "distill.iterations": 0,
    "evaluate.baselines": "random,herding,k_centre,real_soft",
}
MADE_OF_REAL = ("random", "herding", "k_centre", "real_soft")
DATA = ("imagenette", "imagewoof")
COLUMNS = (
    "experiment", "data", "resolution", "ipc", "row", "seed", "mean", "std", "accuracies",
    "held_out", "iterations", "skipped", "loss", "seconds", "settings", "command",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the experiment.

    Attributes:
        data: `imagenette` or `imagewoof`.
        ipc: images per class.
        row: its label.
        seed: of the distillation; experts share theirs.
        values: the config keys that it sets.
        trial: whether it chooses a rate, and is judged on held-out images.
    """

    data: str
    ipc: int
    row: str
    seed: int
    values: Mapping[str, Any]
    trial: bool = False

    @property
    def resolution(self) -> int:
        return self.values["data.resolution"]

    @property
    def identity(self) -> str:
        """Of all that decides its figures; paths don't."""
        content = json.dumps([self.data, self.ipc, self.seed, dict(self.values)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        slug = self.row.replace(",", "").replace(" ", "-")
        kind = "trial-" if self.trial else ""
        return f"{self.data}-{self.resolution}-ipc{self.ipc}-{kind}{slug}-seed{self.seed}"


def runs(
    kept: Mapping[str, Mapping[str, str]], data: str, ipc: int, seeds: range, resolution: int
) -> Iterator[Run]:
    """The runs of one table, in order; rates are chosen once the trials' lines are there.

    Args:
        kept: the finished runs' lines by identity; grows while runs are made.
        data: `imagenette` or `imagewoof`.
        ipc: images per class.
        seeds: of the distillations.
        resolution: side of the images.
    """

    def run(row: str, seed: int, values: Mapping[str, Any], trial: bool = False) -> Run:
        own = {**BASE, "data.resolution": resolution, **values}
        if ipc == 1:
            own = {**own, "distill.drop": 0.0} if "distill.drop" in own else own
        return Run(data, ipc, row, seed, own, trial)

    def trials(method: str) -> dict[float, Run]:
        changes = _EDF if method == "edf" else {"method": method}
        return {
            rate: run(
                f"{method}, lr_img {rate:g}",
                100,
                {**TRIAL, **changes, "augment.crop_ratio": WIDE, "distill.lr_img": rate},
                trial=True,
            )
            for rate in RATES
        }

    def chosen(method: str) -> float:
        found = {rate: kept[made.identity] for rate, made in trials(method).items()}
        return max(found, key=lambda rate: float(found[rate]["held_out"]))

    for method in ("datm", "edf", "mtt"):
        yield from trials(method).values()
    for seed in seeds:
        yield run("initial", seed, _REAL)
        for row, (method, changes) in ROWS.items():
            yield run(row, seed, {**changes, "distill.lr_img": chosen(method)})


def make(run: Run, images: pathlib.Path, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Runs it, or continues; returns its lines for the file.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    stage = "distill" if run.trial else "evaluate"
    folder = workdir / run.name
    experts = workdir / f"experts-{run.data}-{run.resolution}"
    values = {
        **run.values,
        "data.path": str(images / f"{run.data}-128"),
        "experts.dir": str(experts),
        "experts.seed": 0,
        "seed": run.seed,
    }
    command = [
        "-m",
        "edf_jax.main",
        f"--config=configs/{run.data}.py:ipc{run.ipc}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]
    own = [f"--workdir={folder}", f"--stage={stage}"]
    began = time.monotonic()
    subprocess.run([sys.executable, *command, *own], check=True)
    seconds = time.monotonic() - began
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    iterations = [row for row in rows if row["stage"] == "distill"]
    tail = [row["loss"] for row in iterations[-50:]]
    line = {
        "experiment": "real_scenes trial" if run.trial else "real_scenes",
        "data": run.data,
        "resolution": run.resolution,
        "ipc": run.ipc,
        "seed": run.seed,
        "iterations": len(iterations),
        "skipped": sum(row["skipped"] for row in iterations),
        "loss": f"{sum(tail) / len(tail):.4f}" if tail else "",
        "seconds": round(seconds),
        "settings": run.identity,
        "command": f"python {' '.join(c for c in command if not c.startswith('--config.data.path'))}",
    }
    if run.trial:
        last = [row for row in rows if row["stage"] == "evaluate"][-1]
        return [{**line, "row": run.row, "held_out": round(last["held_out_accuracy_mean"], 3)}]
    result = json.loads((folder / "result.json").read_text())
    kinds = {run.row: "distilled"}
    if run.row == "initial":
        kinds |= {name: name for name in MADE_OF_REAL} | {"all data": "full"}
    return [
        {
            **line,
            "row": label,
            "mean": round(result[f"{kind}_mean"], 3),
            "std": round(result[f"{kind}_std"], 3),
            "accuracies": " ".join(f"{value:.2f}" for value in result[f"{kind}_accuracies"]),
        }
        for label, kind in kinds.items()
        if f"{kind}_mean" in result
    ]


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The lines of the file; none where it isn't there."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def keep(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
    """Adds lines to the file, whole or not at all."""
    whole = [*read(path), *lines]
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(whole)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


# In this order: what the verdict hangs on comes first.
TABLES = (
    ("imagenette", 10, range(0, 3), 32),
    ("imagewoof", 10, range(0, 3), 32),
    ("imagenette", 10, range(3, 5), 32),
    ("imagewoof", 10, range(3, 5), 32),
    ("imagenette", 1, range(0, 3), 32),
    ("imagewoof", 1, range(0, 3), 32),
    ("imagenette", 10, range(0, 2), 64),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.real_scenes")
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/real_scenes"))
    parser.add_argument(
        "--csv", type=pathlib.Path, default=pathlib.Path("docs/results/real_scenes.csv")
    )
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    kept = {line["settings"]: line for line in read(options.csv)}
    for table in TABLES:
        for run in runs(kept, *table):
            if run.identity in kept:
                continue
            print(f"{run.name} ({len(kept)} runs are kept)", file=sys.stderr, flush=True)
            lines = make(run, options.images, options.workdir)
            keep(options.csv, lines)
            kept[run.identity] = {k: str(v) for k, v in lines[0].items()}
    return 0


if __name__ == "__main__":
    sys.exit(main())
