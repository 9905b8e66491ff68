"""Do class activation maps find the object? Measured by what another network makes of it.

    python -m experiments.maps --images=FOLDER --csv=docs/results/maps.csv

FOLDER holds `imagenette-128` and `imagewoof-128` (any folders of train|val/<WordNet id>/* of those
classes); `--sets=digits`, the built-in cluttered digits, needs none. Every row, a method's maps of
one choice of networks on one data set, is added to the file when it is there, and not made again.

Of 200 held-out training images the pixels are taken away in the order of the map, the highest
first, and put the mean colour in their place (deletion); or they are put into the blurred image
(insertion). The score is the area under the curve of the probability of the true class: a map that
finds the object has a low deletion and a high insertion. The judge made none
of the maps: a ConvNet with batch norm and max pooling, where the experts have instance norm and
average pooling. On the digits, whose places are known, `on_object` is the share of the map's
highest pixels, as many as the digit covers, that lie on it. Controls: pixels in random order, and
from the centre outwards.

References:
  Petsiuk et al., RISE (1806.07421), section 4.2: deletion and insertion.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from edf_jax.config.resolve import default_config, resolve
from edf_jax.data import Dataset, load_dataset
from edf_jax.distill.cam_network import choose_cam_network
from edf_jax.evaluate.teacher import get_teacher
from edf_jax.experts.train import open_experts, train_experts
from edf_jax.matching.iteration import Learnable
from edf_jax.matching.pixel_weight import make_weight
from edf_jax.methods import gradcam
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.models.choose import network_for
from edf_jax.runs import pictures
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import console, devices, storage
from edf_jax.runtime.errors import UserError
from edf_jax.training.trained import TrainedNetwork
from experiments import real_scenes, rows
from experiments.scene_maps import digit_opacity

PER_CLASS = 20
STEPS = 10
CONTROLS = ("random order", "centre first")
_COMMON = {
    "method": "edf",
    "data.held_out": 0.1,
    "experts.num": 3,
    "teacher.network": "ResNet18BN",
    "teacher.width": 16,
}
# What makes a network learn in few epochs.
_QUICK = {"teacher.batch": 64, "teacher.smallest_crop": 0.5}
_JUDGE = {**_QUICK, "teacher.network": "ConvNetBNMP", "teacher.epochs": 8}
_DIGITS = {
    "data.resolution": 24,
    "data.difficulty": 0.6,
    "data.composites": 4,
    "data.test_composites": 4,
    "model.name": "ConvNet",
    "model.width": 16,
    "experts.epochs": 24,
    "experts.batch": 256,
    "experts.lr": 0.2,
    "teacher.epochs": 12,
    "distill.max_start_epoch": 10,
    "distill.current_max_start_epoch": 2,
}
_REAL = {**real_scenes.BASE, "data.resolution": 32, **_QUICK, "teacher.epochs": 6}
SETS: dict[str, dict[str, Any]] = {
    "digits": _DIGITS,
    "imagenette": {**_REAL, "data.subset": "imagenette"},
    "imagewoof": {**_REAL, "data.subset": "imagewoof"},
}
# `cam.network`, and what a row calls it.
NETWORKS = {
    "expert": "an expert",
    "experts": "3 experts, averaged",
    "trained": "a ResNet-18",
}


def pixel_order(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions `[n, H * W]` of each map's pixels, the highest first; equal ones at random.

    Args:
        maps: `[n, H, W]`.
        rng: for the order of equal ones.
    """
    flat = maps.reshape(len(maps), -1)
    return np.lexsort((rng.random(flat.shape), -flat), axis=-1)


