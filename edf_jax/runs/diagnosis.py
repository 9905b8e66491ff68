"""What is wrong with a run, told in the order in which it is to be mended, each with a flag."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edf_jax.config.resolve import flatten
from edf_jax.runs.files import RunFiles, selected

Rows = Sequence[Mapping[str, Any]]
# An expert that has learned is below this share of the loss of guessing.
_GUESSING = 0.9
# More of the iterations skipped than this, and it is no accident.
_MOST_SKIPPED = 0.5
# A loss that stays over this share of what it was has not fallen; over the next, it has risen.
_FALLEN, _RISEN = 0.97, 1.1
# A loss of one is that of a student which never moved.
_NOWHERE = 0.95
# Rates that have drifted further than this from their start.
_FAR = 20.0
_STEP = 4.0


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        what: it, in a sentence.
        flags: what mends it.
        key: the number at fault, where a run that found it itself can mend it.
        value: for that key.
    """

    what: str
    flags: tuple[str, ...]
    key: str = ""
    value: float = 0.0

    @property
    def text(self) -> str:
        return f"{self.what}: {' '.join(self.flags)}"


def diagnose(run: RunFiles) -> list[Finding]:
    """What is wrong with a run by what it has written so far."""
    known = run.first or run.last
    return [
        *untrained_experts(run.rows("experts"), len(known.class_names) if known else 0),
        *not_learning(flatten(run.config), run.rows("distill"), run.rows("evaluate")),
        *in_result(run.result),
    ]


def untrained_experts(rows: Rows, num_classes: int) -> list[Finding]:
    """Whether experts still guess, by their loss on training images."""
    last = {row.get("group", 0): row["loss"] for row in rows if "loss" in row}
    guessing = math.log(num_classes) if num_classes > 1 else math.inf
    if not last or np.mean(list(last.values())) < _GUESSING * guessing:
        return []
    return [
        Finding(
            f"the experts have hardly learned (loss {np.mean(list(last.values())):.2f}, guessing "
            f"has {guessing:.2f}), and nobody can learn from them",
            (_auto("experts.lr"), _auto("experts.epochs")),
        )
    ]


def not_learning(config: Mapping[str, Any], rows: Rows, evaluations: Rows) -> list[Finding]:
    """Why a distillation doesn't learn, by its rows so far; nothing where it does.

    Args:
        config: flat.
        rows: of iterations.
        evaluations: of periodic evaluations.
    """
    rows = [row for row in rows if "loss" in row]
    if len(rows) < 10:
        return []
    found = [*_skips(config, rows), *_alpha(rows)]
    return found or [*_loss(config, rows), *_accuracy(config, evaluations)]


