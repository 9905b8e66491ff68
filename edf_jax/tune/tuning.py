"""The numbers that a run's config leaves to the data, found when they are needed and kept.

`tuned.json` in the run's folder holds what was chosen, why, and what was tried. A run that goes on
takes it from there; `flags` pins it for another. Test images are never looked at.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edf_jax.config.resolve import autos, flatten, reckoned, resolve
from edf_jax.data import Dataset, Split
from edf_jax.data.held_out import hold_out
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.train import train_experts
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.methods import family
from edf_jax.models.choose import network_for
from edf_jax.runs.diagnosis import Finding
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runs.tuned import FILE, flags
from edf_jax.runtime import processes, randomness, storage
from edf_jax.tune import budget, choices
from edf_jax.tune.measure import TRIED_STEPS, Gradients, expert_curve, expert_losses, student_probe

# Set aside for the choice of the experts' rate, where the config sets nothing aside for good.
_SET_ASIDE = 0.1
# Experts take about so many steps, and some of it over again while they still learn.
_EXPERT_STEPS, _MOST_EPOCHS, _LONGER = 600, 60, 1.5
_STILL_LEARNING = 0.02
_BATCHES_PER_EPOCH, _BATCHES = 10, (16, 256)
_STEPS, _TARGETS, _STARTS = (10, 20, 40), (1, 2, 3), (0, 1 / 6, 1 / 3, 1 / 2, 2 / 3)
# The share of alpha that an iteration moves it by where the matching loss asks for twice it.
_ALPHA_STEP = 0.02
_RACE, _JUDGED, _FACTOR, _FIRST = 5, 3, 3.0, 2
# Distillations that are started again because they didn't learn.
_MENDINGS = 2
_FEWEST_ITERATIONS, _MOST_ITERATIONS = 50, 1000
_log = logging.getLogger(__name__)

_FIRST_RATES = (0.025, 0.1, 0.4)
_OF_EPOCHS = ("distill.max_start_epoch", "distill.expert_epochs")
_EXPERTS = ("experts.batch", "experts.lr", "experts.epochs")
_START_EPOCHS = (
    "distill.min_start_epoch", "distill.current_max_start_epoch", "distill.max_start_epoch",
    "distill.expansion_end",
)  # fmt: skip
_STUDENTS = (
    "distill.syn_steps", "distill.expert_epochs", "distill.lr_teacher", "distill.threshold",
    *_START_EPOCHS,
)  # fmt: skip
_RATES = ("distill.lr_lr", "distill.lr_y", "distill.lr_img")
# What a curve's score is.
HELD_OUT, MATCHING, RACE = (
    "loss on held-out training images",
    "matching loss at the start",
    "matching loss after a few iterations",
)


class Tuning:
    """The choices of one run.

    Attributes:
        asked: the config as the user gave it, resolved.
        config: the same with what is chosen so far.
    """

    def __init__(self, asked, workdir: pathlib.Path):
        """Reads what an earlier sitting chose."""
        self.asked, self._path = asked, workdir / FILE
        self._autos = autos(flatten(asked))
        self._record: dict[str, Any] = {"chosen": {}, "told": {}, "seconds": 0.0}
        if self._autos:
            self._record = processes.shared("chosen numbers", self._read)
        self._settle()

    def _read(self) -> dict[str, Any]:
        try:
            return storage.read_record(self._path)
        except storage.DamagedFile as error:
            if self._path.exists():
                _log.warning("%s: chosen again", error)
            return self._record

    def _settle(self) -> None:
        chosen = {k: v for k, v in self._record["chosen"].items() if k in self._autos}
        self.config = resolve(self.asked, **chosen) if chosen else self.asked

    def figures(self) -> dict[str, Any]:
        """What was chosen, for `result.json`."""
        return {"tuned": self._record["chosen"]} if self._record["chosen"] else {}

    def lacks(self, *keys: str) -> list[str]:
        """Those of some keys that are still to be chosen."""
        return [key for key in keys if key in autos(flatten(self.config))]

    def choose(
        self, key: str, value: float, why: str, tried: Mapping[float, float] | None = None,
        score: str = "",
    ) -> None:  # fmt: skip
        """Takes a value for a key, if it is to be chosen.

        Args:
            key: dotted.
            value: for it.
            why: a few words for people.
            tried: scores by value.
            score: what a score is.
        """
        if self.lacks(key):
            self._record["chosen"][key] = value
            self._record["told"][key] = _told(why, tried or {}, score)
            self._settle()

    def _keep(self, began: float) -> None:
        """Writes what was chosen, the first process's numbers in all of them."""
        self._record["seconds"] += round(time.monotonic() - began, 1)
        self._record = processes.shared("chosen numbers", lambda: self._record)
        self._settle()
        storage.write_record(self._path, self._record)

    def for_experts(self, dataset: Dataset) -> None:
        """Chooses what experts are trained with."""
        if not self.lacks(*_EXPERTS):
            return
        began = time.monotonic()
        count = len(dataset.train)
        batch = 2 ** int(math.log2(max(1, count / _BATCHES_PER_EPOCH)))
        self.choose(
            "experts.batch", int(np.clip(batch, *_BATCHES)), f"of {count:,} training images"
        )
        if self.lacks("experts.lr"):
            self._choose_expert_rate(dataset)
        if self.lacks("experts.epochs"):
            steps = -(-count // self.config.experts.batch)
            epochs = min(budget.epochs_of(_EXPERT_STEPS, steps), self._most_epochs(steps))
            self.choose("experts.epochs", epochs, f"some {epochs * steps} steps")
        self._keep(began)

    def _most_epochs(self, steps: int) -> int:
        """The most epochs that an expert may have: what its part of a budget is enough for."""
        minutes, second = self.config.budget.minutes, self._record.get("expert_step_seconds")
        if not (minutes and second):
            return max(_MOST_EPOCHS, self._needed_epochs())
        gradients = 2 if self.config.experts.optimizer == "gsam" else 1
        each = budget.EXPERTS_SHARE * minutes * 60 / self.config.experts.num
        epochs = int(each / (second * gradients * steps))
        return max(min(epochs, _MOST_EPOCHS), budget.FEWEST_EPOCHS, self._needed_epochs())

    def _needed_epochs(self) -> int:
        """The epochs that given start epochs and targets ask for."""
        flat = flatten(self.asked)
        given = [0 if key in self._autos else flat[key] for key in _OF_EPOCHS]
        return sum(given)

    def _choose_expert_rate(self, dataset: Dataset) -> None:
        apart = self._apart(dataset)
        config, network = self.config, network_for(self.config, dataset.info)
        loss = expert_losses(config, apart, _held_out(apart), network)
        tried: dict[float, float] = {}
        for rates in (_FIRST_RATES, None, None, None):
            for rate in rates or choices.next_rates(tried, 4.0):
                tried[rate] = loss(rate)
        for rate in choices.next_rates(tried, 2.0):
            began = time.monotonic()
            tried[rate] = loss(rate)
            # Test images of every epoch are counted in, about.
            self._record["expert_step_seconds"] = 1.1 * (time.monotonic() - began) / TRIED_STEPS
        self.choose(
            "experts.lr", choices.choose_expert_rate(tried), "learns fastest and still smoothly",
            tried, HELD_OUT,
        )  # fmt: skip

    def _apart(self, dataset: Dataset) -> Dataset:
        if dataset.held_out is not None:
            return dataset
        data = self.config.data
        copies = data.composites if data.source == "cluttered_digits" else 1
        return hold_out(dataset, _SET_ASIDE, copies=copies)

    def train_experts(
        self, dataset: Dataset, store: TrajectoryStore, metrics: MetricsWriter
    ) -> list[float]:
        """`experts.train.train_experts`, for as many epochs as they learn in."""
        while True:
            # Perhaps for more epochs than are used.
            trained = self._record.get("trained_epochs") or self.config.experts.epochs
            config = resolve(self.config, **{"experts.epochs": trained})
            accuracies = train_experts(config, dataset, store, metrics)
            if not self._look_at_experts(dataset, store):
                return accuracies

    def _look_at_experts(self, dataset: Dataset, store: TrajectoryStore) -> bool:
        """Chooses the experts' epochs once they are trained.

        Returns:
            Whether they are to be trained further: `config.experts.epochs` has grown.
        """
        if "experts.epochs" not in self._autos or "trained_epochs" in self._record:
            return False
        began = time.monotonic()
        last = self.config.experts.epochs
        if dataset.held_out is None:
            self._record["trained_epochs"] = last
            return False
        network = network_for(self.config, dataset.info)
        curve = expert_curve(self.config, dataset, dataset.held_out, network, store)
        steps = -(-len(dataset.train) // self.config.experts.batch)
        longer = min(math.ceil(_LONGER * last), self._most_epochs(steps))
        epochs = choices.choose_epochs(curve, self._needed_epochs())
        learning = epochs == last and choices.still_falls(curve) and longer > last
        if learning:
            epochs, why = longer, f"they still learned after {last} of them"
        else:
            self._record["trained_epochs"] = last
            why = "no lower loss on held-out images" + (" later" if epochs < last else " before")
        self._record["chosen"]["experts.epochs"] = epochs
        self._record["told"]["experts.epochs"] = _told(why, curve, HELD_OUT)
        self._settle()
        self._keep(began)
        return learning

    def for_distillation(
        self,
        dataset: Dataset,
        store: TrajectoryStore,
        make_initial: Callable[[Any], DistilledSet],
        spent: Callable[[], float],
    ) -> None:
        """Chooses what distillation needs.

        Args:
            dataset: the real images.
            store: the experts, trained.
            make_initial: of a config, the set that distillation starts from.
            spent: the seconds that the run took so far.
        """
        if not self.lacks(*_STUDENTS, *_RATES, "distill.iterations"):
            return
        began = time.monotonic()
        initial = make_initial(reckoned(self.config))
        if self.lacks(*_STUDENTS):
            self._choose_students(dataset, store, initial)
        if self.lacks("distill.iterations", "distill.lr_y", "distill.lr_img"):
            gradients = self._gradients(dataset, store, initial)
            norms = gradients.start(_FIRST)
            self._choose_iterations(gradients.seconds, initial, spent())
            self._choose_label_rate(initial, norms[1])
            self._choose_alpha_step()
            self._choose_image_rate(gradients, initial, norms[0])
        self._choose_alpha_step()
        iterations = self.config.distill.iterations
        self.choose(
            "distill.expansion_end", max(1, round(iterations * 2 / 3)), "two thirds of the run"
        )
        self._keep(began)
        pinned = flags(self._record["chosen"], self.config.distill.alpha_step)
        _log.info("found from the data: %s", " ".join(pinned))

    def can_mend(self, finding: Finding) -> bool:
        """Whether the number at fault was found here, and may be found wrong once more."""
        return finding.key in self._autos and len(self._record.get("mended", [])) < _MENDINGS

    def mend(self, finding: Finding) -> None:
        """Takes another value for the number at fault."""
        began, value = time.monotonic(), choices.rounded(finding.value)
        _log.warning("%s; taken instead: --config.%s=%g", finding.what, finding.key, value)
        self._record.setdefault("mended", []).append([finding.key, value, finding.what])
        self._record["chosen"][finding.key] = value
        self._record["told"][finding.key]["why"] = finding.what
        self._settle()
        self._keep(began)

    def _choose_students(self, dataset, store, initial: DistilledSet) -> None:
        options, experts = self.config.distill, self.config.experts
        given = flatten(self.config)
        targets = self._given("distill.expert_epochs", [m for m in _TARGETS if m <= experts.epochs])
        steps = self._given("distill.syn_steps", _STEPS)
        latest = experts.epochs - max(targets)
        if self.lacks("distill.max_start_epoch"):
            low = 0 if self.lacks("distill.min_start_epoch") else options.min_start_epoch
            starts = {min(max(round(share * experts.epochs), low), latest) for share in _STARTS}
        else:
            low = max(0, given["distill.min_start_epoch"])
            starts = {round(s) for s in np.linspace(low, options.max_start_epoch - 1, 4)}
        ordered = sorted(starts)
        network = network_for(self.config, dataset.info)
        probe = student_probe(
            reckoned(self.config), network, initial, store, ordered, steps, targets
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
        if self.lacks("distill.lr_teacher"):
            # A quarter of what would take the student as far by its own steps as the expert went.
            first, rounds = experts.lr * np.mean(targets) * batches / max(steps) / 4, 6
        alpha, tried, probes = choices.search_alpha(probe, float(first), pick, rounds=rounds)
        n, m = place(probes)
        gain = probes.gain[:, n, m]
        chosen = choices.well_followed(gain)
        self.choose(
            "distill.lr_teacher", choices.rounded(alpha),
            f"matching loss {tried[alpha]:.2f} at the start", tried, MATCHING,
        )  # fmt: skip
        by_steps = dict(zip(map(float, steps), 1 - probes.gain[chosen, :, m].mean(axis=0)))
        by_targets = dict(zip(map(float, targets), 1 - probes.gain[chosen, n].mean(axis=0)))
        by_start = dict(zip(map(float, ordered), 1 - gain))
        best = "matching loss at the best rate"
        self.choose(
            "distill.syn_steps",
            steps[n],
            "the fewest that come almost as far as more",
            by_steps,
            best,
        )
        self.choose(
            "distill.expert_epochs", targets[m], "the nearest target that students come as far to",
            by_targets, best,
        )  # fmt: skip
        self._choose_starts(choices.choose_start_epochs(gain, ordered), by_start, best)
        counted = probes.loss[np.asarray(ordered) < self.config.distill.max_start_epoch, n, m]
        self.choose(
            "distill.threshold", choices.choose_gate(counted), "over every loss of the start"
        )

    def _given(self, key: str, candidates: Sequence[int]) -> list[int]:
        """The values of a key to look at: those to choose from, or the one that was given."""
        return list(candidates) if self.lacks(key) else [flatten(self.config)[key]]

    def _choose_starts(
        self, found: tuple[int, int, int], by_start: dict[float, float], score: str
    ) -> None:
        options = self.config.distill
        most = self.config.experts.epochs - options.expert_epochs
        earliest, early, late = (min(epoch, most) for epoch in found)
        self.choose("distill.min_start_epoch", earliest, "students follow well from then on",
                    by_start, score)  # fmt: skip
        low = self.config.distill.min_start_epoch
        self.choose(
            "distill.max_start_epoch", max(low, late) + 1,
            "students come nearer to their targets until then", by_start, score,
        )  # fmt: skip
        last = self.config.distill.max_start_epoch
        self.choose(
            "distill.current_max_start_epoch", min(max(low, early) + 1, last),
            "students come half as far as from the best", by_start, score,
        )  # fmt: skip

    def _choose_alpha_step(self) -> None:
        if not self.lacks("distill.lr_lr"):
            return
        options = self.config.distill
        rate = _ALPHA_STEP * choices.movement(options.iterations) * (1 - options.momentum_lr)
        if options.alpha_step == "plain":
            rate *= options.lr_teacher**2
        share = 2 * _ALPHA_STEP * choices.movement(options.iterations)
        self.choose(
            "distill.lr_lr", choices.rounded(rate), f"an iteration moves alpha by up to {share:.1%}"
        )

    def _gradients(self, dataset, store, initial: DistilledSet) -> Gradients:
        config, options = self.config, self.config.distill
        rng = randomness.host_stream(config.seed, "tried rates")
        pairs = [
            (int(rng.integers(config.experts.num)),
             int(rng.integers(options.min_start_epoch, options.current_max_start_epoch)))
            for _ in range(_RACE)
        ]  # fmt: skip
        start = dataclasses.replace(initial, alpha=options.lr_teacher)
        network = network_for(config, dataset.info)
        return Gradients(reckoned(config), network, start, store, pairs)

    def _choose_iterations(self, each: float, initial: DistilledSet, spent: float) -> None:
        """As many iterations as there is time for, once the evaluation's is set aside."""
        if not self.lacks("distill.iterations"):
            return
        options = self.config.distill
        images = len(initial.images)
        # In forward passes of an image, as in `plan.hours`.
        iteration = 9 * options.syn_steps * min(options.batch_syn, images) * options.trajectories
        evaluation = 3 * images * budget.trainings(self.config)
        race = 0 if not self.lacks("distill.lr_img") else 3 * _RACE
        left = self.config.budget.minutes * 60 - spent - each * (race + evaluation / iteration)
        count = int(np.clip(left / each, _FEWEST_ITERATIONS, _MOST_ITERATIONS))
        self.choose(
            "distill.iterations", count - count % 10, f"{each:.1f} s each, in the time that is left"
        )

    def _choose_label_rate(self, initial: DistilledSet, gradient: float) -> None:
        options = self.config.distill
        if not family.LABELS[options.labels].learned:
            self.choose("distill.lr_y", 0.0, "labels aren't learned")
            return
        rate = choices.rate_of_labels(
            gradient, options.momentum_y, options.iterations, float(np.std(initial.labels))
        )
        self.choose("distill.lr_y", choices.rounded(rate), "a set share of the logits' deviation")

    def _choose_image_rate(
        self, gradients: Gradients, initial: DistilledSet, gradient: float
    ) -> None:
        if not self.lacks("distill.lr_img"):
            return
        options = self.config.distill
        guess = choices.rate_of_images(
            gradient, options.momentum_img, options.iterations, float(np.std(initial.images))
        )
        others = {"lr_y": options.lr_y, "lr_lr": options.lr_lr}
        tried: dict[float, float] = {}
        for factor in (1 / _FACTOR, 1, _FACTOR):
            rate = choices.rounded(guess * factor)
            tried[rate] = gradients.race({**others, "lr_img": rate}, _JUDGED)
        self.choose(
            "distill.lr_img", choices.choose_raced(tried),
            f"{choices.rounded(guess):g} moves pixels by a set share of their deviation",
            tried, RACE,
        )  # fmt: skip


def _told(why: str, tried: Mapping[Any, float], score: str) -> dict[str, Any]:
    """What to say of a choice; JSON has no infinity."""
    curve = [[v, float(s) if math.isfinite(s) else None] for v, s in sorted(tried.items())]
    return {"why": why, "tried": curve, "score": score}


def _held_out(dataset: Dataset) -> Split:
    assert dataset.held_out is not None
    return dataset.held_out
