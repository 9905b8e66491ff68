"""Easy and hard subsets of any labelled dataset, by the complexity of its classes."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

import numpy as np

from edf_jax.data.decode import Unreadable
from edf_jax.data.sources import Listing, Source
from edf_jax.data.subsets import imagenet_classes
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

SUBSETS = ("easy", "hard")


def select(complexity: Sequence[float], count: int) -> dict[str, list[int]]:
    """The labels of an easy and a hard subset.

    Args:
        complexity: of each class.
        count: classes of each subset.

    Returns:
        Under `easy` the least complex, the least first; under `hard` the most complex, the most
        first.

    Raises:
        UserError: the subsets would share classes.
    """
    if 2 * count > len(complexity):
        raise UserError(
            f"--select={count} needs {2 * count} classes for an easy and a hard subset; there are "
            f"{len(complexity)}"
        )
    order = np.argsort(np.asarray(complexity), kind="stable").tolist()
    return {"easy": order[:count], "hard": order[::-1][:count]}


def write_subset(
    folder: pathlib.Path,
    name: str,
    labels: Sequence[int],
    complexity: Sequence[float],
    source: Source,
) -> str:
    """Writes a subset so that a run can use it.

    Args:
        folder: where it goes.
        name: of the subset.
        labels: of its classes.
        complexity: of all classes.
        source: the dataset, of `open_images`; images that aren't files are written at their own
            resolution.

    Returns:
        The flags that use it: of ImageNet's classes a list for `data.class_list`, of others a
        folder for `data.path`, with links where the images are files and PNGs where they aren't.

    Raises:
        UserError: the folder holds something else.
    """
    if source.imagenet_indices is not None:
        path = folder / f"{name}.txt"
        lines = [f"# The {len(labels)} classes of the {name} subset, by complexity."]
        for label in labels:
            found = imagenet_classes()[source.imagenet_indices[label]]
            lines.append(f"{found.wnid}  # {found.name}, {complexity[label]:.4f}")
        storage.write_text(path, "\n".join(lines) + "\n")
        return f"--config.data.class_list={path}"
    root = folder / name
    splits = {"train": source.train, "test": source.test}
    if root.exists() and not (root.is_dir() and {p.name for p in root.iterdir()} <= set(splits)):
        raise UserError(f"{root} is there and no subset: remove it or give another --out")
    with storage.appearing(root) as temporary:
        for split, images in splits.items():
            _write_split(temporary / split, labels, images, source.class_names)
    return f"--config.data.source=folder --config.data.path={root}"


def _write_split(
    folder: pathlib.Path, labels: Sequence[int], images: Listing, names: Sequence[str]
) -> None:
    for label in labels:
        # Another name may have been as this one is now.
        place = folder / _folder_name(names[label])
        place = folder / f"{place.name}_{label}" if place.exists() else place
        place.mkdir(parents=True)
        for position in np.flatnonzero(images.labels == label).tolist():
            _write_image(place, position, images)


def _folder_name(class_name: str) -> str:
    return re.sub(r"[^\w. -]+", "_", class_name).strip(" .") or "class"


def _write_image(place: pathlib.Path, position: int, images: Listing) -> None:
    from PIL import Image

    file = pathlib.Path(images.name(position))
    if file.is_file():
        (place / f"{position:06d}_{file.name}").symlink_to(file.resolve())
        return
    try:
        pixels = np.asarray(images.read(position))
    except (Unreadable, OSError):
        return
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Image.fromarray(pixels).save(place / f"{position:06d}.png")
