"""The network whose maps say how complex images are: imported, an expert, or trained now."""

from __future__ import annotations

import copy
import pathlib

from edf_jax.data import load_dataset
from edf_jax.data.normalisation import IMAGENET
from edf_jax.distill.cam_network import choose_cam_network
from edf_jax.evaluate.teacher import get_teacher
from edf_jax.experts.train import open_experts
from edf_jax.models.choose import network_for
from edf_jax.models.pretrained import load_cam_network
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training.loop import Prepare
from edf_jax.training.trained import TrainedNetwork

_IMAGENET_SIDE = 224


def choose_judge(config, workdir: pathlib.Path) -> tuple[TrainedNetwork, Prepare, int]:
    """The network that `cam.*` asks for.

    Args:
        config: resolved. `cam.network=auto` is an ImageNet ResNet-18 where `cam.weights` is given,
            else the first expert where there is one, else a network trained now.
        workdir: the run whose experts are meant.

    Returns:
        The network, the function from pixels to its inputs, and the height and width of the images
        that it takes (0: their own).

    Raises:
        UserError: the weights can't be read, the expert is not there, or several are asked for.
    """
    if config.cam.network == "experts":
        raise UserError(
            "cam.network=experts: an image's complexity is said by one network; set "
            "cam.network=expert or trained"
        )
    if config.cam.weights:
        shape = (_IMAGENET_SIDE, _IMAGENET_SIDE, 3)
        network, theta, batch_stats = load_cam_network(config.cam.weights, image_shape=shape)
        imported = TrainedNetwork(network, theta, batch_stats, f"imported {network.name}")
        return imported, IMAGENET.apply, _IMAGENET_SIDE

    with Progress("prepare", unit="image") as bar:
        dataset = load_dataset(config.data, progress=bar.at)
    workdir.mkdir(parents=True, exist_ok=True)
    store = open_experts(config, dataset, workdir)
    decided = copy.deepcopy(config)
    if not store.is_complete(1, {config.experts.epochs}):
        if config.cam.network == "expert":
            raise UserError(
                f"cam.network=expert: there are no experts of this config in {workdir}; train them "
                "with edf_jax.main --stage=experts, set cam.network=trained, or give cam.weights"
            )
        decided.cam.network = "trained"
    network = network_for(config, dataset.info)
    trained = choose_cam_network(
        decided, dataset, network, store, lambda: get_teacher(config, dataset, workdir)
    )
    return trained, dataset.info.normalisation.apply, config.data.resolution
