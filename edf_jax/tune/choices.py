"""The choices themselves: from measured numbers to the values that a run takes. Pure functions.

A student that takes N steps goes `d = theta_N - theta_0` where its expert went `D`. With
`along = <d, D> / |D|^2` and `length = |d|^2 / |D|^2` the matching loss is `1 - 2 along + length`.
If a rate c times as large took it c times as far, that would be lowest at `c = along / length`, and
`1 - along^2 / length` there: what remains at the best rate. Both are read off one unroll, which
serves every number of steps up to N and every target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

# What is given up of the best for the sake of a smaller number: less noise, less work.
_OF_FASTEST = 0.5
_LEARNED_SHARE, _TARGETS_SHARE, _STEPS_SHARE = 0.85, 0.8, 0.9
EARLY_SHARE, _FOLLOWED_SHARE = 0.3, 0.25
# So many times as far into a trajectory as the first images do, distilled ones are followed.
REACH = 3
_STILL_FALLS = 0.02
# The search for alpha ends at a factor this near to one.
_CLOSE, _WIDEST = 1.15, 8.0
# An iteration moves a pixel by this share of its deviation in a run of `_USUAL` iterations, and a
# label's logit by that of its own, both with what momentum adds.
_PIXEL_STEP, _LOGIT_STEP, _USUAL = 0.04, 0.003, 300
_LEAST_STEP = 0.1
# The share of what any rate brings down the loss of a race that is enough.
_RACED_SHARE = 0.75


class Probes(NamedTuple):
    """How students went at one rate: arrays `[starts, steps, targets]`."""

    along: np.ndarray
    length: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """The matching loss; infinite where a student diverged."""
        return _or_infinite(1 - 2 * self.along + self.length)

    @property
    def gain(self) -> np.ndarray:
        """How much of the way a student of the best rate comes: 1 less the loss there."""
        with np.errstate(all="ignore"):
            gain = np.maximum(self.along, 0) ** 2 / self.length
        return np.where(np.isfinite(gain), gain, 0.0)


def _or_infinite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.inf)


def choose_expert_rate(losses: Mapping[float, float], guessing: float) -> float:
    """Half of the smallest rate that learns about as fast as any.

    A few steps favour rates so large that a trajectory is mostly noise, which no student follows.

    Args:
        losses: held-out, after a few steps, by rate; not finite where training diverged.
        guessing: the loss of a network that has learned nothing.
    """
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        return min(losses) * _OF_FASTEST
    lowest = min(finite.values())
    bar = lowest + (1 - _LEARNED_SHARE) * max(guessing - lowest, 0.0)
    return rounded(min(rate for rate, loss in finite.items() if loss <= bar) * _OF_FASTEST)


def next_rates(losses: Mapping[float, float], factor: float) -> list[float]:
    """Rates to try beside the best of those tried, so that it has a neighbour on either side."""
    best = min(losses, key=lambda rate: (not math.isfinite(losses[rate]), losses[rate]))
    beside = (best / factor, best * factor)
    return [rate for rate in beside if not any(math.isclose(rate, r, rel_tol=1e-6) for r in losses)]


def choose_epochs(curve: Mapping[int, float], at_least: int) -> int:
    """The epoch of the lowest held-out loss; labels of experts that went on are too sure.

    Args:
        curve: loss by epoch.
        at_least: epochs that are needed in any case.
    """
    enough = {epoch: loss for epoch, loss in curve.items() if epoch >= at_least} or curve
    return min(enough, key=lambda epoch: enough[epoch])


def still_falls(curve: Mapping[int, float]) -> bool:
    """Whether the last quarter of a loss's curve brought it down by more than noise."""
    last = max(curve)
    before = min(loss for epoch, loss in curve.items() if epoch <= max(0.75 * last, min(curve)))
    return before - curve[last] > _STILL_FALLS * curve[last]


def choose_steps_and_targets(
    gain: np.ndarray, steps: Sequence[int], targets: Sequence[int]
) -> tuple[int, int]:
    """The farthest target that students come nearly as close to, and the fewest steps for it.

    Args:
        gain: `[starts, steps, targets]`.
        steps: of the second axis.
        targets: expert epochs of the third.
    """
    mean = gain.mean(axis=0)
    by_target = mean.max(axis=0)
    m = max(np.flatnonzero(by_target >= _TARGETS_SHARE * by_target.max()))
    n = min(np.flatnonzero(mean[:, m] >= _STEPS_SHARE * mean[:, m].max()))
    return steps[int(n)], targets[int(m)]


def well_followed(gain: np.ndarray) -> np.ndarray:
    """Which starts students come at least 0.3 times as far from as from the best of them, bool."""
    return gain >= EARLY_SHARE * gain.max()


