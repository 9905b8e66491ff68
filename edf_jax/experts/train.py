"""Expert trajectories: K networks trained on the real data, a snapshot after every epoch.

References:
  Cazenavette et al., MTT (2203.11932), section 3.1; Du et al., FTD (2211.11004); Zhuang et al.,
  GSAM (2203.08065).
"""

from __future__ import annotations

import functools
import logging
import pathlib
from collections.abc import Callable, Mapping
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
    processes.shared("experts' settings", lambda: store.check(chosen))
    data, workers = config.data, config.data.workers
    images, prepare = place(dataset.train.images, dataset.info.normalisation, data.on_device)
    test_images, _ = place(dataset.test.images, dataset.info.normalisation, data.on_device)
    labels, test_labels = dataset.train.labels, dataset.test.labels
    recipe = expert_recipe(config, network, prepare)
    key = randomness.stream(expert_seed(config), "experts")
    last = config.experts.epochs
    schedule = family.EXPERT_SCHEDULES[config.experts.schedule]
    train = streaming.make_epoch(
        recipe, images, labels, order=difficulty.shuffled, workers=workers
    )
    accuracy = streaming.make_accuracy(network, prepare, workers=workers)

    @jax.jit
    def first(experts):
        return jax.vmap(
            lambda expert: initial_state(recipe, jax.random.fold_in(key, 2 * expert))
        )(experts)

    @jax.jit
    def epoch_keys(experts, index):
        return jax.vmap(
            lambda expert: jax.random.fold_in(jax.random.fold_in(key, 2 * expert + 1), index)
        )(experts)

    def show(index: int) -> difficulty.Shown:
        share = schedule(index)
        if share == curriculum.EVERYTHING:
            return difficulty.Shown(jnp.arange(len(labels)), None)
        positions = curriculum.chosen_by(share, scores(), dataset.train.labels)
        return difficulty.shown(positions, len(labels), pads=not network.has_batch_stats)

    @functools.cache
    def scores() -> np.ndarray:
        return _difficulty(config, recipe, images, labels, store)

    def train_group(group: int, epochs: list[int], writer: Writer, on_row: Callable) -> None:
        experts = group * store.group_size + jnp.arange(store.members(group, config.experts.num))
        states = first(experts)
        at, loss = 0, jnp.zeros(len(experts))
        for index in epochs:
            if index > 0:
                if at != index - 1:
                    states = _restore(store, group, index - 1, states)
                keys = epoch_keys(experts, index - 1)
                states, loss = train(states, keys, config.experts.lr, show(index - 1))
            at = index
            right = np.asarray(accuracy(states, test_images, test_labels)) * 100
            details = {
                "test_accuracy": right.tolist(),
                "loss": np.asarray(loss).tolist(),
                "settings": chosen,
                "group_size": store.group_size,
            }
            writer.write(group, index, *_arrays(states), details)
            if index > 0:
                on_row(group * last + index, _row(group, index, details))
            preemption.stop_if_asked()

    wanted = wanted_epochs(config)
    if store.is_complete(config.experts.num, wanted):

        def mend() -> None:
            _mend_rows(store, metrics, dict.fromkeys(_groups(store, config), []), last)

        processes.shared("rows of experts", mend)
    else:
        written: set[int] = set()

        def to_train() -> list[tuple[int, list[int]]]:
            members = functools.partial(store.members, num_experts=config.experts.num)
            plan = {
                group: store.to_train(group, members(group), wanted)
                for group in _groups(store, config)
            }
            written.update(_mend_rows(store, metrics, plan, last))
            return list(plan.items())

        with open_to_train(store, config, chosen):
            plan = dict(processes.shared("epochs to train", to_train))
            total, left = len(plan) * last, sum(len(set(epochs) - {0}) for epochs in plan.values())
            with (
                Progress("experts", total, "epoch", start=total - left) as bar,
                Writer(store) as writer,
            ):

                def on_row(step: int, row: dict[str, Any]) -> None:
                    if step not in written:
                        metrics.write(step, "experts", **row)
                    bar.update(loss=row["loss"], accuracy=row["test_accuracy"])

                for group, epochs in plan.items():
                    if epochs:
                        train_group(group, epochs, writer, on_row)
    # Experts that are trained again have their rows among those of a first time.
    metrics.sort("experts", before=("distill", "evaluate"))
    if config.experts.keep == "needed" and not config.experts.dir:
        processes.shared(
            "epochs to keep", lambda: _drop_epochs(store, _groups(store, config), wanted)
        )
    accuracies: list[float] = []
    for group in _groups(store, config):
        accuracies += store.details(group, last)["test_accuracy"]
    return accuracies[: config.experts.num]


def _test_imported(
    config, dataset: Dataset, network: Network, store: TrajectoryStore
) -> list[float]:
    """The last test accuracies of imported experts, once it is clear that they fit."""
    processes.shared(
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


def _difficulty(
    config,
    recipe: Recipe,
    images: streaming.Images,
    labels: np.ndarray,
    store: TrajectoryStore,
) -> np.ndarray:
    """The training images' difficulty `[N]`, kept in the store."""
    path, options = store.folder / "difficulty", config.experts
    place = {"settings": store.digest}
    try:
        _, found = processes.shared_arrays(
            "difficulty", lambda: (None, storage.load_arrays(path, place=place))
        )
        return found["scores"]
    except storage.DamagedFile:
        _log.info("experts: scoring how difficult images are (%s)", options.difficulty)
    scores = difficulty.mean_scores(
        recipe,
        images,
        labels,
        how=options.difficulty,
        networks=options.difficulty_networks,
        epochs=options.difficulty_epochs,
        rate=options.lr,
        key=randomness.stream(expert_seed(config), "difficulty"),
        workers=config.data.workers,
    )
    storage.save_arrays(path, {"scores": scores}, place=place)
    return scores


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


def _mend_rows(
    store: TrajectoryStore, metrics: MetricsWriter, plan: Mapping[int, list[int]], last: int
) -> set[int]:
    """Makes the rows agree with the snapshots: a kill leaves one more, or one less.

    Returns:
        The steps that have a row.
    """
    steps = [group * last + epoch for group in plan for epoch in range(1, last + 1)]
    planned = {group * last + epoch for group, epochs in plan.items() for epoch in epochs if epoch}
    tail = max((step for step in steps if step not in planned), default=0)
    metrics.truncate_after("experts", tail)
    written = {row["step"] for row in metrics.rows("experts")}
    for group in plan:
        for epoch in store.epochs(group):
            step = group * last + epoch
            if epoch and step <= tail and step not in written | planned:
                metrics.write(step, "experts", **_row(group, epoch, store.details(group, epoch)))
                written.add(step)
    return written


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
