"""Expert trajectories: K networks trained on the real data, a snapshot after every epoch.

References:
  Cazenavette et al., MTT (2203.11932), section 3.1; Du et al., FTD (2211.11004); Zhuang et al.,
  GSAM (2203.08065).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax import augment, devices, losses, randomness, storage, training
from edf_jax.convolution import choose_convolution
from edf_jax.data import Dataset, Normalisation
from edf_jax.metrics import MetricsWriter
from edf_jax.models import Network, build_network
from edf_jax.progress import Progress
from edf_jax.trajectories import TrajectoryStore, Writer

# What decides an expert's numbers; a store made with other values is another store.
_GROUPS = ("data.", "model.", "experts.")
_FREE = ("data.workers", "data.cache_dir", "data.path", "experts.dir", "experts.num", "experts.keep")


def network_for(config, info, name: str | None = None) -> Network:
    """The network that a config names, for a dataset's images and classes.

    Args:
        config: resolved.
        info: the dataset's `DatasetInfo`.
        name: another network from the registry; `model.*` then doesn't apply.

    Raises:
        UserError: the name or an option isn't known, or doesn't fit the images.
    """
    model = config.model
    options = {}
    if name is None:
        options = {
            key: model[key] or None for key in ("width", "depth", "norm", "activation", "pooling")
        }
    return build_network(
        name or model.name,
        num_classes=info.num_classes,
        image_shape=info.image_shape,
        convolution=choose_convolution(model.convolution),
        dtype=devices.compute_dtype(config.precision),
        **options,
    )


def on_device(images: np.ndarray, normalisation: Normalisation) -> tuple[jax.Array, Callable]:
    """Images as they stay on the device, and the function to network inputs.

    uint8 where normalising is cheap; whitened float32 with ZCA, whose matrix is too large to
    apply to every batch.
    """
    if normalisation.zca is not None:
        return jnp.asarray(normalisation.apply(np.asarray(images))), lambda x: x
    return jnp.asarray(images), normalisation.apply


def settings(config, dataset: Dataset, network: Network) -> dict[str, Any]:
    """All that decides the experts' numbers."""
    from edf_jax.config import flatten

    chosen = {
        name: value
        for name, value in flatten(config).items()
        if name.startswith(_GROUPS) and name not in _FREE
    }
    return {
        **chosen,
        "seed": config.seed,
        "precision": config.precision,
        "augment.strategy": config.augment.strategy,
        "dataset": dataset.info.fingerprint,
        "num_params": network.num_params,
    }


def needed_epochs(config) -> set[int]:
    """The epochs that distillation can ask for, and the last."""
    starts = range(config.distill.min_start_epoch, config.distill.max_start_epoch)
    targets = (start + config.distill.expert_epochs for start in starts)
    return {*starts, *targets, config.experts.epochs}


def expert_recipe(config, network: Network, prepare: Callable) -> training.Recipe:
    """How experts are trained (`METHOD` section 1 of the paper's appendix: GSAM and DSA)."""
    options = config.experts
    gsam = None
    if options.optimizer == "gsam":
        gsam = training.Gsam(options.rho, options.gsam_alpha, options.adaptive)

    def transform(key, images):
        return augment.dsa(
            key, images, strategy=config.augment.strategy, crop_ratio=options.crop_ratio
        )

    return training.Recipe(
        network,
        losses.hard_cross_entropy,
        training.sgd(options.momentum, options.weight_decay),
        transform,
        prepare,
        options.batch,
        gsam,
    )


