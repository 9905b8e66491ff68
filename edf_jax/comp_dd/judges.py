"""The network whose maps say how complex images are: imported, an expert, or trained now."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from typing import Any

import jax

from edf_jax.data import load_dataset
from edf_jax.data.normalisation import IMAGENET
from edf_jax.distill.cam_network import choose_cam_network
from edf_jax.evaluate.teacher import get_teacher
from edf_jax.experts.train import open_experts
from edf_jax.models import Network
from edf_jax.models.choose import network_for
from edf_jax.models.pretrained import load_cam_network
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training.loop import Prepare

_IMAGENET_SIDE = 224


@dataclasses.dataclass(frozen=True)
class Judge:
    """A network whose maps say where the discriminative area of an image is.

    Attributes:
        network: the architecture.
        theta: `[P]`.
        batch_stats: {} where it has none.
        prepare: from pixels to its inputs.
        resolution: of the images that it takes.
        name: which it is, for people.
        channels: of the images that it takes.
    """

    network: Network
    theta: jax.Array
    batch_stats: Any
    prepare: Prepare
    resolution: int
    name: str

    @property
    def channels(self) -> int:
        return self.network.image_shape[2]


def choose_judge(config, workdir: pathlib.Path) -> Judge:
    """The network that `cam.*` asks for.

    Args:
        config: resolved. `cam.network=auto` is an ImageNet ResNet-18 where `cam.weights` is given,
            else the first expert where there is one, else a network trained now.
        workdir: the run whose experts are meant.

    Raises:
        UserError: the weights can't be read, or the expert is not there.
    """
    if config.cam.weights:
        return _imported(config)

    with Progress("prepare", unit="image") as bar:
        dataset = load_dataset(config.data, progress=bar.at)
    workdir.mkdir(parents=True, exist_ok=True)
    store = open_experts(config, dataset, workdir)
    there = store.is_complete(1, {config.experts.epochs})
    if config.cam.network == "expert" and not there:
        raise UserError(
            f"cam.network=expert: there are no experts of this config in {workdir}; train them "
            "with edf_jax.main --stage=experts, set cam.network=trained, or give cam.weights"
        )
    decided = copy.deepcopy(config)
    if not there:
        decided.cam.network = "trained"
    network = network_for(config, dataset.info)
    cam = choose_cam_network(
        decided, dataset, network, store, lambda: get_teacher(config, dataset, workdir)
    )
    prepare = dataset.info.normalisation.apply
    return Judge(
        cam.network, cam.theta, cam.batch_stats, prepare, config.data.resolution, cam.name
    )


def _imported(config) -> Judge:
    """An ImageNet ResNet-18, which takes images of 224x224."""

    side = _IMAGENET_SIDE
    network, theta, batch_stats = load_cam_network(config.cam.weights, image_shape=(side, side, 3))
    name = f"imported {network.name}"
    return Judge(network, theta, batch_stats, IMAGENET.apply, side, name)
