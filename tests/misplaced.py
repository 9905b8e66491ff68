"""Puts whole files of a run where others belong, and tells whether anything noticed.

    python -m tests.misplaced [--most=N] [--seed=0]

Every file that a later step reads is exchanged with its neighbours in the run, and replaced by its
counterpart of another seed's run and of a run with other settings. Then the run is continued, read
by the report and exported. Each must end as it would have, or be told in a line.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import edf_jax
from edf_jax.config.pinned import differing
from edf_jax.config.resolve import flatten
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.export.write import export_run
from edf_jax.main import main as run_main
from edf_jax.report.page import write_report
from edf_jax.runs.files import RunFiles
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError
from tests import tiny_run

_SETTINGS = {
    "experts__num": 3, "experts__group": 2, "experts__epochs": 3, "distill__max_start_epoch": 2,
    "distill__iterations": 16, "distill__save_every": 3, "distill__eval_every": 5,
    "distill__average": 0.9, "data__held_out": 0.1, "log__tensorboard": False,
    "evaluate__protocol": "sre2l", "evaluate__kd_epochs": 1, "evaluate__num": 1,
    "evaluate__baselines": "", "teacher__epochs": 1, "teacher__width": 4,
}  # fmt: skip
_HALF = {"distill__iterations": 13}
OTHERS = {"another seed": {"seed": 1}, "other settings": {"distill__lr_img": 77.0}}
STATES = ("half", "whole")
# metrics.jsonl is not among them: its rows are told by tests/runs/test_metrics.py.
_KINDS = {
    "snapshot": "experts/group_*/epoch_*",
    "store": "experts/store.json",
    "checkpoint": "checkpoints/iteration_*",
    "set": "distilled/*.safetensors",
    "teacher": "teachers/*.safetensors",
    "soft labels": "fkd/*.safetensors",
    "maps": "figures/*.safetensors",
    "record": "*.json",
}


class Case(NamedTuple):
    """One misplacement: `place` holds what is at `source`, and the other way round in one run.

    Attributes:
        state: of `STATES`.
        kind: of `_KINDS`.
        place, source: relative to the runs' folders.
        run: of `OTHERS`, where the source is from; empty for the run itself.
    """

    state: str
    kind: str
    place: str
    source: str
    run: str

    def __str__(self) -> str:
        origin = f"that of {self.run}" if self.run else self.source
        return f"{self.state} run: {self.place} <- {origin}"


def make_runs(
    folder: Path, others: Iterable[str], states: Collection[str]
) -> dict[tuple[str, str], Path]:
    """A run and others, half-way and whole where that is needed; by (name, state), own name ''."""
    made = {}
    for name in ("", *others):
        settings = OTHERS.get(name, {})
        # All of one name and in the same place as seen from there, for both are told in files.
        half, whole = (folder / f"{name or 'own'} {state}" / "run" for state in STATES)
        half.parent.mkdir()
        _must(_continue(half, "--stage=distill", **{**settings, **_HALF}))
        made[name, "half"] = half
        if "whole" in states or not name:
            shutil.copytree(half, whole)
            _must(_continue(whole, **settings))
            made[name, "whole"] = whole
    return made


def cases(
    runs: dict[tuple[str, str], Path], others: Iterable[str], states: Iterable[str]
) -> Iterator[Case]:
    """All misplacements."""
    for state in states:
        units = _units(runs["", state])
        theirs_of = {name: _units(runs[name, state]) for name in others}
        for kind, paths in units.items():
            for index, place in enumerate(paths):
                neighbours = paths[index + 1 : index + 2] if kind != "record" else []
                if kind == "snapshot":  # The same epoch of the other group.
                    epoch = Path(place).name
                    neighbours += [p for p in paths if p > place and p.endswith(epoch)]
                for source in dict.fromkeys(neighbours):
                    yield Case(state, kind, place, source, "")
                for name, theirs in theirs_of.items():
                    # A teacher's and a table's names are digests of what decides them.
                    counterpart = theirs[kind][index : index + 1]
                    for source in [place] if place in theirs[kind] else counterpart:
                        yield Case(state, kind, place, source, name)


def judge(case: Case, runs: dict[tuple[str, str], Path], folder: Path) -> dict[str, str]:
    """What each later step made of a misplacement: 'refused', 'told', 'harmless' or 'SILENT'."""
    verdicts = {}
    own = runs["", case.state]
    steps = ("continued", "reported", "exported") if case.state == "whole" else ("continued",)
    for step in steps:
        copy = folder / "copy" / "run"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(own, copy)
        _put(case, runs, copy)
        if step == "continued":
            verdicts[step] = _judge_run(case, copy, runs["", "whole"])
        else:
            verdicts[step] = _judge_reading(step, copy, own)
    return verdicts


def _units(workdir: Path) -> dict[str, list[str]]:
    return {
        kind: sorted(path.relative_to(workdir).as_posix() for path in workdir.glob(pattern))
        for kind, pattern in _KINDS.items()
    }


def _continue(workdir: Path, *flags: str, **settings) -> tuple[int, list[str]]:
    """Runs the command; its status, and its lines on standard error."""
    chosen = {**_SETTINGS, "teacher__dir": workdir.name, **settings}
    command = ["edf_jax", *tiny_run.arguments(Path(workdir.name), **chosen), *flags]
    said = io.StringIO()
    with (
        contextlib.chdir(workdir.parent),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        status = run_main(command)
    return status, said.getvalue().splitlines()


def _must(ended: tuple[int, list[str]]) -> None:
    if ended[0]:
        raise RuntimeError("\n".join(ended[1]))


def _put(case: Case, runs: dict[tuple[str, str], Path], copy: Path) -> None:
    place, source = copy / case.place, copy / case.source
    if case.run:
        storage.remove(place)
        theirs = runs[case.run, case.state] / case.source
        (shutil.copytree if theirs.is_dir() else shutil.copyfile)(theirs, place)
    else:
        spare = copy / "spare"
        place.rename(spare)
        source.rename(place)
        spare.rename(source)


def _judge_run(case: Case, copy: Path, whole: Path) -> str:
    status, lines = _continue(copy)
    if status:
        told = [line for line in lines if line.startswith("edf_jax: ")]
        return "refused" if status == 2 and len(told) == 1 else f"SILENT: {lines[-1:]}"
    expected, found = tiny_run.contents(whole), tiny_run.contents(copy)
    wrong = {name for name in expected | found if expected.get(name) != found.get(name)}
    if case.place == "evaluation.json":
        wrong -= {case.place}  # Figures of other sets stay there, under other names.
    unread = {place for place in (case.place, case.source) if _is_noticed(copy, place)}
    wrong = {name for name in wrong if not any(name.startswith(place) for place in unread)}
    if wrong:
        return f"SILENT: {sorted(wrong)[:3]}"
    warned = any(line.startswith("WARNING: ") and "put there" in line for line in lines)
    return "told" if warned else "harmless"


def _is_noticed(copy: Path, place: str) -> bool:
    """Whether what lies there is noticed once it is read, for the run had no need of it."""
    path = copy / place
    try:
        if place.startswith("distilled"):
            edf_jax.load(path)
        elif place.startswith("experts/group"):
            group, epoch = int(path.parent.name[6:]), int(path.name[6:])
            TrajectoryStore(copy / "experts").read_group(group, epoch)
        elif place.startswith("checkpoints"):
            details = storage.load_details(path, {"iteration": int(path.name[10:])})
            return differing(details["config"], flatten(RunFiles(copy).config)) is not None
    except UserError:
        return True
    return False


def _judge_reading(step: str, copy: Path, own: Path) -> str:
    """As `_judge_run`, of a finished run that is only read."""
    read = _exported if step == "exported" else _reported
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        found = read(copy)
    except UserError as error:
        return "refused" if "\n" not in str(error) else f"SILENT: {error}"
    finally:
        logging.getLogger().removeHandler(handler)
    if "put there from elsewhere" in said.getvalue():
        return "told"
    return "harmless" if found == read(own) else "SILENT: it reads otherwise"


def _exported(workdir: Path) -> str:
    out = export_run(workdir, "npz", workdir / "out.npz")
    with np.load(out) as arrays:
        digests = {name: storage.digest(array) for name, array in arrays.items()}
    out.unlink()
    return storage.digest_of_record(digests)


def _reported(workdir: Path) -> str:
    """The report's page."""
    return write_report(workdir).read_text(encoding="utf-8")


