"""The command that sets images side by side by several protocols on several networks.

    python -m edf_jax.evaluate.table --config=configs/cluttered_digits.py:ipc10 \\
        --sets=random,herding,k_centre,datm,edf --protocols=plain,rded,sre2l \\
        --networks=matched,VGG11

Methods are distilled first, as cells of `edf_jax.compare` in the same folder; every figure is kept
as soon as it is there, and the same command continues.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from edf_jax import distilled_set
from edf_jax.config.flags import default_workdir, parse
from edf_jax.config.resolve import METHODS, network_list, resolve
from edf_jax.data import Dataset
from edf_jax.data.coresets import BASELINES
from edf_jax.distill.stage import distill_run
from edf_jax.evaluate import labelled_images
from edf_jax.evaluate.measure import Bench, Trial
from edf_jax.evaluate.measured import Ledger
from edf_jax.evaluate.real_baselines import real_networks
from edf_jax.evaluate.stage import periodic
from edf_jax.evaluate.teacher import get_teacher
from edf_jax.experts.train import open_experts, train_experts, with_repairs
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models.choose import MATCHED
from edf_jax.runs.folder import Run, origin
from edf_jax.runs.grid import make_plan
from edf_jax.runs.metrics import open_metrics
from edf_jax.runs.prepare import prepare
from edf_jax.runs.statistics import Accuracies
from edf_jax.runtime import console, devices, preemption, storage
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress

PROTOCOLS = ("plain", "rded", "sre2l")
_TITLES = {
    "random": "Random real images",
    "herding": "Herding",
    "k_centre": "k-centre",
    "real_soft": "Random, soft labels",
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
  --workdir=FOLDER       where runs, figures and the table go; the same command continues there
                         (default runs/compare-<config>-<variant>[-<hash>], which edf_jax.compare
                         shares)

Writes protocols.md, .csv and .json there, and ends in one line: RESULT {{json}}."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `edf_jax.main` does."""
    argv = list(sys.argv if argv is None else argv)
    if any(flag in argv[1:] for flag in ("--help", "-h", "-help", "--helpfull", "--helpshort")):
        print(_USAGE)
        return 0
    return console.exit_status(lambda: _run(argv))


def _run(argv: list[str]) -> int:

    values = parse(argv, _define_flags)
    console.speak_in_lines()
    sets = parse_sets(values.sets)
    protocols = _chosen(values.protocols, PROTOCOLS, "--protocols")
    networks = network_list(values.networks)
    workdir = pathlib.Path(values.workdir or default_workdir(values, "compare-")).expanduser()
    command = "python -m edf_jax.evaluate.table " + shlex.join(argv[1:])
    with preemption.listening():
        table = make_table(values.config, sets, protocols, networks, workdir, command)
    print(to_markdown(table))
    sys.stdout.flush()
    shown = ("set", "protocol", "network", "mean", "std", "interval", "num_eval")
    rows = [{name: row[name] for name in shown} for row in table["rows"]]
    print("RESULT " + json.dumps({"rows": rows, "workdir": str(workdir)}), flush=True)
    return 0


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "where everything goes", flag_values=values)
    flags.DEFINE_string("sets", "random,herding,k_centre,datm,edf", "rows", flag_values=values)
    flags.DEFINE_string("protocols", ",".join(PROTOCOLS), "of each", flag_values=values)
    flags.DEFINE_string("networks", f"{MATCHED},VGG11", "on each", flag_values=values)


