"""The command that measures how complex images are, and makes easy and hard subsets by it.

    python -m edf_jax.comp_dd.complexity --config=configs/folder.py:laptop \\
        --config.data.path=/data/imagenet --config.cam.weights=resnet18.pth --select=10

References:
    Wang et al., Emphasizing Discriminative Features for Dataset Distillation in Complex Scenarios,
    2410.17193, section 3 and appendix.
"""

from __future__ import annotations

import itertools
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from edf_jax.comp_dd.images import open_images
from edf_jax.comp_dd.judges import choose_judge
from edf_jax.comp_dd.selection import select, write_subset
from edf_jax.config.flags import Given, run_command
from edf_jax.config.resolve import reckoned, resolve
from edf_jax.data import describe_dataset
from edf_jax.data.decode import Unreadable
from edf_jax.data.pipeline import in_workers
from edf_jax.data.sources import Listing, Source
from edf_jax.data.subsets import imagenet_classes
from edf_jax.methods import gradcam
from edf_jax.report import charts
from edf_jax.runtime import devices, preemption, randomness, storage, tables
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training.loop import Prepare
from edf_jax.training.trained import TrainedNetwork

THRESHOLD = 0.5
PUBLISHED_METHOD = "smooth_grad_cam_pp"
_BATCH = 16
_SHOWN = 8
_USAGE = f"""\
usage: python -m edf_jax.comp_dd.complexity --config=configs/FILE.py:VARIANT [flags]

Measures how complex training images and classes are: the share of an image outside of what a
network looks at, 1 - mean(map >= {THRESHOLD}).

  --config=FILE:VARIANT      the images, as in edf_jax.main; likewise --config.KEY=VALUE
  --config.cam.weights=FILE  maps of an ImageNet ResNet-18 (as published: images of 224x224)
  --config.cam.network=WHOSE or of the run's first expert ('expert'), or of a network trained on
                             the images now ('trained'); the default is what there is
  --config.cam.method=NAME   {', '.join(gradcam.METHODS)}
                             (default {PUBLISHED_METHOD}, as published)
  --per_class=N              so many images of each class, drawn at random (default all)
  --select=N                 make subsets of the N least and the N most complex classes
  --workdir=FOLDER           the run whose experts are meant; results go to complexity/ in it
                             (default runs/<config>-<variant>[-<hash>])

Writes images.csv, classes.csv and complexity.png there, and with --select the subsets easy and hard
for data.class_list (ImageNet's classes) or data.path. Ends in one line: RESULT {{json}}."""

# Not __name__, which is "__main__" in the command.
_log = logging.getLogger("edf_jax.comp_dd.complexity")


def complexity(maps):
    """The share of each map that is low, `[n]`.

    Args:
        maps: class activation maps `[n, h, w]` in [0, 1].

    References:
        EDF (2410.17193), section 3: `1 - mean[A >= 0.5]`.
    """
    return 1 - jnp.mean(maps >= THRESHOLD, axis=(1, 2))


def make_measure(
    trained: TrainedNetwork, prepare: Prepare, method: str
) -> Callable[[np.ndarray, np.ndarray, Any], jax.Array]:
    """Complexities of images by a network's maps, at their own size and for its own top class.

    Args:
        trained: the network.
        prepare: from pixels to its inputs.
        method: one of `gradcam.METHODS`.

    Returns:
        `(pixels [n, H, W, C], positions [n], key)` to complexities `[n]`. An image's depends on
        its position, by the noise of the map, but not on the images beside it.
    """

    @jax.jit
    def measure(arrays, inputs, positions, key):
        features, classify = trained.halves(arrays)

        def one(image, position):
            top = jnp.argmax(classify(features(image[None])), axis=-1)
            noise_key = jax.random.fold_in(key, position)
            maps = gradcam.METHODS[method](features, classify, image[None], top, noise_key)
            return complexity(maps)[0]

        return jax.vmap(one)(inputs, positions)

    return lambda pixels, positions, key: measure(
        trained.arrays, prepare(jnp.asarray(pixels)), positions, key
    )