def train_experts(
    config, dataset: Dataset, store: TrajectoryStore, metrics: MetricsWriter
) -> list[float]:
    """Trains the experts that the store lacks.

    Args:
        config: resolved.
        dataset: the real images.
        store: where snapshots go; what is there already is continued from.
        metrics: gets a row per epoch and group.

    Returns:
        The last test accuracy of each expert, in percent.
    """
    network = network_for(config, dataset.info)
    group_size = config.experts.group or min(config.experts.num, 5)
    wanted = settings(config, dataset, network)
    _open_store(store, wanted, config.experts.num, group_size)
    group_size = store.info()["group_size"]
    images, prepare = on_device(dataset.train.images, dataset.info.normalisation)
    test_images, _ = on_device(dataset.test.images, dataset.info.normalisation)
    labels, test_labels = jnp.asarray(dataset.train.labels), jnp.asarray(dataset.test.labels)
    recipe = expert_recipe(config, network, prepare)
    key = randomness.stream(config.seed, "experts")
    last = config.experts.epochs

    def first(expert):
        return training.initial_state(recipe, jax.random.fold_in(key, 2 * expert))

    def epoch(state, expert, index, images, labels):
        epochs = training.Epochs(index[None], jnp.full(1, config.experts.lr), jnp.zeros(1, bool))
        state, loss = training.train_epochs(
            recipe, state, images, labels, epochs, jax.random.fold_in(key, 2 * expert + 1)
        )
        return state, loss[0]

    @jax.jit
    def train(states, experts, index, images, labels):
        return training.for_each_network(
            lambda state, expert: epoch(state, expert, index, images, labels)
        )(states, experts)

    @jax.jit
    def test(states, images, labels):
        return training.for_each_network(
            lambda state: training.accuracy(
                network, state.theta, state.batch_stats, images, labels, prepare
            )
        )(states)

    accuracies: list[float] = []
    groups = -(-config.experts.num // group_size)
    done = {group: _last_good_epoch(store, group) for group in range(groups)}
    total = groups * last
    with (
        Progress(
            "experts", total, "epoch", start=sum(max(epoch or 0, 0) for epoch in done.values())
        ) as bar,
        Writer(store) as writer,
    ):
        for group in range(groups):
            if done[group] == last:
                accuracies += store.details(group, last)["test_accuracy"]
                continue
            experts = jnp.arange(group * group_size, (group + 1) * group_size)
            experts = experts[: config.experts.num - group * group_size]
            states = jax.jit(jax.vmap(first))(experts)
            start = 0
            if done[group] is None:
                right = np.asarray(test(states, test_images, test_labels)) * 100
                _write(writer, group, 0, states, right)
            else:
                start = done[group]
                states = _restore(store, group, start, states)
            for index in range(start + 1, last + 1):
                states, loss = train(states, experts, jnp.int32(index - 1), images, labels)
                right = np.asarray(test(states, test_images, test_labels)) * 100
                _write(writer, group, index, states, right)
                mean_loss, mean_right = float(jnp.mean(loss)), float(right.mean())
                metrics.write(
                    group * last + index,
                    "experts",
                    epoch=index,
                    group=group,
                    loss=mean_loss,
                    test_accuracy=mean_right,
                    test_accuracy_std=float(right.std()),
                )
                bar.update(loss=mean_loss, accuracy=mean_right)
            accuracies += [float(value) for value in right]
    if config.experts.keep == "needed":
        _drop_epochs(store, groups, needed_epochs(config))
    return accuracies


def _open_store(
    store: TrajectoryStore, wanted: Mapping[str, Any], num_experts: int, group_size: int
) -> None:
    from edf_jax.errors import UserError

    try:
        info = store.info()
    except storage.DamagedFile:
        store.create(
            {"settings": wanted, "num_experts": num_experts, "group_size": group_size}
        )
        return
    for name, value in wanted.items():
        if info["settings"].get(name) != value:
            raise UserError(
                f"{store.folder} holds experts trained with {name}={info['settings'].get(name)!r}, "
                f"not {value!r}: give another --workdir or experts.dir"
            )
    if info["num_experts"] < num_experts:
        store.create({**info, "num_experts": num_experts})


def _write(writer: Writer, group: int, epoch: int, states, right: np.ndarray) -> None:
    theta, extra = _arrays(states)
    writer.write(group, epoch, theta, extra, {"test_accuracy": [float(x) for x in right]})


def _arrays(states: training.TrainState) -> tuple[np.ndarray, dict[str, np.ndarray]]:
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


def _restore(store: TrajectoryStore, group: int, epoch: int, like) -> training.TrainState:
    theta, extra = store.read_group(group, epoch)
    return training.TrainState(
        jnp.asarray(theta),
        named_leaves("batch_stats", like.batch_stats, extra),
        named_leaves("optimiser", like.optimiser, extra),
    )


def _last_good_epoch(store: TrajectoryStore, group: int) -> int | None:
    """The last epoch that can be read; damaged ones after it are removed with a warning."""
    for epoch in reversed(store.epochs(group)):
        try:
            store.read_group(group, epoch)
            return epoch
        except storage.DamagedFile as error:
            logging.warning("%s: trained again from the epoch before", error)
            shutil.rmtree(store.path(group, epoch))
    return None


def _drop_epochs(store: TrajectoryStore, groups: int, keep: set[int]) -> None:
    for group in range(groups):
        for epoch in set(store.epochs(group)) - keep:
            shutil.rmtree(store.path(group, epoch))
