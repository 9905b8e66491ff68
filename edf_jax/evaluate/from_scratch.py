"""Many networks trained from scratch at once by one recipe, and tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from edf_jax.models import Network
from edf_jax.runs.statistics import Accuracies
from edf_jax.runtime import preemption
from edf_jax.training import streaming
from edf_jax.training.loop import (
    Epochs,
    Prepare,
    Recipe,
    TrainState,
    View,
    for_each_network,
    initial_state,
    train_epochs,
)

_EPOCHS_PER_CALL = 50

# (epochs done, mean loss of the last)
OnEpochs = Callable[[int, float], None]


class RealTestData(NamedTuple):
    """Real test images, and how networks take them.

    Attributes:
        images: `[N, H, W, C]` as stored.
        labels: `[N]`.
        prepare: from stored images to inputs.
    """

    images: streaming.Images
    labels: jax.Array
    prepare: Prepare


class FromScratch:
    """Trains networks from scratch on sets of one shape; compiles once for all of them.

    Args:
        network: the architecture.
        make_recipe: of `context`, as the compiled program sees it.
        make_epochs: of the rate; the schedule of a training.
        total: how many epochs that has.
        test: what they are tested on.
        context: arrays that the recipe computes with.
        view: as in `training.train_epochs`.
        checks: zero-based epochs after which the networks are tested, the last among them; a
            network's accuracy is then the best of them. Empty is after the last alone.
    """

    def __init__(
        self,
        network: Network,
        make_recipe: Callable[[Any], Recipe],
        make_epochs: Callable[[jax.Array], Epochs],
        total: int,
        test: RealTestData,
        *,
        context: Any = None,
        view: View | None = None,
        checks: Sequence[int] = (),
    ):
        self.network = network
        self.total = total
        self._make_recipe, self._make_epochs = make_recipe, make_epochs
        self._test = test
        self._context = context
        self._view = view
        self._checks = tuple(checks)
        self._train = jax.jit(self._train_stretch)
        self._accuracy = streaming.make_accuracy(network, test.prepare)
        self._initial = jax.jit(self._initial_states)

    def _initial_states(self, keys, context):
        recipe = self._make_recipe(context)
        return jax.vmap(lambda key: initial_state(recipe, key))(keys)

    def _train_stretch(self, states, keys, rates, start, stop, images, targets, context):
        recipe = self._make_recipe(context)

        def one(state, key, rate):
            epochs = self._make_epochs(rate)

            def body(index, carry):
                state, _ = carry
                this = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, index, 1), epochs)
                state, losses = train_epochs(
                    recipe, state, images, targets, this, key, view=self._view
                )
                return state, losses[0]

            # Bounds that are arguments let one program serve stretches of any length.
            return lax.fori_loop(start, stop, body, (state, jnp.zeros((), images.dtype)))

        return for_each_network(one)(states, keys, rates)

    def train(
        self,
        images: jax.Array,
        targets: Any,
        rates: jax.Array,
        key: jax.Array,
        *,
        on_epochs: OnEpochs | None = None,
        after: Callable[[int, TrainState], None] | None = None,
    ) -> TrainState:
        """Networks trained from scratch, one for each rate.

        Args:
            images: `[n, H, W, C]`, normalised.
            targets: of the images, `[n, ...]`; or what the view takes.
            rates: `[num]`.
            key: network i is initialised and trained from `fold_in(key, i)`.
            on_epochs: told how many epochs were done and the mean loss of the last.
            after: told the states after each epoch of `checks`.

        Returns:
            The states, stacked.
        """
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(rates)))
        states = self._initial(keys, self._context)
        images, rates = jnp.asarray(images, jnp.float32), jnp.asarray(rates, jnp.float32)
        targets = jax.tree.map(jnp.asarray, targets)
        stops = {*range(_EPOCHS_PER_CALL, self.total, _EPOCHS_PER_CALL), self.total}
        if after is not None:
            stops |= {check + 1 for check in self._checks}
        start = 0
        for stop in sorted(stops):
            states, loss = self._train(
                states, keys, rates, np.int32(start), np.int32(stop), images, targets, self._context
            )
            if on_epochs is not None:
                on_epochs(stop - start, float(jnp.mean(loss)))
            if after is not None and stop - 1 in self._checks:
                after(stop - 1, states)
            preemption.stop_if_asked()
            start = stop
        return states

    def __call__(
        self, images, targets, rate, key, *, num: int, on_epochs: OnEpochs | None = None
    ) -> Accuracies:
        """Test accuracies of `num` networks trained from scratch; arguments as in `train`."""
        found: list[Accuracies] = []
        states = self.train(
            images,
            targets,
            jnp.full(num, rate),
            key,
            on_epochs=on_epochs,
            after=(lambda _, states: found.append(self.test(states))) if self._checks else None,
        )
        last = self.test(states)
        if not found:
            return last
        best = np.max([accuracies.values for accuracies in found], axis=0)
        return Accuracies(tuple(float(x) for x in best), last.num_images, last.values)

    def test(
        self,
        states: TrainState,
        images: streaming.Images | None = None,
        labels: jax.Array | None = None,
    ) -> Accuracies:
        """Accuracies of trained networks, on the test images unless others are given."""
        if images is None or labels is None:
            images, labels, _ = self._test
        right = np.asarray(self._accuracy(states, images, labels)) * 100
        return Accuracies(tuple(float(x) for x in right), len(labels))
