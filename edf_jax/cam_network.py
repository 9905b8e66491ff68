"""Which network the class activation maps are asked of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp

from edf_jax.data import Dataset, DatasetInfo, DatasetPlan
from edf_jax.experts import expert_after
from edf_jax.iteration import CamNetwork
from edf_jax.models import Network
from edf_jax.trajectories import TrajectoryStore

if TYPE_CHECKING:
    from edf_jax.evaluate.teacher import Teacher


def import_cam_network(config, info: DatasetInfo | DatasetPlan) -> CamNetwork:
    """The network of `cam.weights`: of our classes, or of ImageNet's for a part of it.

    Raises:
        UserError: the file can't be read, or is of another network.
    """
    from edf_jax.models.pretrained import IMAGENET_CLASSES, load_cam_network

    of_imagenet = info.imagenet_indices is not None
    imported, theta, batch_stats = load_cam_network(
        config.cam.weights,
        image_shape=info.image_shape,
        num_classes={info.num_classes, *([IMAGENET_CLASSES] if of_imagenet else [])},
    )
    own = jnp.arange(info.num_classes)
    if imported.num_classes != info.num_classes:
        own = jnp.asarray(info.imagenet_indices)
    return CamNetwork(imported, theta, batch_stats, own, f"imported {imported.name}")


def choose_cam_network(
    config,
    dataset: Dataset,
    network: Network,
    store: TrajectoryStore,
    teacher: Callable[[], Teacher],
) -> CamNetwork:
    """The network whose activation maps weigh pixel gradients and are shown.

    Imported weights where `cam.weights` is given, the teacher where `cam.network` is `trained`,
    else the first expert's last snapshot.
    """
    if config.cam.weights:
        return import_cam_network(config, dataset.info)
    own = jnp.arange(dataset.info.num_classes)
    if config.cam.network == "trained":
        found = teacher()
        if found.class_indices is not None:
            own = jnp.asarray(found.class_indices)
        return CamNetwork(found.network, found.theta, found.batch_stats, own, found.name)
    last = config.experts.epochs
    name = f"the first expert ({network.name}) after epoch {last}"
    return CamNetwork(network, *expert_after(network, store, 0, last), own, name)