def replaced(images: np.ndarray, others: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """Images with the first pixels of an order taken from others.

    Args:
        images: `[n, H, W, C]`.
        others: the same shape.
        order: `[n, H * W]`, positions.
        share: of the pixels, in [0, 1].
    """
    count = round(share * order.shape[1])
    chosen = np.zeros(order.shape, bool)
    np.put_along_axis(chosen, order[:, :count], True, axis=1)
    return np.where(chosen.reshape(*images.shape[:3], 1), others, images)


def area(
    images: np.ndarray,
    others: np.ndarray,
    order: np.ndarray,
    probability: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The area `[n]` under the probability while pixels of others replace those of images.

    Args:
        images, others, order: as in `replaced`.
        probability: of images `[n, H, W, C]` to `[n]`.
    """
    shares = np.linspace(0, 1, STEPS + 1)
    curve = [probability(replaced(images, others, order, share)) for share in shares]
    return np.trapezoid(curve, shares, axis=0)


def on_object(order: np.ndarray, places: np.ndarray) -> float:
    """The share of an order's first pixels that lie on the object, as many as it covers.

    Args:
        order: `[n, H * W]`.
        places: `[n, H, W]` bool.
    """
    flat = places.reshape(len(places), -1)
    covered = np.take_along_axis(flat, order, axis=1)
    first = np.arange(flat.shape[1]) < flat.sum(1, keepdims=True)
    return float((covered & first).sum() / flat.sum())


@dataclasses.dataclass(frozen=True)
class Scene:
    """The images of a data set, the networks that make maps of them, and the judge.

    Attributes:
        config: resolved.
        pixels: `[n, H, W, C]` in [0, 1].
        inputs: normalised.
        classes: `[n]`.
        places: `[n, H, W]` bool, where the object is; None where that isn't known.
        cams: by `cam.network`.
        judge: of an architecture that makes no maps.
    """

    config: Any
    pixels: np.ndarray
    inputs: np.ndarray
    classes: np.ndarray
    places: np.ndarray | None
    cams: dict[str, TrainedNetwork]
    judge: TrainedNetwork

    def maps(self, network: str, method: str) -> np.ndarray:
        """`[n, H, W]`, of each image's class, by a `cam.network` and a `cam.method`."""
        weigh = make_weight(resolve(self.config, **{"cam.method": method}), self.cams[network])
        labels = jnp.asarray(hard_labels(self.classes, int(self.classes.max()) + 1))
        values = Learnable(jnp.asarray(self.inputs), labels, jnp.float32(0))
        return np.asarray(weigh(values, jax.random.key(0))[0])

    @functools.cached_property
    def probability(self) -> Callable[[np.ndarray], np.ndarray]:
        """What the judge says of the classes: of inputs to `[n]`."""
        logits = jax.jit(self.judge.logits)

        def of(inputs: np.ndarray) -> np.ndarray:
            said = jax.nn.softmax(logits(self.judge.arrays, jnp.asarray(inputs)))
            return np.asarray(said)[np.arange(len(inputs)), self.classes]

        return of


def make_scene(data: str, images: pathlib.Path | None, workdir: pathlib.Path) -> Scene:
    """Loads a data set and trains what isn't trained yet.

    Args:
        data: of `SETS`.
        images: the folder of ImageNet's subsets.
        workdir: keeps the networks.
    """
    values = {**SETS[data], **_COMMON, "teacher.dir": str(workdir), "log.tensorboard": False}
    values["experts.dir"] = str(workdir / f"experts-{data}-{values['data.resolution']}")
    if images is not None and data != "digits":
        values["data.path"] = str(images / f"{data}-128")
    config = resolve(default_config(**values))
    dataset = load_dataset(config.data)
    folder = workdir / f"maps-{data}"
    store = open_experts(config, dataset, folder)
    with MetricsWriter(folder, tensorboard=False) as metrics:
        train_experts(config, dataset, store, metrics)
    network = network_for(config, dataset.info)
    cams = {}
    for name in NETWORKS:
        own = resolve(config, **{"cam.network": name})
        teacher = lambda: get_teacher(config, dataset, folder)  # noqa: E731
        cams[name] = choose_cam_network(own, dataset, network, store, teacher)
    judge = get_teacher(resolve(config, **_JUDGE), dataset, folder)
    return _of_images(config, dataset, cams, judge)


def _of_images(config, dataset: Dataset, cams, judge) -> Scene:
    """A scene of `PER_CLASS` held-out images a class."""
    held: Any = dataset.held_out
    rng = np.random.default_rng(0)
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(held.labels == label))[:PER_CLASS]
            for label in range(dataset.info.num_classes)
        ]
    )
    pixels, classes = held.images[chosen].astype(np.float32) / 255, held.labels[chosen]
    inputs = np.asarray(dataset.info.normalisation.apply(held.images[chosen]), np.float32)
    places = None
    if config.data.source == "cluttered_digits":
        whole = resolve(config, **{"data.held_out": 0.0})
        places = digit_opacity(whole, pixels, load_dataset(whole.data).train.images) > 0.5
    return Scene(config, pixels, inputs, classes, places, cams, judge)


