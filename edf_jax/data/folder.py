"""A folder of images: train/<class>/* beside val/<class>/* or test/<class>/*."""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
import warnings

import numpy as np

from edf_jax.data.catalogue import find_benchmark, name_by_split
from edf_jax.data.normalisation import IMAGENET
from edf_jax.data.sources import (
    Listing,
    Source,
    check_labels,
    digest_of,
    distinct,
    existing_folder,
)
from edf_jax.data.subsets import Subset, chosen_subset, imagenet_classes, index_by_wnid
from edf_jax.runtime.errors import UserError

LAYOUT = "a folder with train/<class>/* and val/<class>/* (or test/<class>/*)"
IMAGENET_LAYOUT = "a folder with ImageNet's images as train/<WordNet id>/* and val/<WordNet id>/*"
_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .avif".split()
)
_TEST_NAMES = ("test", "val", "validation", "valid")
_ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet keeps the labels of val/images here

_Files = list[tuple[str, int]]  # paths of images, and their labels


def open_folder(data_config) -> Source:
    """Lists the images of the classes that are asked for; opens none.

    With `data.subset` or `data.class_list` the classes are ImageNet's, in folders named by WordNet
    id or by class index. Without, every folder in train/ is a class, in sorted order.

    Raises:
        UserError: a split, a class or its images are missing.
    """
    subset = chosen_subset(data_config)
    layout = LAYOUT if subset is None else IMAGENET_LAYOUT
    root = existing_folder(data_config.path, layout)
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{root} has no train/; expected is {layout}.")
    indices: tuple[int, ...] | None
    if subset is not None:
        subset.warn_of_repetitions()
        name, class_names, indices = subset.name, subset.class_names, subset.indices
        train_files = _in_folders(train, _subset_folders(train, subset))
        test_files = _subset_test(root, subset)
    else:
        folders = sorted(p.name for p in train.iterdir() if p.is_dir() and p.name[0] != ".")
        if not folders:
            raise UserError(f"{train} has no class folders; expected is {LAYOUT}.")
        benchmark, known = find_benchmark(data_config.name), index_by_wnid()
        name = benchmark.name if benchmark else data_config.name or root.resolve().name
        class_names = _class_names(root, folders)
        indices = tuple(known[f] for f in folders) if known.keys() >= set(folders) else None
        train_files, test_files = _in_folders(train, folders), _test(root, folders)
    return Source(
        name=name_by_split(
            name, indices, *([path for path, _ in files] for files in (train_files, test_files))
        ),
        class_names=class_names,
        channels=3,
        train=_listing(root, "train", train_files, class_names),
        test=_listing(root, "test", test_files, class_names),
        imagenet_indices=indices,
        normalisation=IMAGENET,
        # People's own photographs stand as their camera says; ImageNet's are read as everybody
        # does.
        upright=indices is None,
    )


def _subset_test(root: pathlib.Path, subset: Subset) -> _Files:
    # ImageNet's own test/ has no labels.
    for test in (root / "val", root / "validation", root / "test"):
        if any((test / name).is_dir() for index in subset.indices for name in _spellings(index)):
            return _in_folders(test, _subset_folders(test, subset))
    flat = (root / "val").is_dir() and not any(p.is_dir() for p in (root / "val").iterdir())
    told = f"{root} has no val/ with the classes of {subset.name}"
    if flat:
        told = f"{root}/val holds images that are not sorted into folders by class"
    raise UserError(f"{told}; expected is {IMAGENET_LAYOUT}.")


def _spellings(index: int) -> tuple[str, ...]:
    """How the folder of an ImageNet class may be called."""
    wnid = imagenet_classes()[index].wnid
    return wnid, str(index), f"{index:03d}", f"{index:04d}", f"{index:05d}"