def measure_images(
    measure: Callable[[np.ndarray, np.ndarray, Any], jax.Array],
    images: Listing,
    image_shape: tuple[int, int, int],
    positions: np.ndarray,
    key: jax.Array,
    *,
    workers: int = 0,
) -> np.ndarray:
    """Complexities of the images at some positions; not-a-number where one can't be read.

    Args:
        measure: of `make_measure`.
        images: read at the network's resolution.
        image_shape: theirs.
        positions: which, `[m]`.
        key: for the noise of maps.
        workers: threads that read; 0 for one per core.
    """

    def read(position: int) -> tuple[np.ndarray | None, str]:
        try:
            return np.asarray(images.read(position)), ""
        except (Unreadable, OSError) as error:
            return None, f"{images.name(position)} ({error})"

    found: list[jax.Array] = []
    lost: list[str] = []
    readings = in_workers(read, positions.tolist(), workers)
    with Progress("complexity", len(positions), "image") as bar:
        for start in range(0, len(positions), _BATCH):
            # A last batch is filled up, for batches of one shape are compiled once.
            chosen = np.resize(positions[start : start + _BATCH], _BATCH)
            batch = list(itertools.islice(readings, min(_BATCH, len(positions) - start)))
            pixels = np.zeros((_BATCH, *image_shape), np.uint8)
            readable = np.zeros(_BATCH, bool)
            for row, (image, told) in enumerate(batch):
                readable[row] = image is not None
                if image is None:
                    lost.append(told)
                else:
                    pixels[row] = image
            found.append(jnp.where(readable, measure(pixels, chosen, key), jnp.nan))
            if len(found) > 2:
                found[-3].block_until_ready()
            bar.update(len(batch))
            preemption.stop_if_asked()
    if lost:
        _log.warning("%d images can't be read and are left out: %s", len(lost), "; ".join(lost[:3]))
    return np.concatenate([np.asarray(part) for part in found])[: len(positions)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `edf_jax.main` does."""
    return run_command("edf_jax.comp_dd.complexity", _USAGE, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("per_class", 0, "images a class", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("select", 0, "classes a subset", lower_bound=0, flag_values=values)


def _run(given: Given) -> int:
    values = given.flags
    if "cam.method" not in given.keys:
        values.config.cam.method = PUBLISHED_METHOD
    # No run is made here that could find numbers, and every training image is looked at.
    config = resolve(reckoned(resolve(values.config)), **{"data.held_out": 0.0})
    result = run(config, given.workdir, per_class=values.per_class, count=values.select)
    sys.stdout.flush()
    print("RESULT " + json.dumps(result), flush=True)
    return 0


def run(config, workdir: pathlib.Path, *, per_class: int = 0, count: int = 0) -> dict[str, Any]:
    """Measures a dataset, and writes what came of it to `complexity/` in `workdir`.

    Args:
        config: resolved.
        workdir: the run whose experts are meant.
        per_class: images of each class, at most; 0 is all.
        count: classes of an easy and of a hard subset; 0 makes none.

    Returns:
        What was measured: by whose maps, of how many images, and the classes' complexities.

    Raises:
        UserError: the data or the network is not there, or doesn't fit.
    """

    devices.set_up(config.precision, deterministic=config.deterministic)
    planned = describe_dataset(config.data)
    if not planned.available:
        raise UserError(planned.advice)
    if count:
        # Before anything is trained.
        select([0.0] * planned.num_classes, count)
    judge, prepare, resolution = choose_judge(config, workdir)
    image_shape = judge.network.image_shape
    source = open_images(config.data, resolution, colour=image_shape[2] == 3)
    _log.info("complexity: %s of %s", config.cam.method, judge.name)
    labels = source.train.labels
    positions = _some_of_each(labels, per_class, config.seed)
    values = measure_images(
        make_measure(judge, prepare, config.cam.method),
        source.train,
        image_shape,
        positions,
        randomness.stream(config.seed, "complexity"),
        workers=config.data.workers,
    )
    classes = summarise(values, labels[positions], source)
    folder = workdir / "complexity"
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / "images.csv", _images_csv(values, positions, source))
    storage.write_text(folder / "classes.csv", _csv(classes))
    means = [row["complexity"] for row in classes]
    chosen = select(means, count) if count else {}
    _write_chart(folder / "complexity.png", classes, chosen, judge.name)
    _print_table(classes)
    result: dict[str, Any] = {
        "maps": f"{config.cam.method} of {judge.name}",
        "images": len(positions),
        "complexity": round(float(np.nanmean(values)), 4),
        "folder": str(folder),
    }
    own = open_images(config.data, 0) if chosen else source
    for name, subset in chosen.items():
        used_by = write_subset(folder, name, subset, means, own)
        print(f"{name}: {used_by}", file=sys.stderr)
        result[name] = [classes[label]["class"] for label in subset]
    return result


def _some_of_each(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of `per_class` images of each class, drawn at random; of all where it is 0."""
    if not per_class:
        return np.arange(len(labels))
    rng = randomness.host_stream(seed, "complexity")
    order = rng.permutation(len(labels))
    kept = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept))


