"""From `config.data` to a `Dataset`."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

from edf_jax.data import arrays, cluttered_digits, folder, tfds
from edf_jax.data.cache import default_cache_dir, write_atomically
from edf_jax.data.catalogue import find_benchmark
from edf_jax.data.dataset import Dataset, DatasetInfo, Split
from edf_jax.data.decode import ImageSettings
from edf_jax.data.held_out import hold_out
from edf_jax.data.normalisation import IMAGENET, Normalisation
from edf_jax.data.preprocess import prepare
from edf_jax.data.sources import Listing, MissingData, Source, check_labels, digest_of
from edf_jax.data.subsets import chosen_subset
from edf_jax.runtime.errors import UserError

# By `data.source`: (config.data, cache folder) -> what is there, not yet read. The cluttered digits
# are made, not read. `extending.add_source` adds to these.
OPENERS: dict[str, Callable[[Any, pathlib.Path], Source]] = {
    "tfds": tfds.open_tfds,
    "folder": lambda config, cache_dir: folder.open_folder(config),
    "idx": lambda config, cache_dir: arrays.open_idx(config),
    "npz": lambda config, cache_dir: arrays.open_npz(config),
}
RESIZES = ("squash", "crop")


def load_dataset(data_config, *, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Reads, prepares or makes the dataset that `data_config` asks for.

    Prepared images are kept in the data cache; the next call finds them there.

    Args:
        data_config: an object with the attributes of `config.data`: source, name, path, subset,
          class_list, resolution (0: the images' own), zca, resize, antialias, cache_dir, workers,
          held_out;
          for the cluttered digits seed, difficulty, composites and test_composites.
        progress: called with (images done, images in all).

    Raises:
        UserError: the data is not there or not usable; the message says what to do.
    """
    check_settings(data_config)
    of_digits = data_config.source == "cluttered_digits"
    read = _make_digits if of_digits else _read_source
    train, test, content, about = read(data_config, progress)
    if data_config.zca:
        about["normalisation"] = _whitening(train, content, find_cache_dir(data_config))
    elif about["normalisation"] is None:
        about["normalisation"] = Normalisation.measured(train.images)
    info = DatasetInfo(
        image_shape=tuple(train.images.shape[1:]),
        fingerprint=digest_of([*content, bool(data_config.zca)]),
        **about,
    )
    dataset, share = Dataset(train, test, info), data_config.held_out
    if not share:
        return dataset
    return hold_out(dataset, share, copies=data_config.composites if of_digits else 1)


# Training and test images, all that decides them, and what else `DatasetInfo` says.
_Read = tuple[Split, Split, list, dict[str, Any]]


def _read_source(data_config, progress) -> _Read:
    cache_dir = find_cache_dir(data_config)
    source = open_source(data_config, cache_dir)
    settings = ImageSettings(
        resolution=data_config.resolution,
        resize=data_config.resize,
        antialias=data_config.antialias,
        channels=source.channels,
        upright=source.upright,
    )
    done, total = 0, len(source.train) + len(source.test)

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    def prepared(listing: Listing, split: str) -> tuple[Split, str]:
        side = settings.resolution
        if listing.images is not None and (not side or listing.images.shape[1:3] == (side, side)):
            report(len(listing))
            return Split(listing.images, listing.labels), listing.identity
        return prepare(
            listing,
            settings,
            name=f"{source.name}-{split}",
            class_names=source.class_names,
            cache_dir=cache_dir,
            workers=data_config.workers,
            progress=report,
        )

    train, train_digest = prepared(source.train, "train")
    test, test_digest = prepared(source.test, "test")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"{source.name}: images are {list(train.images.shape[1:])} in train but "
            f"{list(test.images.shape[1:])} in test; set data.resolution."
        )
    about = {
        name: getattr(source, name)
        for name in ("name", "class_names", "imagenet_indices", "normalisation")
    }
    return train, test, [train_digest, test_digest, source.class_names], about


def _make_digits(data_config, progress) -> _Read:
    keys = ("resolution", "difficulty", "composites", "test_composites", "seed")
    settings = {key: getattr(data_config, key) for key in keys}
    train, test = cluttered_digits.make_splits(**settings, progress=progress)
    content = [settings, cluttered_digits.VERSION, cluttered_digits.sources_digest()]
    about = {
        "name": "cluttered_digits",
        "class_names": cluttered_digits.CLASS_NAMES,
        "imagenet_indices": None,
        "normalisation": IMAGENET,
    }
    return Split(*train), Split(*test), content, about


