"""A folder of images: train/<class>/* beside val/<class>/* or test/<class>/*."""

from __future__ import annotations

import os
import pathlib
import stat
import warnings

import numpy as np

from edf_jax.data.catalogue import fastai_name, find_benchmark
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
_OF_VALIDATION = "ILSVRC2012_val_"  # how ILSVRC's validation images are called


def open_folder(data_config) -> Source:
    """Lists the images of the classes that are asked for; opens none.

    With `data.subset` or `data.class_list` the classes are ImageNet's, in folders named by WordNet
    id or by class index. Without, every folder in train/ is a class, in sorted order.

    Raises:
        UserError: a split, a class or its images are missing.
    """
    subset = chosen_subset(data_config)
    if subset is not None:
        subset.warn_of_repetitions()
        return _open_subset(existing_folder(data_config.path, IMAGENET_LAYOUT), subset)
    return _open_all(existing_folder(data_config.path, LAYOUT), data_config.name)


def _open_subset(root: pathlib.Path, subset: Subset) -> Source:
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{root} has no train/; expected is {IMAGENET_LAYOUT}.")
    folders = _subset_folders(train, subset)
    # ImageNet's own test/ has no labels.
    places = (root / name for name in ("val", "validation", "test"))
    test = next((place for place in places if _has_any(place, folders)), None)
    if test is None:
        flat = (root / "val").is_dir() and not any(p.is_dir() for p in (root / "val").iterdir())
        raise UserError(
            f"{root}/val holds images that are not sorted into folders by class; "
            f"expected is {IMAGENET_LAYOUT}."
            if flat
            else f"{root} has no val/ with the classes of {subset.name}; "
            f"expected is {IMAGENET_LAYOUT}."
        )
    names = subset.class_names
    listings = (
        _list_classes(root, train, folders, names),
        _list_classes(root, test, _subset_folders(test, subset), names),
    )
    return Source(
        name=_name_by_split(subset.name, subset.indices, *listings),
        class_names=names,
        channels=3,
        train=listings[0],
        test=listings[1],
        imagenet_indices=subset.indices,
        normalisation=IMAGENET,
    )


def _subset_folders(split: pathlib.Path, subset: Subset) -> list[str]:
    """The folder of each class: by WordNet id, else by index."""
    folders, missing = [], []
    for index in subset.indices:
        wnid = imagenet_classes()[index].wnid
        spellings = (wnid, str(index), f"{index:03d}", f"{index:04d}", f"{index:05d}")
        found = next((s for s in spellings if (split / s).is_dir()), None)
        if found is None:
            missing.append(f"{wnid} ({imagenet_classes()[index].name})")
        folders.append(found or wnid)
    if missing and len(missing) < len(folders):
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise UserError(f"{split} has no folder for {len(missing)} of the classes: {shown}.")
    if missing:
        raise UserError(
            f"{split} has none of the class folders of {subset.name}; expected is "
            f"{IMAGENET_LAYOUT}."
        )
    return folders


def _open_all(root: pathlib.Path, name: str) -> Source:
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{root} has no train/; expected is {LAYOUT}.")
    folders = sorted(p.name for p in train.iterdir() if p.is_dir() and p.name[0] != ".")
    if not folders:
        raise UserError(f"{train} has no class folders; expected is {LAYOUT}.")
    benchmark = find_benchmark(name) if name else None
    class_names = _class_names(root, folders)
    known = index_by_wnid()
    indices = tuple(known[f] for f in folders) if known.keys() >= set(folders) else None
    name = benchmark.name if benchmark is not None else name or root.resolve().name
    listings = (
        _list_classes(root, train, folders, class_names),
        _test_listing(root, folders, class_names),
    )
    return Source(
        name=_name_by_split(name, indices, *listings),
        class_names=class_names,
        channels=3,
        train=listings[0],
        test=listings[1],
        imagenet_indices=indices,
        normalisation=IMAGENET,
        # People's own photographs stand as their camera says; ImageNet's are read as everybody
        # does.
        upright=indices is None,
    )


def _test_listing(root: pathlib.Path, folders: list[str], class_names: tuple[str, ...]) -> Listing:
    if (root / "val" / _ANNOTATIONS).is_file() and not _has_any(root / "val", folders):
        return _list_annotated(root, folders, class_names)
    test = next((root / n for n in _TEST_NAMES if _has_any(root / n, folders)), None)
    if test is None:
        raise UserError(f"{root} has neither val/ nor test/ with the classes of train/: {LAYOUT}.")
    extra = sorted(
        p.name
        for p in test.iterdir()
        if p.is_dir() and p.name[0] != "." and p.name not in set(folders)
    )
    if extra:
        raise UserError(f"{test} has classes that train/ lacks: {', '.join(extra[:5])}.")
    return _list_classes(root, test, folders, class_names)


