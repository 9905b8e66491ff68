"""Does a run find its own numbers? `auto` beside settings chosen by hand, and beside wrong ones.

    python -m experiments.auto_settings --images=FOLDER --csv=docs/results/auto_settings.csv

FOLDER holds `imagenette-128` and `imagewoof-128`; Fashion-MNIST is found where its config finds it,
and left out where it isn't. Every run is a process of `edf_jax.main` in a folder of its own, every
finished one rows of `--csv`; the same command goes on from that file, on any machine.

1. One command with no flag but the path, at one and ten images per class: `auto`, beside it the
   same data by hand.
2. By hand but for one rate, which is 100 times too large, 100 times too small, or auto.
3. The published IPC 1 config brought to a laptop by flags, with its own rates and with auto ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from edf_jax.config import files
from edf_jax.config.resolve import resolve
from edf_jax.data import describe_dataset
from edf_jax.runs.files import open_run
from edf_jax.runtime.errors import UserError
from experiments import command as command_line
from experiments import keep, rows
from experiments.real_scenes import BASE

RATES = ("experts.lr", "distill.lr_teacher", "distill.lr_img")
_PHOTOS = "photos"
_SCENES = ("imagenette", "imagewoof", "fashion_mnist", "digits_easy", "digits_hard", _PHOTOS)
# Where rates are made wrong.
_WRONG = ("imagenette", "digits_easy", "digits_hard")
# What a new user does to a published config so that it runs on a laptop.
_SCALED_DOWN = {
    "data.resolution": 32,
    "data.held_out": 0.1,
    "model.name": "ConvNet",
    "model.width": 32,
    "experts.num": 3,
    "experts.epochs": 12,
    "distill.iterations": 300,
    "distill.eval_every": 100000,
    "evaluate.num": 3,
    "evaluate.epochs": 300,
}
_ALL_RATES = (
    *RATES, "distill.lr_y", "distill.lr_lr", "distill.threshold", "distill.syn_steps",
    "distill.expert_epochs", "distill.min_start_epoch", "distill.current_max_start_epoch",
    "distill.max_start_epoch", "distill.expansion_end",
)  # fmt: skip

@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the experiment.

    Attributes:
        experiment: the table that it belongs to.
        row: its label there.
        config: a config file's name and variant.
        values: the keys that it sets beside, without paths.
    """

    experiment: str
    row: str
    config: tuple[str, str]
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Its identity (see `rows.settings_of`)."""
        return rows.settings_of(resolve(files.load(*self.config), **self.values))

    @property
    def name(self) -> str:
        slug = self.row.replace(",", "").replace(" ", "-")
        return f"{self.experiment}-{slug}"


def _auto(scene: str, ipc: int) -> tuple[str, str]:
    if scene.startswith("digits"):
        return "cluttered_digits", f"{scene.removeprefix('digits_')}_laptop_ipc{ipc}"
    if scene == _PHOTOS:
        return "folder", f"auto,ipc={ipc}"
    return scene, f"laptop_ipc{ipc}"


def _by_hand(scene: str, ipc: int) -> tuple[tuple[str, str], dict[str, Any]]:
    """The best settings chosen by hand."""
    drop = {"distill.drop": 0.0 if ipc == 1 else 0.25}
    if scene.startswith("digits"):
        return ("cluttered_digits", f"{scene.removeprefix('digits_')}_ipc{ipc}"), {}
    if scene == "fashion_mnist":
        return (scene, f"cpu_ipc{ipc}"), {}
    if scene == _PHOTOS:
        return ("folder", "few_photos"), {"distill.ipc": ipc, **drop}
    chosen = {**BASE, "distill.lr_img": 1000.0, "evaluate.baselines": "random", **drop}
    del chosen["experts.seed"]
    return (scene, f"ipc{ipc}"), {**chosen, "data.resolution": 32}


def runs() -> Iterator[Run]:
    """All runs, in the order in which they tell most."""
    for ipc in (10, 1):
        for scene in _SCENES:
            table = f"auto_{scene}_ipc{ipc}"
            yield Run(table, "auto", _auto(scene, ipc))
            yield Run(table, "by hand", *_by_hand(scene, ipc))
    scaled = ("imagenette", "ipc1")
    yield Run("auto_scaled_down", "the config's rates", scaled, _SCALED_DOWN)
    rates = dict.fromkeys(_ALL_RATES, "auto")
    yield Run("auto_scaled_down", "auto", scaled, {**_SCALED_DOWN, **rates})
    for scene in _WRONG:
        config, values = _by_hand(scene, 10)
        right = resolve(files.load(*config), **values)
        for key in RATES:
            group, _, leaf = key.rpartition(".")
            for label, value in {
                "auto": "auto",
                "100 times too large": right[group][leaf] * 100,
                "100 times too small": right[group][leaf] / 100,
            }.items():
                yield Run(f"auto_{scene}_{leaf}", label, config, {**values, key: value})


def _data_path(run: Run, images: pathlib.Path, workdir: pathlib.Path) -> str | None:
    """Where a run's images are; None where the config finds them itself."""
    name, _ = run.config
    if name == "folder":
        photos = workdir / _PHOTOS
        if not photos.exists():
            maker = pathlib.Path(__file__).parents[1] / "docs" / "make_photos.py"
            subprocess.run([sys.executable, str(maker), str(photos)], check=True)
        return str(photos)
    return str(images / f"{name}-128") if name.startswith("image") else None


def make(run: Run, images: pathlib.Path, workdir: pathlib.Path) -> list[rows.Row]:
    """Runs it, or continues; returns its rows.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    folder, path = workdir / run.name, _data_path(run, images, workdir)
    name, variant = run.config
    values = {**run.values, **({} if path is None else {"data.path": path})}
    command = [
        sys.executable, "-m", "edf_jax.main", f"--config=configs/{name}.py:{variant}",
        *(f"--config.{key}={value}" for key, value in values.items()),
        f"--workdir={folder}",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    found = open_run(folder)
    kinds = {run.row: "distilled"}
    if run.row == "auto":
        kinds |= {"initial images": "initial", "random": "random", "all data": "full"}
    return [
        dataclasses.replace(keep.row_of(run.experiment, label, found, kind), settings=run.settings)
        for label, kind in kinds.items()
        if found.result.get(f"{kind}_accuracies")
    ]


def main() -> int:
    options = command_line.parser("auto_settings").parse_args()
    return command_line.run("auto_settings", lambda: _make_all(options))


def _make_all(options: argparse.Namespace) -> int:
    options.workdir.mkdir(parents=True, exist_ok=True)
    for run in runs():
        kept = rows.read(options.csv)
        digest = rows.Row("", "", "", 0, 0, 0, (), settings=run.settings).digest
        if any((row.experiment, row.method, row.digest) == (run.experiment, run.row, digest)
               for row in kept):  # fmt: skip
            continue
        if not _is_there(run, options):
            print(f"{run.name}: left out, its images aren't there", file=sys.stderr)
            continue
        print(f"{run.name} ({len(kept)} rows are kept)", file=sys.stderr, flush=True)
        for row in make(run, options.images, options.workdir):
            rows.append(options.csv, row)
    return 0


def _is_there(run: Run, options: argparse.Namespace) -> bool:
    path = _data_path(run, options.images, options.workdir)
    where = {"data.resolution": 32, **({"data.path": path} if path else {})}
    if run.config[0] == "cluttered_digits":
        return True
    try:
        return describe_dataset(resolve(files.load(*run.config), **where).data).available
    except UserError:
        return False


if __name__ == "__main__":
    sys.exit(main())
