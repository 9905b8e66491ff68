"""The plain protocol: fresh networks trained on a small set, tested on the real test images.

SGD at a given rate with momentum and weight decay, DSA, soft cross-entropy; half-way the rate
falls tenfold and the momentum starts anew.

References:
  EDF's and DATM's official evaluation (`METHOD` section 4 of the project's notes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from edf_jax import augment, losses, training
from edf_jax.models import Network

_EPOCHS_PER_CALL = 50


@dataclasses.dataclass(frozen=True)
class Accuracies:
    """Test accuracies of several networks, in percent.

    Attributes:
        values: one a network.
        num_images: how many images they were tested on.
    """

    values: tuple[float, ...]
    num_images: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over networks, ddof 0 as the field reports it."""
        return float(np.std(self.values))


def schedule(epochs: int, rate: jax.Array) -> training.Epochs:
    """The `epochs + 1` epochs of the recipe.

    Full rate up to and including the zero-based epoch `epochs // 2 + 1`, a tenth after it, where
    momentum restarts.
    """
    index = jnp.arange(epochs + 1, dtype=jnp.int32)
    drop = epochs // 2 + 2
    rates = rate * jnp.where(index < drop, 1.0, 0.1)
    return training.Epochs(index, rates, index == drop)


class Evaluator:
    """Trains networks from scratch on sets of one shape; compiles once for all of them."""

    def __init__(
        self,
        network: Network,
        test_images: jax.Array,
        test_labels: jax.Array,
        prepare: Callable,
        *,
        epochs: int,
        batch: int = 128,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        strategy: str = augment.FULL_STRATEGY,
        crop_ratio: float = 0.25,
    ):
        """Prepares the recipe.

        Args:
            network: the architecture.
            test_images: `[N, H, W, C]` as stored.
            test_labels: `[N]`.
            prepare: from stored test images to inputs.
            epochs: E_eval; one more is run.
            batch: training batch size.
            momentum: of SGD.
            weight_decay: of SGD.
            strategy: DSA's ops.
            crop_ratio: DSA's largest shift over the side.
        """
        self.network = network
        self.epochs = epochs
        self._test = (test_images, test_labels)
        self._prepare = prepare
        self._recipe = training.Recipe(
            network,
            losses.soft_cross_entropy,
            training.sgd(momentum, weight_decay),
            lambda key, x: augment.dsa(key, x, strategy=strategy, crop_ratio=crop_ratio),
            lambda images: images,
            batch,
        )
        self._train = jax.jit(self._train_stretch)
        self._test_all = jax.jit(self._accuracies)
        self._initial = jax.jit(jax.vmap(lambda key: training.initial_state(self._recipe, key)))

    def _train_stretch(self, states, keys, rates, start, stop, images, labels):
        def one(state, key, rate):
            epochs = schedule(self.epochs, rate)

            def body(index, carry):
                state, _ = carry
                this = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, index, 1), epochs)
                state, losses = training.train_epochs(
                    self._recipe, state, images, labels, this, key
                )
                return state, losses[0]

            # Bounds that are arguments let one program serve stretches of any length.
            return lax.fori_loop(start, stop, body, (state, jnp.zeros((), images.dtype)))

        return training.for_each_network(one)(states, keys, rates)

    def _accuracies(self, states, images, labels):
        def one(state):
            return training.accuracy(
                self.network, state.theta, state.batch_stats, images, labels, self._prepare
            )

        return training.for_each_network(one)(states)

    def train(
        self,
        images: jax.Array,
        labels: jax.Array,
        rates: jax.Array,
        key: jax.Array,
        *,
        on_epochs: Callable[[int, float], None] | None = None,
    ) -> training.TrainState:
        """Networks trained from scratch, one for each rate.

        Args:
            images: `[n, H, W, C]`, normalised.
            labels: `[n, C]` logits.
            rates: `[num]`.
            key: network i is initialised and trained from `fold_in(key, i)`.
            on_epochs: told how many epochs were done and the mean loss of the last.

        Returns:
            The states, stacked.
        """
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(rates)))
        states = self._initial(keys)
        images, labels, rates = (jnp.asarray(x, jnp.float32) for x in (images, labels, rates))
        total = self.epochs + 1
        for start in range(0, total, _EPOCHS_PER_CALL):
            stop = min(start + _EPOCHS_PER_CALL, total)
            states, loss = self._train(
                states, keys, rates, jnp.int32(start), jnp.int32(stop), images, labels
            )
            if on_epochs is not None:
                on_epochs(stop - start, float(jnp.mean(loss)))
        return states

    def __call__(self, images, labels, rate, key, *, num: int, on_epochs=None) -> Accuracies:
        """Test accuracies of `num` networks trained from scratch; arguments as in `train`."""
        states = self.train(images, labels, jnp.full(num, rate), key, on_epochs=on_epochs)
        return self.test(states)

    def test(
        self,
        states: training.TrainState,
        images: jax.Array | None = None,
        labels: jax.Array | None = None,
    ) -> Accuracies:
        """Accuracies of trained networks, on the test images unless others are given."""
        if images is None or labels is None:
            images, labels = self._test
        right = np.asarray(self._test_all(states, images, labels)) * 100
        return Accuracies(tuple(float(x) for x in right), len(labels))
