"""Expert trajectories: K networks trained on the real data, a snapshot after every epoch.

References:
  Cazenavette et al., MTT (2203.11932), section 3.1; Du et al., FTD (2211.11004); Zhuang et al.,
  GSAM (2203.08065).
"""

from __future__ import annotations

import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.data import Dataset
from edf_jax.experts import difficulty
from edf_jax.experts.find import check_imported, find_store, is_imported, open_to_train
from edf_jax.experts.settings import expert_seed, needed_epochs, part_of, settings, wanted_epochs
from edf_jax.experts.trajectories import DamagedSnapshot, TrajectoryStore, Writer
from edf_jax.methods import curriculum, dsa, family
from edf_jax.models import Network
from edf_jax.models.choose import network_for
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import preemption, processes, randomness, storage
from edf_jax.runtime.progress import Progress
from edf_jax.training import losses, streaming
from edf_jax.training.loop import Gsam, Recipe, TrainState, initial_state, sgd
from edf_jax.training.streaming import place

_log = logging.getLogger(__name__)


def expert_recipe(config, network: Network, prepare: Callable) -> Recipe:
    """How experts are trained (`METHOD` section 1 of the paper's appendix: GSAM and DSA)."""
    options = config.experts
    gsam = None
    if options.optimizer == "gsam":
        gsam = Gsam(options.rho, options.gsam_alpha, options.adaptive)

    def transform(key, images):
        return dsa.dsa(
            key, images, strategy=config.augment.strategy, crop_ratio=options.crop_ratio
        )

    return Recipe(
        network,
        losses.hard_cross_entropy,
        sgd(options.momentum, options.weight_decay),
        transform,
        prepare,
        options.batch,
        gsam,
    )


def open_experts(config, dataset: Dataset, workdir: pathlib.Path) -> TrajectoryStore:
    """The store of a run's experts: its own, or one with the same settings (`expert_stores`)."""
    network = network_for(config, dataset.info)
    return find_store(
        config.experts, settings(config, dataset, network), wanted_epochs(config), workdir
    )


def train_experts(
    config, dataset: Dataset, store: TrajectoryStore, metrics: MetricsWriter
) -> list[float]:
    """Trains the experts that the store lacks, or those of `experts.part`.

    Args:
        config: resolved.
        dataset: the real images.
        store: where snapshots go; what is there already is continued from.
        metrics: gets a row per epoch and group.

    Returns:
        The last test accuracy of each expert, in percent.
    """
    network = network_for(config, dataset.info)
    if is_imported(store):
        return _test_imported(config, dataset, network, store)
    chosen = settings(config, dataset, network)
    processes.from_first_process("experts' settings", lambda: store.check(chosen))
    options, wanted = config.experts, wanted_epochs(config)
    rows = _Rows(store, metrics, options.epochs)
    if store.is_complete(options.num, wanted):
        processes.from_first_process(
            "rows of experts", lambda: rows.mend({group: [] for group in _groups(store, config)})
        )
    else:
        with open_to_train(store, config, chosen):
            _train_missing(config, _Trainer(config, dataset, network, store, chosen), rows)
    # Experts that are trained again have their rows among those of a first time.
    metrics.sort("experts", before=("distill", "evaluate"))
    if options.keep == "needed" and not options.dir:
        processes.from_first_process(
            "epochs to keep", lambda: _drop_epochs(store, _groups(store, config), wanted)
        )
    accuracies: list[float] = []
    for group in _groups(store, config):
        accuracies += store.details(group, options.epochs)["test_accuracy"]
    return accuracies[: options.num]


def _train_missing(config, trainer: _Trainer, rows: _Rows) -> None:
    """Trains the epochs that the store lacks. Needs its lock."""
    store, wanted = trainer.store, wanted_epochs(config)

    def missing() -> list[tuple[int, list[int]]]:
        found = {
            group: store.to_train(group, store.members(group, config.experts.num), wanted)
            for group in _groups(store, config)
        }
        rows.mend(found)
        return list(found.items())

    plan = dict(processes.from_first_process("epochs to train", missing))
    total = len(plan) * config.experts.epochs
    left = sum(len(set(epochs) - {0}) for epochs in plan.values())
    with (
        Progress("experts", total, "epoch", start=total - left) as bar,
        Writer(store) as writer,
    ):
        for group, epochs in plan.items():
            for epoch, details in trainer.train(group, epochs, writer):
                if epoch > 0:
                    row = rows.write(group, epoch, details)
                    bar.update(loss=row["loss"], accuracy=row["test_accuracy"])
                preemption.stop_if_asked()