def check_settings(data_config) -> None:
    """Refuses values that no source can use.

    Raises:
        UserError: names the key, the value and what would do.
    """
    sources = ("cluttered_digits", *OPENERS)
    if data_config.source not in sources:
        raise UserError(
            f"data.source={data_config.source!r} is unknown; one of {', '.join(sources)}."
        )
    if data_config.source == "cluttered_digits":
        cluttered_digits.check_settings(
            data_config.resolution,
            data_config.difficulty,
            data_config.composites,
            data_config.test_composites,
        )
        return
    if data_config.resolution < 0:
        raise UserError(
            f"data.resolution={data_config.resolution} is no size; 0 keeps the images' own."
        )
    of_imagenet = chosen_subset(data_config) is not None or (
        data_config.source == "tfds"
        and tfds.tfds_name(data_config).startswith(("imagenet", "imagewoof"))
    )
    if of_imagenet and not data_config.resolution:
        raise UserError("data.resolution=0: ImageNet's images differ in size; 128 is usual.")
    if data_config.resize not in RESIZES:
        raise UserError(f"data.resize={data_config.resize!r} is unknown; 'squash' or 'crop'.")


def find_cache_dir(data_config) -> pathlib.Path:
    """`data.cache_dir`, or the default."""
    return pathlib.Path(data_config.cache_dir or default_cache_dir()).expanduser().absolute()


def open_source(data_config, cache_dir: pathlib.Path) -> Source:
    """Lists the images of a source, without decoding any.

    Raises:
        UserError: the data is not there, incomplete or of another form.
    """
    try:
        source = OPENERS[data_config.source](data_config, cache_dir)
    except MissingData as missing:
        raise MissingData(f"{missing} {how_to_get(data_config)}") from None
    for name in source.class_names:
        if not name.isprintable():
            raise UserError(
                f"{source.name}: the name of a class, {ascii(name)}, can't be written (is it not "
                "UTF-8, or of several lines?); rename it."
            )
    # Of a source of someone's own they are not checked yet.
    for split, listing in (("train", source.train), ("test", source.test)):
        check_labels(listing.labels, source.class_names, split, source.name)
    return source


def how_to_get(data_config) -> str:
    """One sentence: where the images come from and how they must lie."""
    benchmark = find_benchmark(data_config.name) if data_config.name else None
    if data_config.source == "tfds":
        told = f"Prepare it: {tfds.preparing_command(data_config)}"
        if tfds.tfds_name(data_config).startswith("imagenet2012"):
            told += (
                " (after putting ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into "
                "downloads/manual/ there); or set --config.data.source=folder and "
                f"--config.data.path to {folder.IMAGENET_LAYOUT}"
            )
        return told + "."
    if chosen_subset(data_config) is not None:
        return (
            "Download ILSVRC-2012 from image-net.org and set --config.data.path to that folder; "
            "or set --config.data.source=tfds --config.data.name=imagenet2012 after "
            "'tfds build imagenet2012 --file_format=array_record'."
        )
    if benchmark is not None and benchmark.name == "tiny_imagenet":
        return (
            "Unpack cs231n.stanford.edu/tiny-imagenet-200.zip and set --config.data.path to its "
            "folder."
        )
    if benchmark is not None and benchmark.tfds:
        packaged = benchmark.name == "fashion_mnist" and data_config.source == "idx"
        return (
            f"Set --config.data.path, or --config.data.source=tfds after "
            f"'tfds build {benchmark.tfds} --file_format=array_record'"
            + (", or install Debian's package dataset-fashion-mnist." if packaged else ".")
        )
    return "Set --config.data.path to it."


def _whitening(train: Split, content: list, cache_dir: pathlib.Path) -> Normalisation:
    """ZCA of the training images; what it is is kept beside them, so that it is fitted once."""
    record = cache_dir / f"zca_of_{digest_of(content)[:32]}.json"
    if record.exists():
        try:
            known = Normalisation.from_json(record.read_text(), str(cache_dir))
            if known.zca is not None:
                known.zca.load()
                return known
        except (UserError, ValueError, KeyError, TypeError):
            warnings.warn(f"{record} or its matrix is damaged; it is made again.", stacklevel=2)
            record.unlink()
    fitted = Normalisation.fit_zca(train.images, str(cache_dir))
    write_atomically(record, lambda file: file.write(fitted.to_json().encode()))
    return fitted
