"""The command that sets images side by side by several protocols on several networks.

    python -m edf_jax.evaluate.table --config=configs/cluttered_digits.py:ipc10 \\
        --sets=random,herding,k_centre,datm,edf --protocols=plain,rded,sre2l \\
        --networks=matched,VGG11

Methods are distilled first, as runs of `edf_jax.compare` in the same folder; every figure is kept
as soon as it is there, and the same command continues.
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from edf_jax import distilled_set
from edf_jax.config.flags import Given, run_command
from edf_jax.config.resolve import METHODS, label_regimes, network_list, resolve
from edf_jax.data import Dataset
from edf_jax.data.coresets import BASELINES
from edf_jax.distill.stage import distill_run
from edf_jax.distilled_set import BYTES, StoredBytes
from edf_jax.evaluate import labelled_images
from edf_jax.evaluate.measure import Evaluation
from edf_jax.evaluate.measurement import PUBLISHED_LABELS, Measurement, regimes_of
from edf_jax.evaluate.real_baselines import trained_experts
from edf_jax.evaluate.stage import periodic
from edf_jax.evaluate.teacher import get_teacher
from edf_jax.experts.train import open_experts, train_experts, with_repairs
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models.choose import MATCHED
from edf_jax.runs.folder import OF_A_GRID, Run, locked, origin, refuse_foreign
from edf_jax.runs.grid import GridRun, make_grid
from edf_jax.runs.metrics import open_metrics
from edf_jax.runs.prepare import prepare
from edf_jax.runs.statistics import Accuracies, interval_text, mean_text
from edf_jax.runtime import devices, storage, tables
from edf_jax.runtime.errors import UserError

PROTOCOLS = ("plain", "rded", "sre2l")
_TITLES = {
    "random": "Random real images",
    "herding": "Herding",
    "k_centre": "k-centre",
    "el2n": "EL2N",
    "grand": "GraNd",
    "ccs": "CCS",
    "rded": "RDED's patches",
    "real_soft": "Random, soft labels",
    "downsampled": "Random, shrunk to the same bytes",
    **{name: name.upper() for name in METHODS},
}
_USAGE = f"""\
usage: python -m edf_jax.evaluate.table --config=configs/FILE.py:VARIANT[,key=value...] [flags]

Evaluates sets of images by each protocol on each network, and writes the table.

  --config=FILE:VARIANT  as in edf_jax.main; likewise --config.KEY=VALUE, for all rows
  --sets=A,B,...         methods, distilled here: {', '.join(METHODS)};
                         real images: {', '.join(BASELINES)};
                         or NAME=PATH, a set as evaluate.distilled takes it
  --protocols=A,B,...    of {', '.join(PROTOCOLS)} (default all)
  --networks=A,B,...     as evaluate.networks (default {MATCHED},VGG11)
  --config.evaluate.labels=own,hard,teacher
                         a column for each (default what each protocol was published with)
  --workdir=FOLDER       where runs, figures and the table go; the same command continues there
                         (default runs/compare-<config>-<variant>[-<hash>], which edf_jax.compare
                         shares)

Writes protocols.md, .csv and .json there, and ends in one line: RESULT {{json}}."""


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("sets", "random,herding,k_centre,datm,edf", "rows", flag_values=values)
    flags.DEFINE_string("protocols", ",".join(PROTOCOLS), "of each", flag_values=values)
    flags.DEFINE_string("networks", f"{MATCHED},VGG11", "on each", flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `edf_jax.main` does."""
    name = "edf_jax.evaluate.table"
    return run_command(name, _USAGE, _define_flags, _run, argv, folder="compare-")


def _run(given: Given) -> int:
    values = given.flags
    sets, networks = parse_sets(values.sets), network_list(values.networks)
    protocols = tuple(name.strip() for name in values.protocols.split(","))
    for name in protocols:
        if name not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise UserError(f"--protocols={values.protocols}: {name!r} is none of {known}")
    table = make_table(values.config, sets, protocols, networks, given.workdir, given.command)
    print(to_markdown(table))
    sys.stdout.flush()
    shown = ("set", "protocol", "labels", "network", "mean", "std", "interval", "num_eval")
    rows = [{name: row[name] for name in shown} for row in table["rows"]]
    print("RESULT " + json.dumps({"rows": rows, "workdir": str(given.workdir)}), flush=True)
    return 0


