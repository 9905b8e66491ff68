"""The numbers of a distillation, found at the experts that it follows and its first images."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edf_jax.config.resolve import flatten, reckoned
from edf_jax.data import Dataset
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.methods import family
from edf_jax.models.choose import network_for
from edf_jax.runtime import randomness
from edf_jax.tune import budget, choices
from edf_jax.tune.measure import Gradients, student_probe
from edf_jax.tune.tuning import Tuning

_STEPS, _TARGETS = (20, 40), (1, 2, 3)
# Of the experts' epochs; close at the start, where students follow.
_STARTS = (0, 1 / 18, 1 / 9, 1 / 6, 2 / 9, 1 / 3, 1 / 2, 2 / 3)
# The share of alpha that an iteration moves it by where the matching loss asks for twice it.
_ALPHA_STEP = 0.02
# Iterations of a race, of them the last that are judged, what its rates differ by, and the
# iterations whose gradients make the first guess.
_RACE, _JUDGED, _FACTOR, _FIRST = 5, 3, 3.0, 2
# A gradient that is so many times as long as those of the first set is an accident.
_LONGEST = 3
_FEWEST_ITERATIONS, _MOST_ITERATIONS = 50, 1000
_STUDENTS = (
    "distill.syn_steps", "distill.expert_epochs", "distill.lr_teacher", "distill.threshold",
    "distill.min_start_epoch", "distill.current_max_start_epoch", "distill.max_start_epoch",
    "distill.expansion_end",
)  # fmt: skip
_RATES = ("distill.lr_lr", "distill.lr_y", "distill.lr_img", "distill.clip")
# What a curve's score is.
_MATCHING, _AT_BEST, _RACED = (
    "matching loss at the start",
    "matching loss at the best rate",
    "matching loss after a few iterations",
)
_log = logging.getLogger(__name__)


def for_distillation(
    tuning: Tuning,
    dataset: Dataset,
    store: TrajectoryStore,
    make_initial: Callable[[Any], DistilledSet],
    spent: Callable[[], float],
) -> None:
    """Chooses what distillation needs.

    Args:
        tuning: of the run.
        dataset: the real images.
        store: the experts, trained.
        make_initial: of a config, the set that distillation starts from.
        spent: the seconds that the run took so far.
    """
    if not tuning.lacks(*_STUDENTS, *_RATES, "distill.iterations"):
        return
    began = time.monotonic()
    initial = make_initial(reckoned(tuning.config))
    if tuning.lacks(*_STUDENTS):
        _choose_students(tuning, dataset, store, initial)
    if tuning.lacks("distill.iterations", "distill.lr_y", "distill.lr_img", "distill.clip"):
        gradients = _gradients(tuning, dataset, store, initial)
        norms = gradients.start(_FIRST)
        tuning.choose(
            "distill.clip", choices.rounded(_LONGEST * max(gradients.lengths)),
            f"{_LONGEST} times as long as at the start",
        )  # fmt: skip
        _choose_iterations(tuning, gradients.seconds, initial, spent())
        _choose_label_rate(tuning, initial, norms[1])
        _choose_alpha_step(tuning)
        _choose_image_rate(tuning, gradients, initial, norms[0])
    _choose_alpha_step(tuning)
    iterations = tuning.config.distill.iterations
    tuning.choose(
        "distill.expansion_end", max(1, round(iterations * 2 / 3)), "two thirds of the run"
    )
    tuning.keep(began)
    _log.info("found from the data: %s", tuning.flags())


def _choose_students(tuning: Tuning, dataset, store, initial: DistilledSet) -> None:
    options, experts = tuning.config.distill, tuning.config.experts
    low = 0 if tuning.lacks("distill.min_start_epoch") else options.min_start_epoch
    steps = _given(tuning, "distill.syn_steps", _STEPS)
    if tuning.lacks("distill.max_start_epoch"):
        targets = _given(tuning, "distill.expert_epochs", _TARGETS, experts.epochs)
        latest = experts.epochs - max(targets)
        starts = {min(max(round(share * experts.epochs), low), latest) for share in _STARTS}
    else:
        last = options.max_start_epoch - 1
        targets = _given(tuning, "distill.expert_epochs", _TARGETS, experts.epochs - last)
        starts = {round(s) for s in np.linspace(low, last, 4)}
    ordered = sorted(starts)
    network = network_for(tuning.config, dataset.info)
    probe = student_probe(
        reckoned(tuning.config), network, initial, store, ordered, steps, targets
    )

    def place(probes: choices.Probes) -> tuple[int, int]:
        n, m = choices.choose_steps_and_targets(probes.gain, steps, targets)
        return steps.index(n), targets.index(m)

    def pick(probes: choices.Probes) -> tuple[np.ndarray, np.ndarray]:
        n, m = place(probes)
        chosen = choices.well_followed(probes.gain[:, n, m])
        return probes.along[chosen, n, m], probes.length[chosen, n, m]

    batches = -(-len(dataset.train) // experts.batch)
    first, rounds = options.lr_teacher, 1
    if tuning.lacks("distill.lr_teacher"):
        # A quarter of what would take the student as far by its own steps as the expert went.
        first, rounds = experts.lr * np.mean(targets) * batches / max(steps) / 4, 6
    alpha, tried, probes = choices.search_alpha(probe, float(first), pick, rounds=rounds)
    n, m = place(probes)
    gain = probes.gain[:, n, m]
    chosen = choices.well_followed(gain)
    tuning.choose(
        "distill.lr_teacher", choices.rounded(alpha),
        f"matching loss {tried[alpha]:.2f} at the start", tried, _MATCHING,
    )  # fmt: skip
    by_steps = dict(zip(map(float, steps), 1 - probes.gain[chosen, :, m].mean(axis=0)))
    by_targets = dict(zip(map(float, targets), 1 - probes.gain[chosen, n].mean(axis=0)))
    by_start = dict(zip(map(float, ordered), 1 - gain))
    tuning.choose(
        "distill.syn_steps", steps[n], "the fewest that come nearly as far as more",
        by_steps, _AT_BEST,
    )  # fmt: skip
    tuning.choose(
        "distill.expert_epochs", targets[m], "the farthest target that students get nearly as "
        "close to as to a nearer one", by_targets, _AT_BEST,
    )  # fmt: skip
    _choose_starts(tuning, choices.choose_start_epochs(gain, ordered), by_start)
    counted = probes.loss[np.asarray(ordered) < tuning.config.distill.max_start_epoch, n, m]
    tuning.choose(
        "distill.threshold", choices.choose_gate(counted), "over every loss of the start"
    )


def _given(
    tuning: Tuning, key: str, candidates: Sequence[int], most: float = math.inf
) -> list[int]:
    """The values of a key to look at: those to choose from, or the one that was given."""
    if not tuning.lacks(key):
        return [flatten(tuning.config)[key]]
    return [value for value in candidates if value <= most] or list(candidates[:1])


def _choose_starts(
    tuning: Tuning, found: tuple[int, int, int], by_start: dict[float, float]
) -> None:
    options = tuning.config.distill
    most = tuning.config.experts.epochs - options.expert_epochs
    earliest, early, late = (min(epoch, most) for epoch in found)
    tuning.choose("distill.min_start_epoch", earliest, "students follow well from then on",
                by_start, _AT_BEST)  # fmt: skip
    low = tuning.config.distill.min_start_epoch
    tuning.choose(
        "distill.max_start_epoch", max(low, late) + 1,
        f"{choices.REACH} times as far as the first images are followed", by_start, _AT_BEST,
    )  # fmt: skip
    last = tuning.config.distill.max_start_epoch
    tuning.choose(
        "distill.current_max_start_epoch", min(max(low, early) + 1, last),
        f"students come {choices.EARLY_SHARE} times as far as from the best", by_start, _AT_BEST,
    )  # fmt: skip


def _choose_alpha_step(tuning: Tuning) -> None:
    if not tuning.lacks("distill.lr_lr"):
        return
    options = tuning.config.distill
    rate = _ALPHA_STEP * choices.movement(options.iterations) * (1 - options.momentum_lr)
    if options.alpha_step == "plain":
        rate *= options.lr_teacher**2
    share = 2 * _ALPHA_STEP * choices.movement(options.iterations)
    tuning.choose(
        "distill.lr_lr", choices.rounded(rate), f"an iteration moves alpha by up to {share:.1%}"
    )


def _gradients(tuning: Tuning, dataset, store, initial: DistilledSet) -> Gradients:
    config, options = tuning.config, tuning.config.distill
    rng = randomness.host_stream(config.seed, "tried rates")
    bound = family.START_BOUNDS[options.start_schedule](reckoned(config).distill, 0)
    pairs = [
        (int(rng.integers(config.experts.num)),
         int(rng.integers(options.min_start_epoch, bound)))
        for _ in range(_RACE)
    ]  # fmt: skip
    start = dataclasses.replace(initial, alpha=options.lr_teacher)
    network = network_for(config, dataset.info)
    return Gradients(reckoned(config), network, start, store, pairs)


def _choose_iterations(tuning: Tuning, each: float, initial: DistilledSet, spent: float) -> None:
    """As many iterations as there is time for, once the evaluation's is set aside."""
    if not tuning.lacks("distill.iterations"):
        return
    options = tuning.config.distill
    images = len(initial.labels)
    # In forward passes of an image, as in `plan.hours`.
    iteration = 9 * options.syn_steps * min(options.batch_syn, images) * options.trajectories
    evaluation = 3 * images * budget.trainings(tuning.config)
    race = 0 if not tuning.lacks("distill.lr_img") else 4 * _RACE
    left = tuning.config.budget.minutes * 60 - spent - each * (race + evaluation / iteration)
    count = int(np.clip(left / each, _FEWEST_ITERATIONS, _MOST_ITERATIONS))
    tuning.choose(
        "distill.iterations", count - count % 10, f"{each:.1f} s each, in the time that is left"
    )


