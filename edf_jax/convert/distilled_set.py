"""The official codes' distilled sets: `images_best.pt`, `labels_best.pt` and `lr_best.pt`.

`edf_jax.export` writes them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edf_jax import distilled_set
from edf_jax.data.catalogue import find_benchmark
from edf_jax.data.normalisation import IMAGENET, Normalisation
from edf_jax.data.sources import class_numbers
from edf_jax.data.subsets import find_subset, subset_names
from edf_jax.distilled_set import DistilledSet
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.models import torch_files
from edf_jax.runtime.errors import UserError

# What `edf_jax.export` tells of a set beside its arrays.
_RECORD = "distilled_set.json"


@dataclasses.dataclass(frozen=True)
class Description:
    """What the official files don't say of a set.

    Attributes:
        class_names: by label.
        normalisation: what turned pixels into the images.
        step: updates made.
        config: the run's, `{}` where unknown.
        origin: of the real images, as `DatasetInfo.identity` has it; {} where unknown.
    """

    class_names: tuple[str, ...]
    normalisation: Normalisation
    step: int = 0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def describe_dataset(name: str) -> Description:
    """The class names and published constants of a benchmark or ImageNet subset.

    Raises:
        UserError: neither has that name.
    """
    benchmark = find_benchmark(name)
    if benchmark is not None:
        return Description(benchmark.class_names, benchmark.normalisation)
    if name.lower().replace("-", "_") not in subset_names():
        raise UserError(
            f"--dataset={name} is unknown: give cifar10, cifar100, mnist, fashion_mnist, svhn, "
            f"tiny_imagenet or one of {', '.join(subset_names())}"
        )
    return Description(find_subset(name).class_names, IMAGENET)


def describe_like(path: str | os.PathLike) -> Description:
    """What another distilled set of the same data says, with its ZCA matrix where it has one."""
    other = distilled_set.load(path)
    config = {name: value for name, value in other.config.items() if name.startswith("data.")}
    return Description(other.class_names, other.normalisation, 0, config, other.origin)


def read_record(folder: pathlib.Path) -> Description | None:
    """What `edf_jax.export` told of a set, or None where it didn't write the folder.

    Raises:
        UserError: its record can't be read.
    """
    path = folder / _RECORD
    if not path.exists():
        return None
    try:
        return of_record(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: remove it and give --dataset or --like") from None


def of_record(text: str) -> Description:
    """What the record of an export says.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it isn't one.
    """
    record = json.loads(text)
    fields = {name: record[name] for name in ("mean", "std", "zca") if record[name] is not None}
    cache_dir = record["config"].get("data.cache_dir") or None
    normalisation = Normalisation.from_json(json.dumps(fields), cache_dir)
    names, origin = tuple(record["class_names"]), record.get("origin", {})
    return Description(names, normalisation, int(record["step"]), record["config"], origin)


def import_set(folder: str | os.PathLike, description: Description | None = None) -> DistilledSet:
    """Reads an official distilled set.

    Args:
        folder: holds the three files.
        description: of the data; where None, `edf_jax.export` must have written the folder.

    Raises:
        UserError: a file is missing or damaged, or they don't fit each other or the description.
    """
    folder = pathlib.Path(folder)
    description = description or read_record(folder)
    if description is None:
        raise UserError(
            f"{folder} doesn't say which data its set is of: give --dataset, or --like with "
            "another set of the same data"
        )
    paths = [folder / f"{name}_best.pt" for name in ("images", "labels", "lr")]
    return import_files(paths, description)


def import_files(paths: Sequence[pathlib.Path], description: Description) -> DistilledSet:
    """Reads an official distilled set from three files, wherever they are.

    Args:
        paths: of the images, `[n, C, H, W]` and normalised; of the labels, logits `[n, C]` or
            classes `[n]`; of the rate, one number.
        description: of the data.

    Raises:
        UserError: as `import_set`.
    """
    images, labels, rate = map(_read, paths)
    if images.ndim != 4:
        raise UserError(f"{paths[0]} has shape {images.shape}, not [n, C, H, W]")
    channels = len(description.normalisation.mean)
    if images.shape[1] != channels:
        raise UserError(
            f"{paths[0]} has {images.shape[1]} channels (shape {images.shape}), the data {channels}"
        )
    if rate.size != 1:
        raise UserError(f"{paths[2]} has shape {rate.shape}, not one number")
    if not 0 <= rate.item() < np.inf:
        raise UserError(f"{paths[2]} has the rate {rate.item()}: no learning rate")
    return DistilledSet(
        np.ascontiguousarray(images.transpose(0, 2, 3, 1), np.float32),
        _logits(paths[1], labels, len(images), len(description.class_names)),
        float(np.float32(rate.reshape(()))),
        description.class_names,
        description.normalisation,
        description.step,
        config=description.config,
        origin=description.origin,
    )


def _read(path: pathlib.Path) -> np.ndarray:
    value = torch_files.read(path)
    return np.asarray(value) if isinstance(value, float) else torch_files.as_array(value, str(path))


def _logits(path: pathlib.Path, labels: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise UserError(f"{path} has shape {labels.shape} for {count} images")
    if labels.ndim == 1:
        return hard_labels(class_numbers(labels, num_classes, str(path)), num_classes)
    if labels.shape[1] != num_classes:
        raise UserError(f"{path} has {labels.shape[1]} classes, the data {num_classes}")
    if labels.dtype.kind != "f":
        raise UserError(f"{path} holds {labels.dtype}, which are neither classes nor logits")
    return np.ascontiguousarray(labels, np.float32)
