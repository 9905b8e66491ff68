"""The rows of iterations: written one behind the device, and watched for what goes wrong."""

from __future__ import annotations

import logging
import math
from typing import Any

import jax
import numpy as np

from edf_jax.distill.checkpoints import WINDOW, Position
from edf_jax.distill.pairs import start_bound
from edf_jax.experts.trajectories import Pair
from edf_jax.matching.iteration import DIVERGED_LOSS
from edf_jax.runs.metrics import MetricsWriter

_log = logging.getLogger(__name__)


class Journal:
    """Writes a row for each iteration, and tells where the run looks wrong.

    Attributes:
        loss: the last matching loss that is known.
        fault: what was wrong with the first iteration whose numbers could not be used.
    """

    def __init__(self, config, metrics: MetricsWriter, position: Position):
        self._config, self._metrics, self._position = config, metrics, position
        self._pending: list[tuple[int, list[Pair], dict[str, jax.Array]]] = []
        self.loss = math.nan
        self.fault: str | None = None

    def expect(self, it: int, used: list[Pair], report: dict[str, jax.Array]) -> None:
        """Takes an iteration's report, which the device may still be computing."""
        self._pending.append((it, used, report))

    def settle(self, behind: int = 0) -> None:
        """Writes the rows of all iterations but the last `behind`."""
        while len(self._pending) > behind:
            it, used, report = self._pending.pop(0)
            row = {name: value.item() for name, value in jax.device_get(report).items()}
            self._metrics.write(
                it,
                "distill",
                **row,
                expert=used[0].expert,
                start_epoch=used[0].start_epoch,
                max_start_epoch=start_bound(self._config, it),
            )
            self.loss = row["loss"]
            self._count(it, row)
            self._tell(it, row, _fault(self._config, it, used, row))

    def _count(self, it: int, row: dict[str, Any]) -> None:
        position = self._position
        position.recent_losses.append(row["loss"])
        position.recent_skips.append(row["skipped"])
        position.skipped += row["skipped"]

    def _tell(self, it: int, row: dict[str, Any], fault: str | None) -> None:
        position, options = self._position, self._config.distill
        self.fault = self.fault or fault
        if fault and it - position.warned_of_loss >= WINDOW:
            _log.warning("%s; nothing moved", fault)
            position.warned_of_loss = it
        window_ends = (it + 1) % WINDOW == 0 or it + 1 == options.iterations
        if window_ends and sum(position.recent_skips) > len(position.recent_skips) / 2:
            _log.warning(
                "iteration %d: %d of the last %d iterations were skipped; median loss %.3f, "
                "distill.threshold %.3f; see 'nearly all iterations are skipped' in docs/faq.md",
                it, sum(position.recent_skips), len(position.recent_skips),
                float(np.nanmedian(position.recent_losses)), options.threshold,
            )  # fmt: skip
        was_positive, position.alpha_is_positive = position.alpha_is_positive, row["alpha"] > 0
        if was_positive and not position.alpha_is_positive:
            _log.warning(
                "iteration %d: the student's rate alpha is %.3g, not positive; lower distill.lr_lr",
                it, row["alpha"],
            )  # fmt: skip


def _fault(config, it: int, used: list[Pair], row: dict[str, Any]) -> str | None:
    """What keeps an iteration's numbers from being used, and where they come from."""
    threshold = config.distill.threshold
    diverged = not row["loss"] <= DIVERGED_LOSS
    if not diverged and (not row["skipped"] or 0 < threshold < row["loss"]):
        return None
    what = "a gradient or step isn't finite"
    if diverged:
        what = f"the matching loss is {row['loss']:.4g}"
    where = "; ".join(f"expert {pair.expert}, start epoch {pair.start_epoch}" for pair in used)
    return f"iteration {it}: {what} ({where})"
