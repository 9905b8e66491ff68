"""A grid of runs: what a table of methods, baselines and ablations is made of."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edf_jax.config.resolve import METHODS, SCHEMA, flatten, resolve, unknown_key
from edf_jax.data.coresets import BASELINES, WITHOUT_EXPERTS
from edf_jax.methods import gradcam
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

_ABLATED = "edf"
_WITHOUT: dict[str, dict[str, Any]] = {
    "cpd": {"distill.loss_mask": "none"},
    "dae": {"distill.pixel_weight": "none"},
}
# What `--ablate` can name: the rows of each, and the keys that they change.
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "cpd": {"edf without CPD": _WITHOUT["cpd"]},
    "dae": {"edf without DAE": _WITHOUT["dae"]},
    "cam_method": {f"edf, {name}": {"cam.method": name} for name in gradcam.METHODS},
    "beta": {f"edf, beta {beta:g}": {"cam.beta": beta} for beta in (0.5, 1.0, 2.0, 5.0, 10.0)},
    "drop": {
        f"edf, drop {drop:g}": {"distill.drop": drop}
        for drop in (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
    },
}
# The same for every row, whatever a method's own code does.
_EVALUATION = ("evaluate.", "augment.")
# The same too, whatever was published for a method; what comes with one is its own.
_SUBJECT = ("data.", "model.", "experts.", "distill.eval_every")
# What experts that are trained anew are made by.
_OF_EXPERTS = ("experts.", "data.", "model.", "augment.strategy", "precision")

_LONGEST = 80


@dataclasses.dataclass(frozen=True)
class GridRun:
    """One run of a comparison.

    Attributes:
        name: for people.
        workdir: its folder.
        config: resolved.
        kind: `method`, `baseline`, or `experts`, which only trains what others share.
        baseline: which, where it is one.
    """

    name: str
    workdir: pathlib.Path
    config: Any
    kind: str = "method"
    baseline: str = ""


@dataclasses.dataclass
class Grid:
    """A table to be.

    Attributes:
        title: what is compared, and on what.
        rows: by label, the ids of each row's runs.
        runs: by id, in the order that they run in.
        experts: by id of a run, the id of the run that trains its experts.
    """

    title: str
    rows: dict[str, list[str]]
    runs: dict[str, GridRun]
    experts: dict[str, str]


def names_of(methods: str, ablate: str, file: str = "") -> dict[str, Mapping[str, Any]]:
    """The rows of `--methods`, `--ablate` and `--rows`: labels, and what each changes.

    Raises:
        UserError: a name isn't known, there are none, or the file isn't such rows.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    for name in _split(methods, "--methods", [*METHODS, *BASELINES]):
        rows[name] = {"baseline": name} if name in BASELINES else {"method": name}
    chosen = _split(ablate, "--ablate", ABLATIONS)
    if chosen:
        rows.setdefault(_ABLATED, {"method": _ABLATED})
    for name in chosen:
        for label, changes in ABLATIONS[name].items():
            rows[label] = {"method": _ABLATED, **changes}
    if set(_WITHOUT) <= set(chosen):
        both = {k: v for changes in _WITHOUT.values() for k, v in changes.items()}
        rows["edf without CPD and DAE"] = {"method": _ABLATED, **both}
    for label, changes in (_read_rows(file) if file else {}).items():
        rows[label] = {**rows.get(label, {}), **changes}
    if not rows:
        raise UserError("give --methods=..., --ablate=... or --rows=... (see --help)")
    return rows


def _read_rows(file: str) -> dict[str, dict[str, Any]]:
    expected = '{"label": {"method": "mtt", "distill.lr_img": 300}, ...}'
    try:
        rows = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--rows={file} can't be read ({error}); expected is {expected}") from None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f"--rows={file} isn't of the form {expected}")
    for label, changes in rows.items():
        for key in changes.keys() - {"baseline"}:
            if key not in SCHEMA:
                raise UserError(f"--rows={file}, {label!r}: {unknown_key(key)}")
        baseline = changes.get("baseline")
        if baseline is not None and baseline not in BASELINES:
            raise UserError(
                f"--rows={file}, {label!r}: {baseline!r} is none of {', '.join(BASELINES)}"
            )
    return rows