def _has_any(split: pathlib.Path, folders: list[str]) -> bool:
    return any((split / folder).is_dir() for folder in folders)


def _class_names(root: pathlib.Path, folders: list[str]) -> tuple[str, ...]:
    """Names from words.txt (Tiny-ImageNet's file), from ImageNet's list, or the folders' own."""
    words = {}
    if (root / "words.txt").is_file():
        for line in (root / "words.txt").read_text(errors="replace").splitlines():
            wnid, _, meaning = line.partition("\t")
            words[wnid] = meaning.split(",")[0].strip()
    for wnid, index in index_by_wnid().items():
        words.setdefault(wnid, imagenet_classes()[index].name)
    return distinct([words.get(folder) or folder for folder in folders], folders)


def _name_by_split(name: str, indices, train: Listing, test: Listing) -> str:
    """The set's name, another one where its training images are fast.ai's.

    fast.ai's Imagenette and ImageWoof put most of ILSVRC's validation images into train/.

    Raises:
        UserError: validation images of ILSVRC are in both splits, as when fast.ai's train/ lies
            beside ILSVRC's own val/.
    """

    def of_validation(listing: Listing) -> set[str]:
        files = (os.path.basename(listing.name(i)) for i in range(len(listing)))
        return {os.path.splitext(f)[0] for f in files if f.startswith(_OF_VALIDATION)}

    marks = of_validation(train)
    both = marks & of_validation(test)
    if both:
        raise UserError(
            f"{len(both)} of the test images are in train/ too, {min(both)} for one: this is "
            "fast.ai's train/ beside ILSVRC's own val/. Take both from fast.ai, or both from "
            "ILSVRC."
        )
    return fastai_name(name, indices) if marks else name


def _list_classes(
    root: pathlib.Path, split: pathlib.Path, folders: list[str], class_names: tuple[str, ...]
) -> Listing:
    files, labels = [], []
    for label, folder in enumerate(folders):
        found = sorted(_image_files(split / folder))
        files += found
        labels += [label] * len(found)
    return _listing(root, split.name, files, labels, class_names)


def _list_annotated(
    root: pathlib.Path, folders: list[str], class_names: tuple[str, ...]
) -> Listing:
    annotations = root / "val" / _ANNOTATIONS
    label_of = {folder: label for label, folder in enumerate(folders)}
    files, labels = [], []
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 2 or fields[1] not in label_of:
            raise UserError(f"{annotations}, line {number}: no class of train/ in {line!r}.")
        files.append(str(root / "val" / "images" / fields[0]))
        labels.append(label_of[fields[1]])
    return _listing(root, "val", files, labels, class_names)


def _image_files(folder: pathlib.Path):
    for place, _, names in os.walk(folder):
        for name in names:
            if name[0] != "." and os.path.splitext(name)[1].lower() in _EXTENSIONS:
                yield os.path.join(place, name)


def _listing(
    root: pathlib.Path,
    split: str,
    files: list[str],
    label_list: list[int],
    class_names: tuple[str, ...],
) -> Listing:
    content, kept, passed_over = [], [], []
    for position, (path, label) in enumerate(zip(files, label_list)):
        try:
            status = os.stat(path)
        except OSError:  # reading it will name it
            content.append([os.path.relpath(path, root), label])
            kept.append(position)
            continue
        if stat.S_ISREG(status.st_mode):
            # By its time an image of the same length is known as another.
            relative = os.path.relpath(path, root)
            content.append([relative, status.st_size, status.st_mtime_ns, label])
            kept.append(position)
        else:
            passed_over.append(path)  # opening a FIFO would wait for ever
    if passed_over:
        warnings.warn(
            f"{len(passed_over)} images of the {split} split of {root} are passed over, for they "
            f"are no files: {', '.join(passed_over[:3])}.",
            stacklevel=2,
        )
    files = [files[i] for i in kept]
    labels = check_labels(np.array(label_list, np.int32)[kept], class_names, split, root)

    def read(i: int) -> bytes:
        with open(files[i], "rb") as file:
            return file.read()

    return Listing(labels=labels, read=read, name=files.__getitem__, identity=digest_of(content))