def misplace(
    folder: Path,
    most: int | None,
    seed: int,
    *,
    others: Collection[str] = tuple(OTHERS),
    states: Collection[str] = STATES,
    tell=print,
) -> collections.Counter[str]:
    """Judges misplacements.

    Args:
        folder: where runs are made.
        most: how many, chosen by `seed`; all where None.
        seed: of the choice.
        others: of `OTHERS`.
        states: of `STATES`.
        tell: prints a line.

    Returns:
        How many steps ended in each way.
    """
    runs = make_runs(folder, others, states)
    chosen = list(cases(runs, others, states))
    if most is not None:
        # Of every kind some.
        random.Random(seed).shuffle(chosen)
        turns: collections.Counter[tuple[str, str]] = collections.Counter()
        order = {}
        for case in chosen:
            order[case] = turns[case.kind, case.run]
            turns[case.kind, case.run] += 1
        chosen = sorted(chosen, key=order.__getitem__)[:most]
    tally: collections.Counter[str] = collections.Counter()
    for case in chosen:
        verdicts = judge(case, runs, folder)
        tally.update(verdict.partition(":")[0] for verdict in verdicts.values())
        tell(f"{case}: " + ", ".join(f"{step} {verdict}" for step, verdict in verdicts.items()))
    return tally


def main() -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="misplaced_") as folder:
        tally = misplace(Path(folder), options.most, options.seed)
    kinds = ("refused", "told", "harmless", "SILENT")
    print(", ".join(f"{tally[kind]} {kind.lower()}" for kind in kinds))
    return int(tally["SILENT"] > 0)


if __name__ == "__main__":
    sys.exit(main())
