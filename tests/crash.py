"""Kills a tiny run again and again, and compares what it makes with a run that was left alone.

    python -m tests.crash --kills=20 --seed=0 [--variant=ftd | --variant=all]

Every kill is a SIGKILL at a random instant of a stage, the stages in turn. Contents (see
`tests.tiny_run.contents`) must be equal, byte for byte. A variant is a run with other options.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import tiny_run

# The line on standard error by which a stage tells that it is at work.
_BEGINS = {
    "start": r"",
    "experts": r"experts: ",
    "distill": r"distill: ",
    "evaluate": r"evaluate: ",
    "report": r"evaluate: .* in ",
}
_STAGES = tuple(_BEGINS)


class Variant(NamedTuple):
    """A run's options; in settings and flags `{run}` is its folder and `{all}` that of all runs."""

    settings: Mapping[str, Any] = {}
    flags: Sequence[str] = ()
    module: str = "edf_jax.main"
    devices: int = 1


_TEACHER = {"teacher.dir": "{run}", "teacher.epochs": 3, "teacher.width": 4}
VARIANTS = {
    "plain": Variant(),
    "tesla": Variant(
        {"method": "tesla", "distill.trajectories": 2, "parallel.trajectory": 2}, devices=2
    ),
    "ftd": Variant({"method": "ftd", "data.held_out": 0.1, "distill.select": "heldout"}),
    "pad": Variant({"method": "pad", "experts.keep": "needed", "experts.difficulty_epochs": 1}),
    "rded": Variant(
        {
            "evaluate.protocol": "rded", "evaluate.kd_epochs": 3, "data.on_device": "no",
            "evaluate.baselines": "", **_TEACHER,
        }
    ),
    "sre2l": Variant(
        {
            "evaluate.protocol": "sre2l", "evaluate.kd_epochs": 3, "evaluate.baselines": "",
            **_TEACHER,
        }
    ),
    "zca": Variant({"data.zca": True}),
    "scores": Variant(
        {
            "evaluate.scores": True, "evaluate.full_epochs": 1,
            "evaluate.baselines": "random,herding,k_centre,real_soft",
        }
    ),
    "batch_norm": Variant({"model.norm": "batch", "cam.network": "trained", **_TEACHER}),
    "compare": Variant(
        {"experts.dir": "{run}/experts"}, ("--methods=random,mtt,edf",), "edf_jax.compare"
    ),
    "jpegs": Variant({"data.source": "folder", "data.path": "{all}/jpegs"}),
}  # fmt: skip