def _choose_label_rate(tuning: Tuning, initial: DistilledSet, gradient: float) -> None:
    options = tuning.config.distill
    if not family.LABELS[options.labels].learned:
        tuning.choose("distill.lr_y", 0.0, "labels aren't learned")
        return
    rate = choices.rate_of_labels(
        gradient, options.momentum_y, options.iterations, float(np.std(initial.labels))
    )
    tuning.choose("distill.lr_y", choices.rounded(rate), "a set share of the logits' deviation")


def _choose_image_rate(
    tuning: Tuning, gradients: Gradients, initial: DistilledSet, gradient: float
) -> None:
    if not tuning.lacks("distill.lr_img"):
        return
    options = tuning.config.distill
    guess = choices.rate_of_images(
        gradient, options.momentum_img, options.iterations, float(np.std(initial.parameters))
    )
    others = {"lr_y": options.lr_y, "lr_lr": options.lr_lr}
    tried: dict[float, float] = {}
    for factor in (0.0, 1 / _FACTOR, 1, _FACTOR):
        rate = choices.rounded(guess * factor)
        tried[rate] = gradients.race({**others, "lr_img": rate}, _JUDGED)
    tuning.choose(
        "distill.lr_img", choices.choose_raced(tried),
        f"{choices.rounded(guess):g} moves pixels by a set share of their deviation",
        tried, _RACED,
    )  # fmt: skip