def summarise(values: np.ndarray, labels: np.ndarray, source: Source) -> list[dict[str, Any]]:
    """Each class's complexity: the mean over its images, and their deviation.

    Args:
        values: of the images, not-a-number where unknown.
        labels: theirs.
        source: knows the classes.

    Raises:
        UserError: none of a class's images could be read.
    """
    rows = []
    for label, name in enumerate(source.class_names):
        own = values[labels == label]
        own = own[np.isfinite(own)]
        if not len(own):
            raise UserError(f"no image of class {name} can be read")
        row = {"label": label, "class": name}
        if source.imagenet_indices is not None:
            row["wordnet_id"] = imagenet_classes()[source.imagenet_indices[label]].wnid
        row |= {"images": len(own), "complexity": float(own.mean()), "std": float(own.std())}
        rows.append(row)
    return rows


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    def cell(value: Any) -> Any:
        return f"{value:.6f}" if isinstance(value, float) else value

    return tables.to_csv([{name: cell(value) for name, value in row.items()} for row in rows])


def _images_csv(values: np.ndarray, positions: np.ndarray, source: Source) -> str:
    images = source.train
    return _csv(
        [
            {
                "image": images.name(position),
                "label": int(images.labels[position]),
                "class": source.class_names[images.labels[position]],
                "complexity": float(value),
            }
            for position, value in zip(positions.tolist(), values)
        ]
    )


def _write_chart(path: pathlib.Path, classes, chosen, name: str) -> None:

    marks = {label: subset for subset, labels in chosen.items() for label in labels}
    order = sorted(range(len(classes)), key=lambda label: -classes[label]["complexity"])
    storage.write_bytes(
        path,
        charts.bars(
            [classes[label]["class"] for label in order],
            [classes[label]["complexity"] for label in order],
            [marks.get(label, "") for label in order],
            title=f"Complexity, by {name}",
        ),
    )


def _print_table(classes: Sequence[dict[str, Any]]) -> None:
    """The most and the least complex classes, on standard error."""
    order = sorted(classes, key=lambda row: -row["complexity"])
    shown = order if len(order) <= 2 * _SHOWN else [*order[:_SHOWN], None, *order[-_SHOWN:]]
    width = max(len(row["class"]) for row in order)
    for row in shown:
        if row is None:
            print("...", file=sys.stderr)
            continue
        print(
            f"{row['class']:<{width}}  {row['complexity']:.3f} ± {row['std']:.3f}"
            f"  {row['images']:,} images",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