def choose_start_epochs(gain: np.ndarray, starts: Sequence[int]) -> tuple[int, int, int]:
    """The earliest start epoch, and the latest at the first iteration and at the last.

    Later stretches of a trajectory are harder to follow, and now and then the first. A distillation
    begins where students come at least 0.3 times as far as they do anywhere. Images that have
    learned those stretches are followed on later ones too, about three times as far.

    Args:
        gain: `[starts]`, before distillation.
        starts: rising.
    """
    first = int(np.argmax(gain >= _FOLLOWED_SHARE * gain.max()))
    best = first + int(np.argmax(gain[first:]))
    falling = isotonic_regression(gain[best:], increasing=False).x
    bar = EARLY_SHARE * gain.max()
    # Between two probes by a straight line.
    early = float(np.interp(-bar, -falling, starts[best:]))
    late = starts[first] + REACH * (early - starts[first])
    return starts[first], int(early), min(int(late), starts[-1])


def search_alpha(
    probe: Callable[[float], Probes],
    first: float,
    pick: Callable[[Probes], tuple[np.ndarray, np.ndarray]],
    *,
    rounds: int = 6,
) -> tuple[float, dict[float, float], Probes]:
    """The student's rate of the lowest mean matching loss.

    Args:
        probe: unrolls students at a rate.
        first: where to start.
        pick: of the probes, `along` and `length` of those that count.
        rounds: most rates tried.

    Returns:
        The rate, the mean loss at each rate tried, and the probes there.
    """
    tried: dict[float, float] = {}
    kept: dict[float, Probes] = {}
    alpha = first
    for _ in range(rounds):
        kept[alpha] = probe(alpha)
        along, length = pick(kept[alpha])
        loss = float(np.mean(1 - 2 * along + length))
        tried[alpha] = loss if math.isfinite(loss) else math.inf
        factor = scale(along, length)
        if max(factor, 1 / factor) < _CLOSE:
            break
        alpha *= factor
        if any(max(alpha / old, old / alpha) < _CLOSE for old in tried):
            break
    best = min(tried, key=lambda rate: tried[rate])
    return best, tried, kept[best]


def scale(along: np.ndarray, length: np.ndarray) -> float:
    """What to multiply a rate by, so that students come nearest to their targets."""
    if not (np.isfinite(along).all() and np.isfinite(length).all()):
        return 1 / _WIDEST
    factor = float(np.sum(along) / max(np.sum(length), 1e-12))
    return min(max(factor, 1 / _WIDEST), _WIDEST)


def choose_gate(losses: np.ndarray) -> float:
    """The gate: half as much again as the largest matching loss of the start, at least 1.5.

    Args:
        losses: at the chosen rate, over the start epochs that there will be.
    """
    finite = losses[np.isfinite(losses)]
    return round(max(1.5, 1.5 * float(finite.max(initial=0))), 2)


def movement(iterations: int) -> float:
    """How much less far than usual an iteration moves the set, the more iterations there are."""
    return float(np.clip(math.sqrt(_USUAL / max(iterations, 1)), _LEAST_STEP, 1.0))


def rate_of_images(gradient: float, momentum: float, iterations: int, deviation: float) -> float:
    """The images' rate that moves pixels by a set share of their deviation.

    Args:
        gradient: root mean square over pixels, at the start.
        momentum: of the images.
        iterations: of the run.
        deviation: of the pixels.
    """
    step = _PIXEL_STEP * movement(iterations) * deviation
    return step * (1 - momentum) / max(gradient, 1e-30)


def rate_of_labels(gradient: float, momentum: float, iterations: int, deviation: float) -> float:
    """The labels' rate; arguments as in `rate_of_images`, of the logits."""
    step = _LOGIT_STEP * movement(iterations) * deviation
    return step * (1 - momentum) / max(gradient, 1e-30)


def choose_raced(losses: Mapping[float, float]) -> float:
    """The smallest rate whose images bring the matching loss about as far down as any.

    A short race favours large rates, which a long distillation pays for.

    Args:
        losses: by rate; that of rate 0 is what labels and alpha reach by themselves. Not finite
            where the set flew apart.
    """
    finite = {rate: loss for rate, loss in losses.items() if rate and math.isfinite(loss)}
    if not finite:
        return min(rate for rate in losses if rate)
    lowest = min(finite.values())
    bar = lowest + (1 - _RACED_SHARE) * max(losses[0.0] - lowest, 0.0)
    return min(rate for rate, loss in finite.items() if loss <= bar)


def rounded(value: float) -> float:
    """Two significant digits: a chosen number is no more certain than that."""
    return float(f"{value:.2g}")