class _Trainer:
    """Trains groups of experts: `training`'s loop on the real images, a snapshot an epoch."""

    def __init__(
        self,
        config,
        dataset: Dataset,
        network: Network,
        store: TrajectoryStore,
        chosen: Mapping[str, Any],
    ):
        self.store = store
        self._config, self._settings = config, chosen
        normalisation, on_device = dataset.info.normalisation, config.data.on_device
        self._images, prepare = place(dataset.train.images, normalisation, on_device)
        self._test_images, _ = place(dataset.test.images, normalisation, on_device)
        self._labels, self._test_labels = dataset.train.labels, dataset.test.labels
        self._recipe = recipe = expert_recipe(config, network, prepare)
        self._schedule = family.EXPERT_SCHEDULES[config.experts.schedule]
        workers = config.data.workers
        self._epoch = streaming.make_epoch(
            recipe, self._images, self._labels, order=difficulty.shuffled, workers=workers
        )
        self._accuracy = streaming.make_accuracy(network, prepare, workers=workers)
        key = randomness.stream(expert_seed(config), "experts")

        def of_each(function: Callable) -> Callable:
            return jax.jit(jax.vmap(function, in_axes=(0, None)))

        self._first = of_each(
            lambda expert, _: initial_state(recipe, jax.random.fold_in(key, 2 * expert))
        )
        self._keys = of_each(
            lambda expert, epoch: jax.random.fold_in(
                jax.random.fold_in(key, 2 * expert + 1), epoch
            )
        )

    def train(
        self, group: int, epochs: list[int], writer: Writer
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Trains a group and writes the snapshots after some epochs; 0 is before the first.

        Yields:
            Each of `epochs`, and what is told of the snapshot.
        """
        if not epochs:
            return
        members = self.store.members(group, self._config.experts.num)
        experts = group * self.store.group_size + jnp.arange(members)
        states = self._first(experts, None)
        at, loss = 0, jnp.zeros(len(experts))
        for epoch in epochs:
            if epoch > 0:
                if at != epoch - 1:
                    states = _restore(self.store, group, epoch - 1, states)
                keys, shown = self._keys(experts, epoch - 1), self._shown(epoch - 1)
                states, loss = self._epoch(states, keys, self._config.experts.lr, shown)
            at = epoch
            right = self._accuracy(states, self._test_images, self._test_labels)
            details = {
                "test_accuracy": (np.asarray(right) * 100).tolist(),
                "loss": np.asarray(loss).tolist(),
                "settings": self._settings,
                "group_size": self.store.group_size,
            }
            writer.write(group, epoch, *_arrays(states), details)
            yield epoch, details

    def _shown(self, index: int) -> difficulty.Shown:
        """The training images that an epoch shows, counted from 0."""
        share = self._schedule(index)
        if share == curriculum.EVERYTHING:
            return difficulty.Shown(jnp.arange(len(self._labels)), None)
        positions = curriculum.chosen_by(share, self._scores, self._labels)
        pads = not self._recipe.network.has_batch_stats
        return difficulty.shown(positions, len(self._labels), pads=pads)

    @functools.cached_property
    def _scores(self) -> np.ndarray:
        """The training images' difficulty `[N]`, kept in the store."""
        path, options = self.store.folder / "difficulty", self._config.experts
        place = {"settings": self.store.digest}
        try:
            _, found = processes.arrays_from_first_process(
                "difficulty", lambda: (None, storage.load_arrays(path, place=place))
            )
            return found["scores"]
        except storage.DamagedFile:
            _log.info("experts: scoring how difficult images are (%s)", options.difficulty)
        scores = difficulty.mean_scores(
            self._recipe,
            self._images,
            self._labels,
            how=options.difficulty,
            networks=options.difficulty_networks,
            epochs=options.difficulty_epochs,
            rate=options.lr,
            key=randomness.stream(expert_seed(self._config), "difficulty"),
            workers=self._config.data.workers,
        )
        storage.save_arrays(path, {"scores": scores}, place=place)
        return scores


class _Rows:
    """The experts' rows in metrics.jsonl, which are to agree with the snapshots."""

    def __init__(self, store: TrajectoryStore, metrics: MetricsWriter, last: int):
        self._store, self._metrics, self._last = store, metrics, last
        self._written: set[int] = set()

    def write(self, group: int, epoch: int, details: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the row of a group's epoch, unless it is there; returns it."""
        step, row = group * self._last + epoch, _row(group, epoch, details)
        if step not in self._written:
            self._metrics.write(step, "experts", **row)
            self._written.add(step)
        return row

    def mend(self, plan: Mapping[int, list[int]]) -> None:
        """Makes rows and snapshots agree: a kill leaves one more, or one less.

        Args:
            plan: the epochs that are to be trained, by group.
        """
        last = self._last
        steps = [group * last + epoch for group in plan for epoch in range(1, last + 1)]
        planned = {group * last + e for group, epochs in plan.items() for e in epochs if e}
        tail = max((step for step in steps if step not in planned), default=0)
        self._metrics.truncate_after("experts", tail)
        self._written = {row["step"] for row in self._metrics.rows("experts")}
        for group in plan:
            for epoch in self._store.epochs(group):
                step = group * last + epoch
                if epoch and step <= tail and step not in planned:
                    self.write(group, epoch, self._store.details(group, epoch))


def _test_imported(
    config, dataset: Dataset, network: Network, store: TrajectoryStore
) -> list[float]:
    """The last test accuracies of imported experts, once it is clear that they fit."""
    processes.from_first_process(
        "imported experts",
        lambda: check_imported(store, network, config.experts.num, needed_epochs(config)),
    )
    info, on_device = dataset.info, config.data.on_device
    images, prepare = place(dataset.test.images, info.normalisation, on_device)
    accuracy = streaming.make_accuracy(network, prepare, workers=config.data.workers)

    def right(expert: int) -> float:
        theta = jnp.asarray(store.snapshot(expert, config.experts.epochs))
        state = TrainState(theta[None], {}, None)
        return 100 * float(accuracy(state, images, dataset.test.labels)[0])

    return [right(expert) for expert in range(config.experts.num)]


def _groups(store: TrajectoryStore, config) -> range:
    return part_of(config, -(-config.experts.num // store.group_size))


def _row(group: int, epoch: int, details: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.jsonl says of one epoch of one group."""
    right = details["test_accuracy"]
    return {
        "epoch": epoch,
        "group": group,
        "loss": float(np.mean(details["loss"])),
        "test_accuracy": float(np.mean(right)),
        "test_accuracy_std": float(np.std(right)),
    }


def _arrays(states: TrainState) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Snapshots `[G, P]`, and by name whatever else a training continues from."""
    extra = {
        **_named("batch_stats", states.batch_stats),
        **_named("optimiser", states.optimiser),
    }
    return np.asarray(states.theta), extra


def _named(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        prefix + "." + jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in leaves
    }


def named_leaves(prefix: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree of `like`'s structure from arrays named as in a snapshot."""
    leaves = [jnp.asarray(arrays[name]) for name in _named(prefix, like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def expert_after(
    network: Network, store: TrajectoryStore, expert: int, epoch: int
) -> tuple[jax.Array, Any]:
    """An expert's `theta [P]` after an epoch, and its batch-norm statistics; {} without any.

    Raises:
        DamagedSnapshot: the store lacks it, or it isn't what was written.
    """
    theta = jnp.asarray(store.snapshot(expert, epoch))
    if not network.has_batch_stats:
        return theta, {}
    _, like = jax.eval_shape(network.init, jax.random.key(0))
    arrays = store.batch_stats(expert, epoch)
    return theta, named_leaves(
        "batch_stats", like, {f"batch_stats.{name}": array for name, array in arrays.items()}
    )


def _restore(store: TrajectoryStore, group: int, epoch: int, like) -> TrainState:
    theta, extra = store.read_group(group, epoch)
    return TrainState(
        jnp.asarray(theta),
        named_leaves("batch_stats", like.batch_stats, extra),
        named_leaves("optimiser", like.optimiser, extra),
    )


def _drop_epochs(store: TrajectoryStore, groups: range, keep: set[int]) -> None:
    for group in groups:
        for epoch in set(store.epochs(group)) - keep:
            store.remove(group, epoch)


def with_repairs(work: Callable[[], Any], store: TrajectoryStore) -> Any:
    """The result of `work`, which is begun again after a damaged snapshot is taken away.

    It trains what the store lacks, and continues from its own files otherwise.

    Raises:
        DamagedSnapshot: the same one is damaged again.
    """
    removed: set[tuple[int, int]] = set()
    while True:
        try:
            return work()
        except DamagedSnapshot as error:
            place = (error.group, error.epoch)
            if place in removed:
                raise
            removed.add(place)
            _log.warning("%s: trained again", error)
            with store.lock():
                store.remove(*place)
