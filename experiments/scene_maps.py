"""Where EDF's weights lie and what CPD drops, on the scenes that `complex_scenes` compared on.

    python -m experiments.scene_maps runs/complex_scenes/easy_ipc10 runs/complex_scenes/hard_ipc10

For each comparison's EDF runs: the share of pixels that the digit covers; the share of pixels that
DAE emphasises on the digit and beside it; the mean weight on both; the share of images whose map is
empty; and CPD's dropped parameters' share of the matching loss. `--cam_method` asks the same of
other maps of the same images. The digits' places are known, since the composites are made here. The
last line is MAPS {json}.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.config.resolve import default_config, flatten
from edf_jax.data import load_dataset
from edf_jax.data.cluttered_digits import training_opacity
from edf_jax.distill import pairs
from edf_jax.distill.cam_network import choose_cam_network
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.train import open_experts
from edf_jax.matching.iteration import Learnable
from edf_jax.matching.pixel_weight import make_weight
from edf_jax.methods import gradcam
from edf_jax.models.choose import network_for
from edf_jax.runs.files import open_run
from edf_jax.runtime import console, randomness
from edf_jax.runtime.errors import UserError
from edf_jax.training import losses

_PAIRS = 8


def measure(workdir: pathlib.Path, cam_method: str = "") -> dict[str, float]:
    """The figures of one run.

    Args:
        workdir: of a run on cluttered digits whose first images are training images.
        cam_method: how maps are made; empty: as the run made them.

    Raises:
        UserError: there is no such run.
    """
    config, first, last = finished_run(workdir)
    config.cam.method = cam_method or config.cam.method
    dataset = load_dataset(config.data)
    network = network_for(config, dataset.info)
    store = open_experts(config, dataset, workdir)
    cam = choose_cam_network(config, dataset, network, store, lambda: None)  # type: ignore
    weigh = make_weight(config, cam)
    digit = digit_opacity(config, first.pixels, dataset.train.images) > 0.5
    figures = {"digit_pixels": float(digit.mean())}
    for name, found in (("first", first), ("last", last)):
        values = Learnable(*map(jnp.asarray, (found.parameters, found.labels, found.alpha)))
        maps, weight = weigh(values, jax.random.key(0))
        maps, weight = np.asarray(maps), np.asarray(weight)[..., 0]
        high = maps >= maps.mean((1, 2), keepdims=True)
        figures |= {
            f"{name}_emphasised_on_digit": float(high[digit].mean()),
            f"{name}_emphasised_beside": float(high[~digit].mean()),
            f"{name}_weight_on_digit": float(weight[digit].mean()),
            f"{name}_weight_beside": float(weight[~digit].mean()),
            f"{name}_empty_maps": float((maps.max((1, 2)) == 0).mean()),
            f"{name}_cam_right": float(_right(cam, found)),
        }
    moved = np.abs(last.images - first.images).mean(-1)
    figures |= {
        "movement_on_digit": float(moved[digit].mean()),
        "movement_beside": float(moved[~digit].mean()),
    }
    return figures | _dropped(config, network, store, last)


def finished_run(workdir: pathlib.Path) -> tuple[Any, DistilledSet, DistilledSet]:
    """A run's config, its first and its last set.

    Raises:
        UserError: there is no such run, or it isn't finished.
    """
    run = open_run(workdir)
    if run.first is None or run.last is None:
        raise UserError(f"{workdir} has no first and last set: finish its run")
    return default_config(**flatten(run.config)), run.first, run.last


def digit_opacity(config, pixels: np.ndarray, images: np.ndarray) -> np.ndarray:
    """How much of each pixel `[n, H, W]` of first images their digit covers.

    Args:
        config: of the run that starts from them.
        pixels: `[n, H, W, C]` in [0, 1], each that of a training image.
        images: all training images, uint8.

    Raises:
        UserError: some are held out, so that positions are not those of the composites.
    """
    data = config.data
    if data.held_out:
        raise UserError(f"data.held_out={data.held_out:g}: places are known of whole sets alone")
    return training_opacity(
        _positions(pixels, images),
        resolution=data.resolution,
        difficulty=data.difficulty,
        composites=data.composites,
        seed=data.seed,
    )


def _positions(pixels: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The positions `[n]` of first images among the real ones."""
    flat = images.reshape(len(images), -1)
    found = []
    for image in np.rint(pixels * 255).astype(np.int16).reshape(len(pixels), -1):
        found.append(int(np.argmin(np.abs(flat - image).sum(1))))
    return np.array(found)


def _right(cam, found: DistilledSet) -> jax.Array:
    """The share of a set's images that the CAM network classifies as labelled."""
    logits = cam.network.apply(cam.theta, jnp.asarray(found.images), cam.batch_stats)
    return jnp.mean(jnp.argmax(logits, -1) == jnp.asarray(found.classes))


def _dropped(config, network, store, found: DistilledSet) -> dict[str, float]:
    """CPD's dropped parameters' share of the loss's two sums, over some matched pairs."""
    options = config.distill
    images, labels = jnp.asarray(found.images), jnp.asarray(found.labels)

    def loss(theta, rows):
        return losses.soft_cross_entropy(network.apply(theta, images[rows]), labels[rows])

    @jax.jit
    def student(theta, rows):
        def step(theta, rows):
            return theta - found.alpha * jax.grad(loss)(theta, rows), None

        return jax.lax.scan(step, theta, rows)[0]

    shares = []
    count, batch = len(images), min(options.batch_syn, len(images))
    for number in range(_PAIRS):
        rng = randomness.host_stream(config.seed, "analysed batches", number)
        it = options.iterations * number // _PAIRS
        ((expert, epoch),) = pairs.choices(config, it)
        pair = store.pair(expert, epoch, options.expert_epochs)
        rows = np.stack([rng.permutation(count)[:batch] for _ in range(options.syn_steps)])
        theta = np.asarray(student(jnp.asarray(pair.start), rows))
        distances, travelled = (theta - pair.target) ** 2, (pair.start - pair.target) ** 2
        dropped = np.argsort(distances)[: int(options.drop * len(distances))]
        shares.append(
            (distances[dropped].sum() / distances.sum(), travelled[dropped].sum() / travelled.sum())
        )
    of_loss, of_travelled = np.mean(shares, axis=0)
    return {
        "dropped_parameters": options.drop,
        "dropped_share_of_loss": float(of_loss),
        "dropped_share_of_distance": float(of_travelled),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.scene_maps")
    parser.add_argument("comparisons", nargs="+", help="folders of edf_jax.compare")
    parser.add_argument("--cam_method", choices=gradcam.METHODS, default="")
    options = parser.parse_args()

    def work() -> int:
        found: dict[str, Any] = {}
        for folder in map(pathlib.Path, options.comparisons):
            runs = sorted((folder / "cells" / "edf").glob("seed_*"))
            measured = [measure(run, options.cam_method) for run in runs]
            if not measured:
                raise UserError(f"{folder} has no runs of EDF")
            found[folder.name] = {
                key: round(float(np.mean([one[key] for one in measured])), 4) for key in measured[0]
            }
        names = list(found)
        print("| mean over seeds | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
        for key in found[names[0]]:
            values = " | ".join(f"{found[name][key]:.3f}" for name in names)
            print(f"| {key.replace('_', ' ')} | {values} |")
        print("MAPS " + json.dumps(found), flush=True)
        return 0

    return console.exit_status(work, name="scene_maps")


if __name__ == "__main__":
    sys.exit(main())
