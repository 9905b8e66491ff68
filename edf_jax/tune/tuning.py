"""The numbers that a run's config leaves to the data, found when they are needed and kept.

`tuned.json` in the run's folder holds what was chosen, why, and what was tried. A run that goes on
takes it from there; `flags` pins it for another. Test images are never looked at.
"""

from __future__ import annotations

import logging
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from edf_jax.config.resolve import autos, flatten, resolve
from edf_jax.data import Dataset, Split
from edf_jax.data.held_out import hold_out
from edf_jax.experts.train import train_experts
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models.choose import network_for
from edf_jax.runs.diagnosis import Finding
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runs.tuned import FILE, flags
from edf_jax.runtime import processes, storage
from edf_jax.tune import budget, choices
from edf_jax.tune.measure import TRIED_STEPS, expert_curve, expert_losses

# Set aside for the choice of the experts' rate, where the config sets nothing aside for good.
_SET_ASIDE = 0.1
# Experts take about so many steps, and half as many again while they still learn.
_EXPERT_STEPS, _MOST_EPOCHS, _LONGER, _LEAST_LONGER = 600, 60, 1.5, 1.2
_BATCHES_PER_EPOCH, _BATCHES = 10, (16, 256)
# Distillations that are started again because they didn't learn.
_MENDINGS = 2
_log = logging.getLogger(__name__)

_FIRST_RATES = (0.025, 0.1, 0.4)
_OF_EPOCHS = ("distill.max_start_epoch", "distill.expert_epochs")
_EXPERTS = ("experts.batch", "experts.lr", "experts.epochs")
_HELD_OUT = "loss on held-out training images"


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
            self._record = processes.from_first_process("chosen numbers", self._read)
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

    def flags(self) -> str:
        """What pins the numbers that were chosen."""
        return " ".join(flags(self._record["chosen"], self.config.distill.alpha_step))

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

    def keep(self, began: float) -> None:
        """Writes what was chosen, the first process's numbers in all of them.

        Args:
            began: when the choice was, by `time.monotonic`.
        """
        self._record["seconds"] += round(time.monotonic() - began, 1)
        self._record = processes.from_first_process("chosen numbers", lambda: self._record)
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
        self.keep(began)

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
            "experts.lr",
            choices.choose_expert_rate(tried, math.log(dataset.info.num_classes)),
            "half of the smallest that learns about as fast as any", tried, _HELD_OUT,
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
        room = longer >= _LEAST_LONGER * last
        learning = epochs == last and choices.still_falls(curve) and room
        if learning:
            epochs, why = longer, f"they still learned after {last} of them"
        else:
            self._record["trained_epochs"] = last
            why = "no lower loss on held-out images" + (" later" if epochs < last else " before")
        self._record["chosen"]["experts.epochs"] = epochs
        self._record["told"]["experts.epochs"] = _told(why, curve, _HELD_OUT)
        self._settle()
        self.keep(began)
        return learning

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
        self.keep(began)


def _told(why: str, tried: Mapping[Any, float], score: str) -> dict[str, Any]:
    """What to say of a choice; JSON has no infinity."""
    curve = [[v, float(s) if math.isfinite(s) else None] for v, s in sorted(tried.items())]
    return {"why": why, "tried": curve, "score": score}


def _held_out(dataset: Dataset) -> Split:
    assert dataset.held_out is not None
    return dataset.held_out