def _subset_folders(split: pathlib.Path, subset: Subset) -> list[str]:
    """The folder of each class: by WordNet id, else by index."""
    found = [[s for s in _spellings(i) if (split / s).is_dir()] for i in subset.indices]
    classes = [imagenet_classes()[i] for i, own in zip(subset.indices, found) if not own]
    if len(classes) == len(found):
        raise UserError(
            f"{split} has none of the class folders of {subset.name}; expected is "
            f"{IMAGENET_LAYOUT}."
        )
    if classes:
        shown = ", ".join(f"{c.wnid} ({c.name})" for c in classes[:5])
        more = " ..." if len(classes) > 5 else ""
        raise UserError(f"{split} has no folder for {len(classes)} of the classes: {shown}{more}.")
    return [own[0] for own in found]


def _test(root: pathlib.Path, folders: list[str]) -> _Files:
    def has_any(split: pathlib.Path) -> bool:
        return any((split / folder).is_dir() for folder in folders)

    if (root / "val" / _ANNOTATIONS).is_file() and not has_any(root / "val"):
        return _annotated(root, folders)
    test = next((root / name for name in _TEST_NAMES if has_any(root / name)), None)
    if test is None:
        raise UserError(f"{root} has neither val/ nor test/ with the classes of train/: {LAYOUT}.")
    there = {p.name for p in test.iterdir() if p.is_dir() and p.name[0] != "."}
    extra = sorted(there - set(folders))
    if extra:
        raise UserError(f"{test} has classes that train/ lacks: {', '.join(extra[:5])}.")
    return _in_folders(test, folders)


def _annotated(root: pathlib.Path, folders: list[str]) -> _Files:
    annotations = root / "val" / _ANNOTATIONS
    label_of = {folder: label for label, folder in enumerate(folders)}
    files = []
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 2 or fields[1] not in label_of:
            raise UserError(f"{annotations}, line {number}: no class of train/ in {line!r}.")
        files.append((str(root / "val" / "images" / fields[0]), label_of[fields[1]]))
    return files


def _in_folders(split: pathlib.Path, folders: list[str]) -> _Files:
    return [
        (path, label)
        for label, folder in enumerate(folders)
        for path in sorted(
            os.path.join(place, name)
            for place, _, names in os.walk(split / folder)
            for name in names
            if name[0] != "." and os.path.splitext(name)[1].lower() in _EXTENSIONS
        )
    ]


def _class_names(root: pathlib.Path, folders: list[str]) -> tuple[str, ...]:
    """Names from words.txt (Tiny-ImageNet's file), from ImageNet's list, or the folders' own."""
    words = {c.wnid: c.name for c in imagenet_classes()}
    if (root / "words.txt").is_file():
        for line in (root / "words.txt").read_text(errors="replace").splitlines():
            wnid, _, meaning = line.partition("\t")
            words[wnid] = meaning.split(",")[0].strip()
    return distinct([words.get(folder) or folder for folder in folders], folders)


def _listing(root: pathlib.Path, split: str, found: _Files, class_names) -> Listing:
    files: list[tuple[str, int]] = []
    content: list[list] = []
    passed_over: list[str] = []
    split = os.path.relpath(found[0][0], root).split(os.sep)[0] if found else split
    for path, label in found:
        identity = [os.path.relpath(path, root), label]
        with contextlib.suppress(OSError):  # reading it will name it
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                passed_over.append(path)  # opening a FIFO would wait for ever
                continue
            # By its time an image of the same length is known as another.
            identity += [status.st_size, status.st_mtime_ns]
        files.append((path, label))
        content.append(identity)
    labels = np.array([label for _, label in files], np.int32)
    told = ""
    if passed_over:
        told = (
            f"{len(passed_over)} images of the {split} split of {root} are passed over, for they "
            f"are no files: {', '.join(passed_over[:3])}."
        )
    try:
        labels = check_labels(labels, class_names, split, root)
    except UserError as error:
        raise UserError(f"{error} {told}".strip()) from None
    if told:
        warnings.warn(told, stacklevel=2)

    def read(i: int) -> bytes:
        with open(files[i][0], "rb") as file:
            return file.read()

    return Listing(
        labels=labels,
        read=read,
        name=lambda i: files[i][0],
        identity=digest_of(content),
    )
