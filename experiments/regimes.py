"""Does it matter whose labels a set is judged by? Eight sets, three label regimes, two networks.

    python -m experiments.regimes --images=FOLDER --csv=docs/results/regimes.csv

FOLDER holds `imagenette-128` (any folder of train|val/<WordNet id>/* of those classes). Each set is
one command of `edf_jax.evaluate.table`, whose figures become lines of `--csv`; the same command
goes on from there. All sets have ten images a class of 32 pixels and are measured by the plain
protocol; where no rate was learned for a network and its labels, one is searched for on training
images.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edf_jax.config.resolve import METHODS, default_config, resolve
from edf_jax.models.choose import MATCHED
from experiments import command as command_line
from experiments import real_scenes, rows
from experiments.rows import Row

_TABLE = "imagenette_32_ipc10_regimes"
# The numbers that were chosen by hand for these images at this size (`experiments.real_scenes`).
VALUES: dict[str, Any] = {
    **real_scenes.BASE,
    "data.subset": "imagenette",
    "data.resolution": 32,
    "distill.ipc": 10,
    "distill.lr_img": 1000.0,
    "augment.crop_ratio": real_scenes.WIDE,
    # A ResNet-18 of 64 channels would take two CPU cores days.
    "evaluate.width": 16,
    "evaluate.labels": "own,hard,teacher",
}
# The first makes the experts that the others' features and scores are from.
SETS = ("datm", "edf", "random", "herding", "k_centre", "el2n", "ccs", "rded")
LABELS = ("own", "hard", "teacher")
NETWORKS = (MATCHED, "ResNet18")


def settings_of(name: str, labels: str, network: str, seed: int) -> dict[str, Any]:
    """A figure's identity (see `rows.settings_of`)."""
    method = {"method": name} if name in METHODS else {}
    one = {"evaluate.labels": labels, "evaluate.networks": network, "seed": seed}
    config = resolve(default_config(**{**VALUES, **method, **one}))
    return rows.settings_of(config, "" if method else name)


def missing(kept: Sequence[Row], seed: int) -> Iterator[str]:
    """The sets of which not every figure is kept, in order."""
    known = {row.digest for row in kept}
    for name in SETS:
        figures = (settings_of(name, x, network, seed) for x in LABELS for network in NETWORKS)
        if any(_digest(settings) not in known for settings in figures):
            yield name


def _digest(settings: Mapping[str, Any]) -> str:
    return Row("", "", "", 0, 0, 0, (), settings=settings).digest


def command(name: str, images: pathlib.Path, workdir: pathlib.Path, seed: int) -> list[str]:
    """Measures a set, or goes on; Python's arguments."""
    values = {
        **VALUES,
        "seed": seed,
        "data.path": str(images / "imagenette-128"),
        "experts.dir": str(workdir / "experts"),
    }
    return [
        "-m",
        "edf_jax.evaluate.table",
        "--config=configs/imagenette.py:ipc10",
        f"--sets={','.join(dict.fromkeys((SETS[0], name)))}",
        "--protocols=plain",
        f"--networks={','.join(NETWORKS)}",
        *(f"--config.{key}={value}" for key, value in values.items()),
        f"--workdir={workdir / f'seed_{seed}'}",
    ]


def rows_of(name: str, table: Mapping[str, Any], typed: str) -> list[Row]:
    """What a table says of a set.

    Args:
        name: of `SETS`.
        table: as `edf_jax.evaluate.table` writes it.
        typed: the command that made it.
    """
    hardware = ", ".join(map(str, table["hardware"].values()))
    versions = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    own = [row for row in table["rows"] if row["set"] == name]
    # The table goes through the labels, and for each through the networks.
    asked = [(labels, network) for labels in LABELS for network in NETWORKS]
    return [
        Row(
            _TABLE,
            f"{name}, {labels} labels, {row['network']}",
            "imagenette",
            VALUES["data.resolution"],
            VALUES["distill.ipc"],
            table["seed"],
            tuple(row["accuracies"]),
            own_seconds=row["seconds"],
            made_with=f"{hardware}; {versions}",
            command=typed,
            settings=settings_of(name, labels, network, table["seed"]),
        )
        for (labels, network), row in zip(asked, own, strict=True)
    ]


def main() -> int:
    parser = command_line.parser("regimes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return command_line.run("regimes", lambda: _make_all(options))


def _make_all(options: argparse.Namespace) -> int:
    for name in missing(rows.read(options.csv), options.seed):
        print(name, file=sys.stderr, flush=True)
        arguments = command(name, options.images, options.workdir, options.seed)
        subprocess.run([sys.executable, *arguments], check=True)
        table = options.workdir / f"seed_{options.seed}" / "protocols.json"
        made = json.loads(table.read_text(encoding="utf-8"))
        for row in rows_of(name, made, f"python {shlex.join(arguments)}"):
            rows.append(options.csv, row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
