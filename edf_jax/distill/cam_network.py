"""Which network the class activation maps are asked of."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from edf_jax.data import Dataset, DatasetInfo, DatasetPlan
from edf_jax.experts.train import expert_after
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models import Network
from edf_jax.models.pretrained import IMAGENET_CLASSES, load_cam_network
from edf_jax.training.trained import TrainedNetwork


def import_cam_network(config, info: DatasetInfo | DatasetPlan) -> TrainedNetwork:
    """The network of `cam.weights`: of our classes, or of ImageNet's for a part of it.

    Of ImageNet's 1000 it is asked for the images' own, or as EDF's official code does
    (`cam.classes=official`) for the label itself, which is another class.

    Raises:
        UserError: the file can't be read, or is of another network.
    """
    of_imagenet = info.imagenet_indices is not None
    imported, theta, batch_stats = load_cam_network(
        config.cam.weights,
        image_shape=info.image_shape,
        num_classes={info.num_classes, *([IMAGENET_CLASSES] if of_imagenet else [])},
    )
    name, indices = f"imported {imported.name}", None
    if imported.num_classes != info.num_classes:
        if config.cam.classes == "own":
            indices = info.imagenet_indices
        else:
            name += f", asked for classes 0 to {info.num_classes - 1}"
    return TrainedNetwork(imported, theta, batch_stats, name, indices)


def choose_cam_network(
    config,
    dataset: Dataset,
    network: Network,
    store: TrajectoryStore,
    teacher: Callable[[], TrainedNetwork],
) -> TrainedNetwork:
    """The network whose activation maps weigh pixel gradients and are shown.

    Imported weights where `cam.weights` is given, the teacher where `cam.network` is `trained`, the
    last snapshots of all experts where it is `experts`, else that of the first.
    """
    if config.cam.weights:
        return import_cam_network(config, dataset.info)
    if config.cam.network == "trained":
        return teacher()
    last = config.experts.epochs
    if config.cam.network == "experts":
        count = config.experts.num
        snapshots = [expert_after(network, store, expert, last) for expert in range(count)]
        theta, batch_stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *snapshots)
        name = f"all {count} experts ({network.name}) after epoch {last}, averaged"
        return TrainedNetwork(network, theta, batch_stats, name)
    name = f"the first expert ({network.name}) after epoch {last}"
    return TrainedNetwork(network, *expert_after(network, store, 0, last), name)