def _split(text: str, flag: str, known: Collection[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{flag}={text}: {name!r} is none of {', '.join(known)}{hint}")
    return list(dict.fromkeys(names))


def make_grid(
    config,
    rows: Mapping[str, Mapping[str, Any]],
    seeds: int,
    workdir: pathlib.Path,
) -> Grid:
    """The runs of a table; rows that come to the same run share it.

    Args:
        config: not resolved. What the user gave stands for every row but one that ablates it.
        rows: as `names_of` makes them.
        seeds: repetitions, from the config's seed on; they share the experts.
        workdir: runs get folders in it.

    Raises:
        UserError: a row's config is impossible.
    """
    grid = Grid("", {}, {}, {})
    trainers: dict[str, GridRun] = {}
    runs: dict[str, GridRun] = {}
    folders: dict[str, str] = {}
    for label, changes in rows.items():
        grid.rows[label] = []
        for seed in range(config.seed, config.seed + seeds):
            resolved = _run_config(config, changes, seed, workdir)
            baseline = changes.get("baseline", "")
            identity = storage.digest_of_record({**flatten(resolved), "baseline": baseline})
            if identity not in runs:
                folder = workdir / "cells" / _folder_of(label, folders) / f"seed_{seed}"
                kind = "baseline" if baseline else "method"
                runs[identity] = GridRun(f"{label}, seed {seed}", folder, resolved, kind, baseline)
                if baseline not in WITHOUT_EXPERTS:
                    grid.experts[identity] = _trainer(trainers, resolved, workdir)
            grid.rows[label].append(identity)
    # Experts first, so that no method's time or memory is theirs.
    grid.runs = {**trainers, **runs}
    grid.title = _title(config, [run.config for run in runs.values()], seeds)
    return grid


def _folder_of(label: str, folders: dict[str, str]) -> str:
    """The name of a label's folder, no other label's; kept in `folders`."""
    if label not in folders:
        slug = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")
        taken = slug in folders.values() or slug.startswith("experts-")
        if not slug or taken or len(slug) > _LONGEST:
            slug = f"{slug[:_LONGEST]}-{storage.digest_of_record({'label': label})[:8]}".lstrip("-")
        folders[label] = slug
    return folders[label]


def _trainer(trainers: dict[str, GridRun], config, workdir: pathlib.Path) -> str:
    """The id of the run that trains a config's experts."""
    options = {k: v for k, v in flatten(config).items() if k.startswith(_OF_EXPERTS)}
    identity = "experts " + storage.digest_of_record(options)
    if identity not in trainers:
        name = f"experts-{config.experts.optimizer}"
        if config.experts.schedule != "all":
            name += f"-{config.experts.schedule}"
        taken = {run.workdir.name for run in trainers.values()}
        folder = name if name not in taken else f"{name}-{identity[-8:]}"
        trainers[identity] = GridRun(name, workdir / "cells" / folder, config, "experts")
    return identity


def _run_config(config, changes: Mapping[str, Any], seed: int, workdir: pathlib.Path):
    """A row's resolved config: the method's own parts and numbers, everyone's evaluation."""
    numbers = {name for own in METHODS.values() for name in own}
    left_open = {name for name, value in flatten(config).items() if value is None} - numbers
    equal = {
        name: value
        for name, value in flatten(resolve(config)).items()
        if name.startswith(_EVALUATION) or (name.startswith(_SUBJECT) and name in left_open)
    }
    shared = {
        "experts.seed": config.seed if config.experts.seed < 0 else config.experts.seed,
        "experts.dir": config.experts.dir or str(workdir / "experts"),
        "seed": seed,
        "evaluate.baselines": "",
    }
    changed = {name: value for name, value in changes.items() if name != "baseline"}
    return resolve(config, **{**equal, **changed, **shared})


def _title(config, of_runs: Sequence[Any], seeds: int) -> str:
    images = f"{config.distill.ipc} image{'s' if config.distill.ipc > 1 else ''} per class"
    what = config.data.subset or config.data.name or config.data.source
    repeated = f", {seeds} seeds" if seeds > 1 else ""
    ratios = sorted({run.augment.crop_ratio for run in of_runs})
    where = "in all rows" if len(ratios) == 1 else "by row"
    return f"{what}, {images}{repeated}, crop ratio {' or '.join(map(str, ratios))} {where}"