class Sitting:
    """One process of a run, and when it told of its stages."""

    def __init__(self, workdir: Path, variant: Variant):
        places = {"run": workdir, "all": workdir.parent}
        settings = {
            name.replace(".", "__"): value.format(**places) if isinstance(value, str) else value
            for name, value in variant.settings.items()
        }
        env = tiny_run.environment()
        if variant.devices > 1:
            env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={variant.devices}"
        self._process = subprocess.Popen(
            tiny_run.command(workdir, *variant.flags, module=variant.module, **settings),
            env=env,
            cwd=tiny_run.ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._began = time.monotonic()
        self.reached = {"start": 0.0}
        self.lines: list[str] = []
        self._arrived = threading.Event()
        self._awaited = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            for stage, pattern in _BEGINS.items():
                if pattern and re.match(pattern, line):
                    self.reached.setdefault(stage, time.monotonic() - self._began)
            if self._awaited in self.reached:
                self._arrived.set()
        self._arrived.set()

    def kill_in(self, stage: str, delay: float) -> bool:
        """Kills `delay` seconds after the stage began; False if the process ended before."""
        self._awaited = stage
        if stage in self.reached:
            self._arrived.set()
        self._arrived.wait()
        try:
            self._process.wait(delay)
            return False
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Waits for the process; returns its status."""
        status = self._process.wait()
        self._reader.join()
        return status

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def stage(self) -> str:
        """The last stage that it told of."""
        return max(self.reached, key=lambda name: (self.reached[name], _STAGES.index(name)))


def crash(
    kills: int, seed: int, folder: Path, variant: str = "plain", *, tell=print
) -> tuple[int, int, int]:
    """Kills tiny runs.

    Args:
        kills: how many times in all; a run that ends before is followed by another.
        seed: of the instants.
        folder: where runs are made.
        variant: of `VARIANTS`.
        tell: prints a line.

    Returns:
        How many sittings were killed, how many of them were continued, and how many contents of
        finished runs differ.
    """
    rng = random.Random(seed)
    options, alone = VARIANTS[variant], folder / "alone"
    if variant == "jpegs":
        _write_jpegs(folder / "jpegs")
    sitting = Sitting(alone, options)
    status = sitting.end()
    if status:
        raise RuntimeError(f"the run left alone ended with {status}:\n{''.join(sitting.lines)}")
    expected, total = tiny_run.contents(alone), sitting.seconds
    times = [total]
    for stage in reversed(_STAGES):  # One that told nothing began with the one after it.
        times.insert(0, min(times[0], sitting.reached.get(stage, total)))
    lasts = {stage: times[i + 1] - times[i] for i, stage in enumerate(_STAGES)}
    tell(f"left alone: {total:.1f} s, {len(expected)} contents")

    killed = resumed = different = run = furthest = 0
    interrupted = False
    hit: collections.Counter[str] = collections.Counter()
    # From the longest on, so that a few kills hit what there is most of.
    longest = sorted(_STAGES, key=lambda stage: -lasts[stage])
    targets = [longest[i % len(longest)] for i in range(kills)]
    targets.sort(key=_STAGES.index)
    while targets or interrupted:
        # Every sitting has a start; the other stages are over once a later one was at work.
        ahead = (t for t in targets if t == "start" or _STAGES.index(t) >= furthest)
        target = next(ahead, None)
        sitting = Sitting(folder / f"run_{run}", options)
        if target is not None and sitting.kill_in(target, rng.uniform(0, lasts[target])):
            killed, resumed = killed + 1, resumed + interrupted
            interrupted = True
            if sitting.stage == target:
                targets.remove(target)
            else:
                # Later than meant: by now programs are compiled, or part of the stage is done.
                lasts[target] *= 0.6
                targets.remove(sitting.stage if sitting.stage in targets else target)
            hit[sitting.stage] += 1
            furthest = max(furthest, _STAGES.index(sitting.stage))
            tell(f"kill {killed}: {sitting.seconds:.1f} s after its start, in {sitting.stage}")
            continue
        status = sitting.end()
        if target is not None:
            lasts[target] *= 0.6
        if status:
            raise RuntimeError(f"run {run} ended with {status}:\n{''.join(sitting.lines)}")
        resumed += interrupted
        interrupted = False
        found = tiny_run.contents(folder / f"run_{run}")
        wrong = {name for name in expected | found if expected.get(name) != found.get(name)}
        different += len(wrong)
        for name in sorted(wrong):
            tell(f"run {run}: {name}: {found.get(name)}, not {expected.get(name)}")
        tell(f"run {run}: ended, {len(wrong)} of {len(found)} contents different")
        run, furthest = run + 1, 0
    tell("killed in " + ", ".join(f"{stage} {hit[stage]}" for stage in _STAGES))
    return killed, resumed, different


def _write_jpegs(folder: Path) -> None:
    """A folder of JPEGs of three classes, some of other shapes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        for label, name in enumerate("abc"):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (20 + i % 3, 24, 3), np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(place / f"{i}.jpg")


def main() -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", default="plain", choices=[*VARIANTS, "all"])
    parser.add_argument("--folder", type=Path, help="where to make the runs, and leave them")
    options = parser.parse_args()
    failed = False
    for variant in VARIANTS if options.variant == "all" else [options.variant]:
        with tempfile.TemporaryDirectory(prefix="crash_") as temporary:
            folder = (options.folder or Path(temporary)) / variant
            folder.mkdir(parents=True, exist_ok=True)
            killed, resumed, different = crash(options.kills, options.seed, folder, variant)
        print(f"{variant}: {killed} killed, {resumed} resumed, {different} different", flush=True)
        failed |= different > 0 or not killed == resumed == options.kills
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
