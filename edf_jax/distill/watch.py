"""A look at a young distillation: whether it learns, and if it doesn't, what would mend it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from edf_jax.config.resolve import flatten
from edf_jax.distilled_set import DistilledSet
from edf_jax.runs.diagnosis import Finding, not_learning
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runs.statistics import Accuracies
from edf_jax.runtime import processes

_LEAST = 10
_log = logging.getLogger(__name__)


class NotLearning(Exception):
    """A distillation that has to start again with another number.

    Attributes:
        finding: what is wrong.
    """

    def __init__(self, finding: Finding):
        super().__init__(finding.text)
        self.finding = finding


class Watch:
    """Looks once, after a tenth of the iterations."""

    def __init__(
        self,
        config,
        metrics: MetricsWriter,
        evaluate: Callable[[DistilledSet, int], Accuracies],
        mendable: Callable[[Finding], bool],
    ):
        """Looks at nothing yet.

        Args:
            config: resolved.
            metrics: holds the rows so far.
            evaluate: of the distillation; called where training images are held out.
            mendable: whether the run may change the number at fault.
        """
        self._config, self._metrics = config, metrics
        self._evaluate, self._mendable = evaluate, mendable
        self._at = max(_LEAST, config.distill.iterations // 10)

    def __call__(self, done: int, current: Callable[[], DistilledSet]) -> None:
        """Looks if it is time.

        Args:
            done: iterations that are done.
            current: gives the set after them.

        Raises:
            NotLearning: something is wrong that the run can mend; other things are told.
        """
        if done != self._at:
            return
        evaluations = self._metrics.rows("evaluate")[:1]
        if self._config.data.held_out:
            held_out = self._evaluate(current(), done).held_out
            evaluations.append({
                "step": done,
                "held_out_accuracy_mean": float(np.mean(held_out)),
                "held_out_accuracy_std": float(np.std(held_out)),
            })  # fmt: skip
        rows = self._metrics.rows("distill")
        found = processes.from_first_process(
            "whether it learns", lambda: not_learning(flatten(self._config), rows, evaluations)
        )
        for finding in found:
            finding = Finding(*finding)
            if self._mendable(finding):
                raise NotLearning(finding)
            _log.warning("after %d iterations: %s", done, finding.text)