def measure(scene: Scene, network: str, method: str) -> dict[str, str]:
    """A row: the figures of one method's maps by one choice of networks, or of a control."""
    rng = np.random.default_rng(0)
    size = scene.inputs.shape[1:3]
    if network:
        maps = scene.maps(network, method)
    elif method == "random order":
        maps = np.zeros((len(scene.inputs), *size))
    else:
        down, across = np.indices(size) - (np.array(size)[:, None, None] - 1) / 2
        maps = np.broadcast_to(-(down**2 + across**2), (len(scene.inputs), *size))
    order = pixel_order(maps, rng)
    # In inputs the mean colour is zero; a blur by a tenth of the side hides what an object is.
    deletion = area(scene.inputs, np.zeros_like(scene.inputs), order, scene.probability)
    deviation = size[0] / 10
    blurred = ndimage.gaussian_filter(scene.inputs, (0, deviation, deviation, 0))
    insertion = area(blurred, scene.inputs, order, scene.probability)
    score = insertion - deletion
    found = "" if scene.places is None else f"{100 * on_object(order, scene.places):.1f}"
    empty = f"{100 * (maps.max((1, 2)) == 0).mean():.1f}" if network else ""
    return {
        "images": str(len(order)),
        "deletion": f"{100 * deletion.mean():.2f}",
        "insertion": f"{100 * insertion.mean():.2f}",
        "score": f"{100 * score.mean():.2f}",
        "score_error": f"{100 * score.std(ddof=1) / len(score) ** 0.5:.2f}",
        "on_object": found,
        "empty": empty,
        "judge_sees": f"{100 * scene.probability(scene.inputs).mean():.1f}",
    }


def wanted() -> Iterator[tuple[str, str]]:
    """`cam.network` and `cam.method` of every row; no network for a control."""
    yield from (("", control) for control in CONTROLS)
    yield from ((network, method) for network in NETWORKS for method in gradcam.METHODS)


def draw(scenes: dict[str, Scene], target: pathlib.Path, *, each: int = 4) -> None:
    """Writes a picture of all maps of a few images, side by side.

    Args:
        scenes: by data set, from which `each` images of different classes are shown.
        target: the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = [pair for pair in wanted() if pair[0]]
    shown = [
        (scene, i * len(scene.pixels) // each) for scene in scenes.values() for i in range(each)
    ]
    shape = len(shown), len(columns) + 1
    figure, axes = plt.subplots(*shape, figsize=(0.95 * shape[1], 1.0 * shape[0] + 0.5))
    maps = {id(s): [s.maps(*pair) for pair in columns] for s in scenes.values()}
    for line, (scene, image) in zip(axes, shown):
        pixels = scene.pixels[[image]]
        over = [pictures.overlay(pixels, made[[image]])[0] for made in maps[id(scene)]]
        for axis, picture in zip(line, [pictures.to_rgb(pixels)[0], *over]):
            axis.imshow(picture, interpolation="nearest")
            axis.axis("off")
    names = {"expert": "an expert", "experts": "3 experts", "trained": "ResNet-18"}
    for axis, (network, method) in zip(axes[0, 1:], columns):
        axis.set_title(f"{names[network]}\n{method}", fontsize=5)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.94, wspace=0.04, hspace=0.04)
    target.parent.mkdir(parents=True, exist_ok=True)
    with storage.writing(target):
        figure.savefig(target, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.maps")
    parser.add_argument("--images", type=pathlib.Path, help="with imagenette-128, imagewoof-128")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/maps"))
    parser.add_argument("--csv", type=pathlib.Path, default=pathlib.Path("docs/results/maps.csv"))
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--picture", type=pathlib.Path, help="where to draw the maps, if at all")
    options = parser.parse_args()
    console.speak_in_lines()
    return console.exit_status(lambda: _run(options), name="maps")


def _run(options: argparse.Namespace) -> int:
    devices.set_up("float32", deterministic=False)
    scenes = {}
    for data in options.sets.split(","):
        if data not in SETS:
            raise UserError(f"--sets: {data!r} is none of {', '.join(SETS)}")
        if data != "digits" and options.images is None:
            raise UserError(f"{data} needs --images=FOLDER; --sets=digits needs nothing")
        experiments = {f"maps_{data}, {n or 'control'}, {m}": (n, m) for n, m in wanted()}
        kept = {line["experiment"] for line in rows.read_lines(options.csv)}
        missing = {name: pair for name, pair in experiments.items() if name not in kept}
        if not missing and not options.picture:
            continue
        scenes[data] = scene = make_scene(data, options.images, options.workdir)
        for name, (network, method) in missing.items():
            began = time.monotonic()
            told = {"data": data, "network": NETWORKS.get(network, ""), "method": method}
            line = {"experiment": name, **told, **measure(scene, network, method)}
            line["seconds"] = f"{time.monotonic() - began:.1f}"
            rows.replace(options.csv, name, [line])
            print(", ".join(f"{k} {v}" for k, v in line.items() if v), file=sys.stderr, flush=True)
    if options.picture:
        draw(scenes, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