def parse_sets(text: str) -> dict[str, str]:
    """The rows of `--sets`: by name, the path of a set, '' for a method or baseline.

    Raises:
        UserError: one is neither.
    """
    sets = {}
    for entry in text.split(","):
        name, separator, path = entry.strip().partition("=")
        if not separator and name not in (*METHODS, *BASELINES):
            known = ", ".join((*METHODS, *BASELINES))
            raise UserError(f"--sets={text}: {name!r} is none of {known}, and has no =PATH")
        if separator and not (name and path):
            raise UserError(f"--sets={text}: write {entry!r} as NAME=PATH")
        sets[name] = path
    return sets


def make_table(
    config,
    sets: Mapping[str, str],
    protocols: Sequence[str],
    networks: Sequence[str],
    workdir: pathlib.Path,
    command: str,
) -> dict[str, Any]:
    """Distils what is to be distilled, measures what isn't measured, and writes the table.

    Args:
        config: not resolved. What the user gave stands for every method.
        sets: as `parse_sets` makes them.
        protocols: of `PROTOCOLS`.
        networks: names, as `evaluate.networks` has them.
        workdir: where everything goes.
        command: what the user typed.

    Returns:
        The table: what it is of, and its rows.
    """

    resolved = resolve(config)
    devices.set_up(resolved.precision, deterministic=resolved.deterministic)
    refuse_foreign(workdir, OF_A_GRID)
    with locked(workdir):
        runs = _distil(config, [n for n in sets if not sets[n]], workdir, command)
        table = _measure(resolved, sets, runs, protocols, networks, workdir, command)
        storage.write_text(workdir / "protocols.md", to_markdown(table))
        storage.write_text(workdir / "protocols.csv", to_csv(table))
        storage.write_text(workdir / "protocols.json", json.dumps(table, indent=1))
    return table


def _distil(
    config, names: Sequence[str], workdir: pathlib.Path, command: str
) -> dict[str, GridRun]:
    """The finished runs of the methods, by name."""
    methods = {name: {"method": name} for name in names if name in METHODS}
    if not methods:
        return {}
    grid = make_grid(config, methods, 1, workdir)
    dataset = prepare(resolve(config))
    for one in grid.runs.values():
        with Run(one.workdir, one.config, command) as run, open_metrics(one.workdir) as metrics:
            store = open_experts(one.config, dataset, one.workdir)
            learn = functools.partial(_learn, run, one.kind, dataset, store, metrics)
            with_repairs(learn, store)
    return {name: grid.runs[grid.rows[name][0]] for name in methods}


def _learn(run: Run, kind: str, dataset: Dataset, store: TrajectoryStore, metrics) -> None:
    """The experts of a run, and its distilled set unless it only trains them."""
    config, workdir = run.config, run.workdir
    with run.stage("experts"):
        train_experts(config, dataset, store, metrics)
    if kind == "experts":
        return
    with run.stage("distill"):
        teacher = functools.partial(get_teacher, config, dataset, workdir, metrics)
        evaluate = periodic(config, dataset)
        distill_run(config, dataset, store, metrics, workdir, teacher, evaluate)


def _measure(
    config,
    sets: Mapping[str, str],
    runs: Mapping[str, GridRun],
    protocols: Sequence[str],
    networks: Sequence[str],
    workdir: pathlib.Path,
    command: str,
) -> dict[str, Any]:
    dataset = prepare(config)
    experts, full = None, None
    if runs:
        one = next(iter(runs.values()))
        store = open_experts(one.config, dataset, one.workdir)
        experts = functools.partial(trained_experts, one.config, dataset, store)
        full = _full_data(one.config, store, len(dataset.test.labels))
    provenance = origin(command)
    evaluation = Evaluation(config, dataset, workdir, networks=experts, provenance=provenance)
    chosen = {}
    for name, path in sets.items():
        if path:
            chosen[name] = labelled_images.read(path, dataset.info)
        elif name in runs:
            chosen[name] = distilled_set.load(runs[name].workdir)
        else:
            chosen[name] = evaluation.baseline(name, config.distill.ipc)
    planned = [
        (name, Measurement(images, network, protocol, labels, keep_labels=name not in BASELINES))
        for protocol in protocols
        for labels in regimes_of(label_regimes(config.evaluate.labels), protocol)
        for network in networks
        for name, images in chosen.items()
    ]
    figures = evaluation.measure([measurement for _, measurement in planned])
    taught = any(measurement.regime == "teacher" for _, measurement in planned)
    return {
        "data": dataset.info.name,
        "ipc": config.distill.ipc,
        "num_test_images": len(dataset.test.labels),
        "full": full,
        "teacher": evaluation.teacher.record() if taught else None,
        "seed": config.seed,
        **provenance,
        "rows": [{"set": name, **row} for (name, _), row in zip(planned, figures)],
    }


