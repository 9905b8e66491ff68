"""What a run found for its 'auto' numbers, as `tuned.json` keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FILE = "tuned.json"


def flags(chosen: Mapping[str, float], alpha_step: str) -> list[str]:
    """The flags that pin the numbers that a run found.

    Args:
        chosen: by dotted key.
        alpha_step: `distill.alpha_step` of the run, which says what `distill.lr_lr` is a rate of.
    """
    found = [f"--config.{key}={value:g}" for key, value in chosen.items()]
    if "distill.lr_lr" in chosen:
        found.append(f"--config.distill.alpha_step={alpha_step}")
    return found


def tried(told: Mapping[str, Any]) -> str:
    """What was tried for a number, in a few words; '' where it follows from others.

    Args:
        told: of the number, by `tuned.json`: `why`, `tried` (values and scores), `score`.
    """
    curve: Sequence[Sequence[Any]] = told.get("tried", [])
    if len(curve) < 2:
        return ""
    scores = ", ".join(
        f"{value:.3g}: {'diverged' if score is None else f'{score:.2f}'}" for value, score in curve
    )
    return f"tried {curve[0][0]:.3g} to {curve[-1][0]:.3g}; {told['score']}: {scores}"