def _skips(config: Mapping[str, Any], rows: Rows) -> list[Finding]:
    skipped = np.array([bool(row.get("skipped")) for row in rows])
    if skipped.mean() <= _MOST_SKIPPED:
        return []
    gate = config.get("distill.threshold") or math.inf
    losses = _losses(rows)
    told = f"{skipped.sum()} of {len(rows)} iterations changed nothing"
    first = float(np.median(losses[: max(5, len(rows) // 10)]))
    if not math.isfinite(first) or first > 100:
        return [Finding(
            f"{told}: students diverge from the first on, so their rate is too large",
            (_auto("distill.lr_teacher"),),
            "distill.lr_teacher", config.get("distill.lr_teacher", 0.0) / 10,
        )]  # fmt: skip
    if first > gate:
        return [Finding(
            f"{told}: the matching loss was {first:.2f} from the first on, over the gate of "
            f"{gate:g}; the students' rate or number of steps is too large, or the gate too low",
            (_auto("distill.lr_teacher"), _auto("distill.threshold")),
            "distill.lr_teacher", config.get("distill.lr_teacher", 0.0) / 2,
        )]  # fmt: skip
    return [Finding(
        f"{told}: the matching loss was {first:.2f} at first and rose over the gate of {gate:g}, "
        "so the images moved too fast",
        (_quartered(config, "distill.lr_img"),),
        "distill.lr_img", config.get("distill.lr_img", 0.0) / _STEP,
    )]  # fmt: skip


def _alpha(rows: Rows) -> list[Finding]:
    first, last = rows[0].get("alpha"), rows[-1].get("alpha")
    if first is None or last is None or first / _FAR < last < first * _FAR:
        return []
    return [Finding(
        f"the students' rate alpha went from {first:.3g} to {last:.3g}, where they learn nothing",
        (_auto("distill.lr_lr"),),
    )]  # fmt: skip


def _losses(rows: Rows) -> np.ndarray:
    return np.array([math.inf if row["loss"] is None else float(row["loss"]) for row in rows])


def _loss(config: Mapping[str, Any], rows: Rows) -> list[Finding]:
    # Only stretches of the trajectories that were matched from the first: later ones are harder.
    count = max(5, len(rows) // 5)
    latest = max(row.get("start_epoch", 0) for row in rows[:count])
    early = [row for row in rows if row.get("start_epoch", 0) <= latest]
    first, last = (float(np.median(_losses(part))) for part in (early[:count], early[-count:]))
    told = f"the matching loss went from {first:.2f} to {last:.2f}"
    if last > _RISEN * first:
        return [Finding(
            f"{told}: it rises, so the images move too fast",
            (_quartered(config, "distill.lr_img"),),
            "distill.lr_img", config.get("distill.lr_img", 0.0) / _STEP,
        )]  # fmt: skip
    if last < _FALLEN * first:
        return _late_starts(config, rows)
    if first > _NOWHERE:
        return [Finding(
            f"{told}, where 1 is a student that never moved: students can't follow these experts "
            "from these epochs at this rate",
            (_auto("distill.lr_teacher"), _auto("distill.max_start_epoch")),
        )]  # fmt: skip
    return [Finding(
        f"{told}: it doesn't fall, so the images move too slowly",
        (_auto("distill.lr_img"),),
        "distill.lr_img", config.get("distill.lr_img", 0.0) * _STEP,
    )]  # fmt: skip


def _late_starts(config: Mapping[str, Any], rows: Rows) -> list[Finding]:
    """Start epochs from which students come no nearer, at the end."""
    late = rows[-max(20, len(rows) // 3) :]
    by_start: dict[int, list[float]] = {}
    for row in late:
        by_start.setdefault(row.get("start_epoch", 0), []).append(row["loss"] or math.inf)
    hopeless = [s for s, losses in by_start.items() if np.median(losses) > 1 and len(losses) > 1]
    followed = [s for s, losses in by_start.items() if np.median(losses) < _NOWHERE]
    first = min((s for s in hopeless if s > max(followed, default=-1)), default=0)
    if len(hopeless) < 2 or not first:
        return []
    return [Finding(
        f"from start epoch {first} on, students end no nearer to their targets than they began",
        (f"--config.distill.max_start_epoch={first}",),
    )]  # fmt: skip


def _accuracy(config: Mapping[str, Any], evaluations: Rows) -> list[Finding]:
    """Whether networks do much worse on the images than on the first ones."""
    for name in ("held_out_accuracy", "accuracy"):
        known = [row for row in evaluations if row.get(f"{name}_mean") is not None]
        if len(known) > 1:
            break
    else:
        return []
    first, last = known[0], known[-1]
    noise = math.hypot(first.get(f"{name}_std") or 0, last.get(f"{name}_std") or 0)
    fell = first[f"{name}_mean"] - last[f"{name}_mean"]
    # Early on some is lost even where a run goes well.
    if fell <= max(3 * noise, 0.35 * first[f"{name}_mean"]):
        return []
    return [Finding(
        f"networks reach {last[f'{name}_mean']:.1f}% on the images of iteration {last['step']}, "
        f"{first[f'{name}_mean']:.1f}% on the first ones: the images move too fast",
        (_quartered(config, "distill.lr_img"),),
        "distill.lr_img", config.get("distill.lr_img", 0.0) / _STEP,
    )]  # fmt: skip


def in_result(result: Mapping[str, Any]) -> list[Finding]:
    """What a finished run's figures say."""
    distilled, random = result.get(f"{selected(result)}_mean"), result.get("random_mean")
    if distilled is None or random is None or distilled > random:
        return []
    return [Finding(
        f"random real images ({random:.1f}%) do as well as the distilled ones ({distilled:.1f}%): "
        "let the numbers be found from the data, or give the run more iterations",
        (_auto("distill.lr_img"), _auto("distill.lr_teacher")),
    )]  # fmt: skip


def _auto(key: str) -> str:
    return f"--config.{key}=auto"


def _quartered(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return f"--config.{key}={value / _STEP:g}" if value else _auto(key)