def _full_data(config, store, num_images: int) -> dict[str, Any]:
    """The figures of the experts after their last epoch."""

    groups = range(-(-config.experts.num // store.group_size))
    found = [store.details(group, config.experts.epochs)["test_accuracy"] for group in groups]
    values = tuple(value for group in found for value in group)[: config.experts.num]
    return Accuracies(values, num_images).figures()


def to_markdown(table: Mapping[str, Any]) -> str:
    """The table and what it takes to read it."""
    lines: dict[str, dict[str, str]] = {}
    told = any(row["labels"] != PUBLISHED_LABELS[row["protocol"]] for row in table["rows"])
    for row in table["rows"]:
        stored = StoredBytes.of_figures(row)
        what = {"images": _TITLES.get(row["set"], row["set"])}
        what |= {BYTES: "" if stored is None else stored.text}
        line = lines.setdefault(row["set"], what)
        labels = f", {row['labels']} labels" if told else ""
        line[f"{row['protocol']}{labels}, {row['network']}"] = _text(row)
    return f"{tables.to_markdown(list(lines.values()))}\n{_notes(table)}\n"


def _text(row: Mapping[str, Any]) -> str:
    interval = f" ({interval_text(row['interval'])})" if row["interval"] else ""
    return mean_text(row["mean"], row["std"]) + interval


def _notes(table: Mapping[str, Any]) -> str:
    rows = table["rows"]
    networks = " or ".join(sorted({str(row["num_eval"]) for row in rows}))
    notes = [
        f"{table['data']}, {table['ipc']} images per class; test accuracy in percent on "
        f"{table['num_test_images']} images, mean ± deviation over {networks} networks, in "
        "brackets the 95% interval of the mean (Student's t)."
    ]
    if table["full"]:
        full = table["full"]
        notes.append(
            f"All real data, by the experts ({full['num_eval']} networks): {_text(full)}."
        )
    if table["teacher"]:
        teacher = table["teacher"]
        notes.append(
            f"Teacher: {teacher['name']}, {teacher['accuracy']:.1f}% on the test images."
        )
    chosen = {row["chosen"] for row in rows if "chosen" in row}
    notes += [f"By rded an accuracy is {text}." for text in sorted(chosen)]
    lengths = dict.fromkeys(f"{row['epochs']} x {row['steps']} ({row['protocol']})" for row in rows)
    notes.append(f"Epochs x steps of a network: {', '.join(lengths)}.")
    searched = {row["rate_from"] for row in rows if row["protocol"] == "plain"}
    if searched:
        notes.append(f"Rates of the plain protocol: {'; '.join(sorted(searched))}.")
    hardware = ", ".join(str(value) for value in table["hardware"].values())
    versions = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    seconds = sum(row["seconds"] for row in rows)
    notes.append(
        f"Seed {table['seed']}; {hardware}; {versions}; {seconds / 60:.0f} minutes of evaluation."
    )
    return "\n".join([*notes, "", "```", table["command"], "```"])


def to_csv(table: Mapping[str, Any]) -> str:
    """A line per figure."""
    measured = ("mean", "std", "low", "high", "num_eval", "num_images")
    stored = ("image_bytes", "label_bytes")
    told = ("rate", "rate_from", "epochs", "steps", "seconds")
    columns = ("set", "protocol", "labels", "network", *measured, *stored, *told)
    rows = []
    for row in table["rows"]:
        low, high = row["interval"] or ("", "")
        every = {**row, "low": low, "high": high}
        rows.append({name: every[name] for name in columns})
    return tables.to_csv(rows)


if __name__ == "__main__":
    sys.exit(main())