def _chosen(text: str, known: Sequence[str], flag: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise UserError(f"{flag}={text}: {name!r} is none of {', '.join(known)}")
    return names


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
    busy = f"another process works on {workdir}: wait for it or give another --workdir"
    with storage.locked(workdir, busy):
        cells = _distil(config, [n for n in sets if not sets[n]], workdir, command)
        table = _measure(resolved, sets, cells, protocols, networks, workdir, command)
        storage.write_text(workdir / "protocols.md", to_markdown(table))
        storage.write_text(workdir / "protocols.csv", to_csv(table))
        storage.write_text(workdir / "protocols.json", json.dumps(table, indent=1))
    return table


def _distil(config, names: Sequence[str], workdir: pathlib.Path, command: str):
    """The finished cells of the methods, by name."""

    methods = {name: {"method": name} for name in names if name in METHODS}
    if not methods:
        return {}
    plan = make_plan(config, methods, 1, workdir)
    dataset = prepare(resolve(config))
    for cell in plan.cells.values():
        with Run(cell.workdir, cell.config, command) as run, open_metrics(cell.workdir) as metrics:
            store = open_experts(cell.config, dataset, cell.workdir)
            learn = functools.partial(_learn, run, cell.kind, dataset, store, metrics)
            with_repairs(learn, store)
    return {name: plan.cells[plan.rows[name][0]] for name in methods}


def _learn(run: Run, kind: str, dataset: Dataset, store: TrajectoryStore, metrics) -> None:
    """The experts of a cell, and its distilled set unless it only trains them."""
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
    cells: Mapping[str, Any],
    protocols: Sequence[str],
    networks: Sequence[str],
    workdir: pathlib.Path,
    command: str,
) -> dict[str, Any]:

    dataset = prepare(config)
    experts, full = None, None
    if cells:
        cell = next(iter(cells.values()))
        store = open_experts(cell.config, dataset, cell.workdir)
        experts = real_networks(cell.config, dataset, store)
        full = _full_data(cell.config, store, len(dataset.test.labels))
    bench = Bench(
        config,
        dataset,
        workdir,
        get_teacher=lambda: get_teacher(config, dataset, workdir),
        real_networks=experts,
    )
    provenance = {"seed": config.seed, **origin(command)}
    ledger = Ledger(workdir / "evaluation.json", provenance)
    chosen = {}
    for name, path in sets.items():
        if path:
            chosen[name] = labelled_images.read(path, dataset.info)
        elif name in cells:
            chosen[name] = labelled_images.of_distilled(distilled_set.load(cells[name].workdir))
        else:
            chosen[name] = bench.baseline(name, config.distill.ipc)
    trials = [
        (name, Trial(subject, network, protocol, keep_labels=name not in BASELINES))
        for protocol in protocols
        for network in networks
        for name, subject in chosen.items()
    ]
    left = [trial for _, trial in trials if ledger.find(bench.identity(trial)) is None]
    rows = []
    with Progress("evaluate", sum(map(bench.epochs, left)), "epoch") as bar:

        def on_epochs(count: int, loss: float) -> None:
            bar.update(count, loss=loss)
            preemption.stop_if_asked()

        for name, trial in trials:
            make = functools.partial(bench.run, trial, on_epochs)
            where = {"set": name, "protocol": trial.protocol, "network": bench.label(trial.network)}
            note = {"note": trial.subject.note} if trial.subject.note else {}
            rows.append(where | note | ledger.need(bench.identity(trial), make))
    taught = [protocol for protocol in protocols if protocol != "plain"]
    return {
        "data": dataset.info.name,
        "ipc": config.distill.ipc,
        "num_test_images": len(dataset.test.labels),
        "full": full,
        "teacher": bench.teacher.record() if taught else None,
        **provenance,
        "rows": rows,
    }


def _full_data(config, store, num_images: int) -> dict[str, Any]:
    """The figures of the experts after their last epoch."""

    groups = range(-(-config.experts.num // store.group_size))
    found = [store.details(group, config.experts.epochs)["test_accuracy"] for group in groups]
    values = tuple(value for group in found for value in group)[: config.experts.num]
    return Accuracies(values, num_images).figures()


def to_markdown(table: Mapping[str, Any]) -> str:
    """The table and what it takes to read it."""
    columns = list(dict.fromkeys((row["protocol"], row["network"]) for row in table["rows"]))
    names = list(dict.fromkeys(row["set"] for row in table["rows"]))
    cells = {(row["set"], row["protocol"], row["network"]): row for row in table["rows"]}
    header = ["images", *(f"{protocol}, {network}" for protocol, network in columns)]
    lines = [header, ["---"] * len(header)]
    for name in names:
        texts = [_text(cells[name, protocol, network]) for protocol, network in columns]
        lines.append([_TITLES.get(name, name), *texts])
    body = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{body}\n{_notes(table)}\n"


def _text(row: Mapping[str, Any]) -> str:
    text = f"{row['mean']:.1f} ± {row['std']:.1f}"
    if row["interval"] is not None:
        text += " ({:.1f} to {:.1f})".format(*row["interval"])
    return text


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
            f"Teacher of rded and sre2l: {teacher['name']}, {teacher['accuracy']:.1f}% on the test "
            "images."
        )
    chosen = {row["chosen"] for row in rows if "chosen" in row}
    notes += [f"By rded an accuracy is {text}." for text in sorted(chosen)]
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
    columns = ("set", "protocol", "network", *measured, "rate", "rate_from", "seconds")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in table["rows"]:
        low, high = row["interval"] or ("", "")
        writer.writerow({**row, "low": low, "high": high})
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
