"""Which expert each iteration follows, from which epoch on, and the snapshots that it needs."""

from __future__ import annotations

import itertools
import time

import jax
import numpy as np

from edf_jax.experts.trajectories import Pair, TrajectoryStore
from edf_jax.matching.placement import Placement
from edf_jax.methods import family
from edf_jax.models import Network
from edf_jax.runtime import processes, randomness
from edf_jax.training import parallel


def start_bound(config, iteration: int) -> int:
    """The bound that an iteration's start epochs stay below."""
    options = config.distill
    return family.START_BOUNDS[options.start_schedule](options, iteration)


def choices(config, iteration: int) -> list[tuple[int, int]]:
    """The `(expert, start epoch)` of each trajectory that an iteration matches.

    Experts come in shuffled order without replacement, start epochs uniformly from those allowed.
    All of it follows from the seed and the iteration, so a resumed run chooses the same.
    """
    options = config.distill
    upper = start_bound(config, iteration)
    chosen = []
    for draw in range(iteration * options.trajectories, (iteration + 1) * options.trajectories):
        turn, place = divmod(draw, config.experts.num)
        order = randomness.host_stream(config.seed, "expert order", turn)
        expert = int(order.permutation(config.experts.num)[place])
        start = randomness.host_stream(config.seed, "start epoch", draw)
        chosen.append((expert, int(start.integers(options.min_start_epoch, upper))))
    return chosen


class Pairs:
    """The experts' snapshots that iterations start from and aim at.

    Attributes:
        waited: seconds that iterations waited for them.
    """

    def __init__(
        self,
        config,
        network: Network,
        store: TrajectoryStore,
        first: int,
        placement: Placement,
    ):
        self._config, self._mesh = config, placement.mesh()
        self._nothing = np.zeros(network.num_params, np.float32)
        wanted = (
            choice
            for iteration in range(first, config.distill.iterations)
            for choice in choices(config, iteration)
        )
        self._pairs = store.pairs(wanted, config.distill.expert_epochs)
        self.waited = 0.0

    def of_iteration(self, it: int) -> tuple[list[Pair], jax.Array, jax.Array]:
        """Its pairs, and their starts and targets `[T, P]` on the devices.

        Of processes that run together only the first reads the numbers.
        """
        asked_at = time.monotonic()
        used: list[Pair] = []
        count = self._config.distill.trajectories
        processes.from_first_process(
            "pairs", lambda: used.extend(itertools.islice(self._pairs, count))
        )
        self.waited += time.monotonic() - asked_at
        if not used:
            used = [Pair(*c, self._nothing, self._nothing) for c in choices(self._config, it)]
        starts = np.stack([pair.start for pair in used])
        targets = np.stack([pair.target for pair in used])
        return used, *parallel.from_first((starts, targets), self._mesh)
