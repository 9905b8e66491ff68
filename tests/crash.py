"""Kills a tiny run again and again, and compares what it makes with a run that was left alone.

    python -m tests.crash --kills=20 --seed=0

Every kill is a SIGKILL at a random instant of a stage, the stages in turn. Contents (see
`tests.tiny_run.contents`) must be equal, byte for byte.
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
from pathlib import Path

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


class Sitting:
    """One process of a run, and when it told of its stages."""

    def __init__(self, workdir: Path):
        self._process = subprocess.Popen(
            tiny_run.command(workdir),
            env=tiny_run.environment(),
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


def crash(kills: int, seed: int, folder: Path, *, tell=print) -> tuple[int, int, int]:
    """Kills tiny runs.

    Args:
        kills: how many times in all; a run that ends before is followed by another.
        seed: of the instants.
        folder: where runs are made.
        tell: prints a line.

    Returns:
        How many sittings were killed, how many of them were continued, and how many contents of
        finished runs differ.
    """
    rng = random.Random(seed)
    alone = folder / "alone"
    sitting = Sitting(alone)
    status = sitting.end()
    if status:
        raise RuntimeError(f"the run left alone ended with {status}:\n{''.join(sitting.lines)}")
    expected, total = tiny_run.contents(alone), sitting.seconds
    times = [*(sitting.reached[stage] for stage in _STAGES), total]
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
        sitting = Sitting(folder / f"run_{run}")
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


def main() -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to make the runs, and leave them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash_") as temporary:
        folder = options.folder or Path(temporary)
        killed, resumed, different = crash(options.kills, options.seed, folder)
    print(f"{killed} killed, {resumed} resumed, {different} different")
    return int(different > 0 or not killed == resumed == options.kills)


if __name__ == "__main__":
    sys.exit(main())
