"""What a run would read, told without decoding or needing any of it."""

from __future__ import annotations

import dataclasses
import json

from edf_jax.data import cluttered_digits, tfds
from edf_jax.data.catalogue import (
    FASTAI_COUNTS,
    IMAGENET_TEST_PER_CLASS,
    IMAGENET_TRAIN_PER_CLASS,
    fastai_name,
    find_benchmark,
)
from edf_jax.data.dataset import Classes
from edf_jax.data.decode import ImageSettings, Unreadable, decode
from edf_jax.data.load import (
    check_settings,
    find_cache_dir,
    how_to_get,
    open_source,
)
from edf_jax.data.normalisation import IMAGENET, Normalisation
from edf_jax.data.sources import MissingData, Source
from edf_jax.data.subsets import Subset, chosen_subset, find_subset, imagenet_classes
from edf_jax.runtime.errors import UserError

DIGITS_TRAIN, DIGITS_TEST = 1437, 360


@dataclasses.dataclass(frozen=True)
class DatasetPlan(Classes):
    """A dataset before it is read.

    Attributes:
        name, class_names, image_shape, imagenet_indices: as in `DatasetInfo`.
        normalisation: the published constants; None where they are measured or a ZCA matrix is
          fitted on the training images.
        num_train, num_test: images.
        counts: where the numbers come from: 'exact', 'counted', 'published' or 'approximate'.
        available: whether the images are there.
        location: where they are, or are expected.
        advice: '' if they are there; else one line: what is missing and how to get it.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalisation: Normalisation | None
    imagenet_indices: tuple[int, ...] | None
    num_train: int
    num_test: int
    counts: str
    available: bool
    location: str
    advice: str = ""


def describe_dataset(data_config) -> DatasetPlan:
    """The plan of `load_dataset(data_config)`.

    Counts what is there without decoding it (of a TFDS set only the published numbers are used:
    counting a subset would read all of it), and gives published numbers for the rest.

    Raises:
        UserError: impossible settings; or the data is not there and nothing was published about it.
    """
    check_settings(data_config)
    plan = {"cluttered_digits": _cluttered_digits, "tfds": _of_tfds}.get(
        data_config.source, _of_files
    )(data_config)
    if data_config.zca:
        plan = dataclasses.replace(plan, normalisation=None)
    if data_config.held_out:
        held = round(data_config.held_out * plan.num_train)
        # By class it may be a few images more or less.
        plan = dataclasses.replace(plan, num_train=plan.num_train - held, counts="approximate")
    return plan


def _cluttered_digits(data_config) -> DatasetPlan:
    side = data_config.resolution
    return DatasetPlan(
        name="cluttered_digits",
        class_names=cluttered_digits.CLASS_NAMES,
        image_shape=(side, side, 3),
        normalisation=IMAGENET,
        imagenet_indices=None,
        num_train=DIGITS_TRAIN * data_config.composites,
        num_test=DIGITS_TEST * data_config.test_composites,
        counts="exact",
        available=True,
        location="made from scikit-learn's digits and photographs",
    )


def _of_files(data_config) -> DatasetPlan:
    try:
        return _counted(data_config)
    except MissingData as missing:
        plan = _published(data_config)
        if plan is None:
            raise
        return dataclasses.replace(plan, advice=str(missing))


def _of_tfds(data_config) -> DatasetPlan:
    plan = _published(data_config)
    location = str(tfds.data_dir(data_config) / tfds.tfds_name(data_config))
    try:
        folder = tfds.find_prepared(data_config)
    except UserError as other_format:
        if plan is None:
            raise
        return dataclasses.replace(plan, location=location, advice=str(other_format))
    advice = f"The TFDS set is not in {location}. {how_to_get(data_config)}"
    if plan is None:
        if folder is None:
            raise MissingData(advice)
        return _counted(data_config)
    if folder is None:
        return dataclasses.replace(plan, location=location, advice=advice)
    counts = _tfds_counts(folder, data_config)
    return dataclasses.replace(plan, location=str(folder), available=True, **counts)


def _tfds_counts(folder, data_config) -> dict:
    """Numbers from the set's own record, where all of it is used."""
    fastai = tfds.tfds_name(data_config).startswith(tuple(FASTAI_COUNTS))
    if chosen_subset(data_config) is not None and not fastai:
        return {}
    record = json.loads((folder / "dataset_info.json").read_text())
    sizes = {s["name"]: sum(map(int, s["shardLengths"])) for s in record["splits"]}
    test = next((sizes[s] for s in ("test", "validation") if s in sizes), 0)
    return {"num_train": sizes.get("train", 0), "num_test": test, "counts": "counted"}


def _published(data_config) -> DatasetPlan | None:
    """What is known of a set from publications, as if its images were not there."""
    of_tfds = data_config.source == "tfds"
    name = tfds.tfds_name(data_config) if of_tfds else data_config.name
    fastai = name.split("/")[0] if of_tfds and name.startswith(tuple(FASTAI_COUNTS)) else ""
    subset = chosen_subset(data_config)
    if subset is None and fastai:
        subset = find_subset(fastai)
    if subset is None and of_tfds and name.startswith("imagenet2012"):
        subset = Subset("imagenet2012", tuple(range(len(imagenet_classes()))))
    side = data_config.resolution
    location = data_config.path or "(data.path is not set)"
    if subset is not None:
        subset.warn_of_repetitions()
        classes = len(subset.indices)
        counts = IMAGENET_TRAIN_PER_CLASS * classes, IMAGENET_TEST_PER_CLASS * classes
        if fastai:
            counts = FASTAI_COUNTS[fastai]
        return DatasetPlan(
            name=fastai_name(subset.name, subset.indices) if fastai else subset.name,
            class_names=subset.class_names,
            image_shape=(side, side, 3),
            normalisation=IMAGENET,
            imagenet_indices=subset.indices,
            num_train=counts[0],
            num_test=counts[1],
            counts="exact" if fastai else "approximate",
            available=False,
            location=location,
        )
    benchmark = find_benchmark(name) if name else None
    if benchmark is None:
        return None
    height, width, channels = benchmark.image_shape
    return DatasetPlan(
        name=benchmark.name,
        class_names=benchmark.class_names,
        image_shape=(side or height, side or width, channels),
        normalisation=benchmark.normalisation,
        imagenet_indices=None,
        num_train=benchmark.train,
        num_test=benchmark.test,
        counts="published",
        available=False,
        location=location,
    )


def _counted(data_config) -> DatasetPlan:
    source = open_source(data_config, find_cache_dir(data_config))
    return DatasetPlan(
        name=source.name,
        class_names=source.class_names,
        image_shape=_image_shape(data_config, source),
        normalisation=source.normalisation,
        imagenet_indices=source.imagenet_indices,
        num_train=len(source.train),
        num_test=len(source.test),
        counts="counted",
        available=True,
        location=data_config.path or source.train.name(0),
    )


def _image_shape(data_config, source: Source) -> tuple[int, int, int]:
    if data_config.resolution:
        return data_config.resolution, data_config.resolution, source.channels
    if source.train.images is not None:
        return tuple(source.train.images.shape[1:])
    settings = ImageSettings(0, "squash", True, source.channels, source.upright)
    for i in range(len(source.train)):
        try:
            return decode(source.train.read(i), settings)[0].shape
        except (Unreadable, OSError):
            continue
    raise UserError(f"None of the images of {source.name} can be read.")
