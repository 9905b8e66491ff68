"""Sets prepared by TensorFlow Datasets as array_record, read without TensorFlow."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from edf_jax.data.cache import write_atomically
from edf_jax.data.catalogue import (
    FASTAI_COUNTS,
    fastai_name,
    find_benchmark,
    is_of_validation,
    name_by_split,
)
from edf_jax.data.normalisation import IMAGENET
from edf_jax.data.pipeline import in_workers
from edf_jax.data.sources import (
    Listing,
    MissingData,
    Source,
    check_labels,
    class_numbers,
    digest_of,
    distinct,
)
from edf_jax.data.subsets import Subset, chosen_subset, index_by_wnid
from edf_jax.runtime.errors import UserError

_LABEL_BATCH = 64  # records read at once in the pass over the labels
_FILE_NAMES = ("file_name", "filename", "image/filename")  # features by which sets keep them


def tfds_name(data_config) -> str:
    """The TFDS set that `data.name` stands for; ImageNet's for a subset of it."""
    name = data_config.name.lower().replace("-", "_")
    benchmark = find_benchmark(name)
    if benchmark is not None and benchmark.tfds:
        return benchmark.tfds
    own, _, version = name.partition("/")
    own = own.removesuffix("_fastai")
    if own in FASTAI_COUNTS:
        return f"{own}/{version}" if version else own
    return "imagenet2012" if data_config.subset or data_config.class_list else name


def data_dir(data_config) -> pathlib.Path:
    """`data.path`, or where TFDS prepares sets by default."""
    path = data_config.path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(path).expanduser()


def preparing_command(data_config) -> str:
    """The commands that prepare the set."""
    install = "pip install 'edf_jax[tfds-prepare]'"
    command = f"{install} && tfds build {tfds_name(data_config)} --file_format=array_record"
    if data_config.path or os.environ.get("TFDS_DATA_DIR"):
        command += f" --data_dir={data_dir(data_config)}"
    return command


def find_prepared(data_config) -> pathlib.Path | None:
    """The folder of the newest version that is prepared as array_record, or None.

    Raises:
        UserError: the set is prepared, but in another format.
    """
    found = {}
    for path in (data_dir(data_config) / tfds_name(data_config)).glob("**/dataset_info.json"):
        version = path.parent.name
        if all(part.isdigit() for part in version.split(".")):
            try:
                found[path.parent] = json.loads(path.read_text()).get("fileFormat", "tfrecord")
            except ValueError:
                found[path.parent] = "unreadable dataset_info.json"
    readable = [folder for folder, format_ in found.items() if format_ == "array_record"]
    if readable:
        # Full-size images first where a set has several configs (imagenette), then by version.
        return max(
            readable,
            key=lambda p: (
                p.parent.name == "full-size-v2",
                "full-size" in p.parent.name,
                [int(part) for part in p.name.split(".")],
            ),
        )
    if found:
        folder, format_ = next(iter(found.items()))
        raise UserError(
            f"{folder} is prepared as {format_}, which only TensorFlow reads; prepare it as "
            f"array_record: {preparing_command(data_config)}"
        )
    return None


def open_tfds(data_config, cache_dir: pathlib.Path) -> Source:
    """Lists a prepared set: one pass over its labels, no image decoded.

    Args:
        data_config: its `name`, `path`, `subset` and `class_list`. A subset chooses ImageNet
            classes by their WordNet ids, which are the set's label names.
        cache_dir: keeps the labels, so that the pass is made once.

    Raises:
        UserError: the set is not prepared, in another format, or lacks what is asked for.
    """
    folder = find_prepared(data_config)
    name = tfds_name(data_config)
    if folder is None:
        raise MissingData(f"The TFDS set {name} is not in {data_dir(data_config)}.")
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            "data.source=tfds needs the package: pip install tensorflow-datasets array_record"
        ) from None
    builder = tfds.builder_from_directory(folder)
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(f"{folder} is no set of images with a 'label'; it has {list(features)}.")
    label_names = tuple(features["label"].names)
    classes = _choose_classes(data_config, name, label_names, folder)
    positions = classes.pop("positions")
    listings, files = [], []
    for split in ("train", _test_split(builder, name)):
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        labels, validation = _labels(source, folder, split, cache_dir)
        files.append(validation)
        labels = class_numbers(labels, len(label_names), f"the {split} split of {folder}")
        keep = np.flatnonzero(np.isin(labels, positions))
        label_of = {position: label for label, position in enumerate(positions)}
        ours = np.array([label_of[label] for label in labels[keep].tolist()], np.int32)
        ours = check_labels(ours, classes["class_names"], split, folder)
        listings.append(_listing(source, keep, ours, folder, split))
    classes["name"] = name_by_split(classes["name"], classes.get("imagenet_indices"), *files)
    return Source(
        channels=1 if features["image"].shape[-1] == 1 else 3,
        train=listings[0],
        test=listings[1],
        **classes,
    )


def _choose_classes(data_config, name: str, label_names, folder: pathlib.Path) -> dict[str, Any]:
    """Which labels of the set are used, in the order of ours, and what `Source` says of them."""
    benchmark, subset = find_benchmark(name), chosen_subset(data_config)
    positions: tuple[int, ...] = tuple(range(len(label_names)))
    known = index_by_wnid()
    if subset is not None or known.keys() >= set(label_names):
        if subset is None:
            subset = Subset(name, tuple(known[label] for label in label_names))
        else:
            subset.warn_of_repetitions()
            positions = _subset_positions(subset, label_names, folder)
        fastai = name.split("/")[0] in FASTAI_COUNTS
        return {
            "name": fastai_name(subset.name, subset.indices) if fastai else subset.name,
            "positions": positions,
            "class_names": subset.class_names,
            "imagenet_indices": subset.indices,
            "normalisation": IMAGENET,
        }
    if benchmark is None:
        names = distinct(label_names, [str(position) for position in positions])
        return {"name": name.split("/")[0], "positions": positions, "class_names": names}
    if len(benchmark.class_names) != len(label_names):
        raise UserError(
            f"{folder} has {len(label_names)} classes, but {name} has "
            f"{len(benchmark.class_names)}."
        )
    return {
        "name": benchmark.name,
        "positions": positions,
        "class_names": benchmark.class_names,
        "normalisation": benchmark.normalisation,
    }


def _subset_positions(subset: Subset, label_names, folder: pathlib.Path) -> tuple[int, ...]:
    position_of = {label: position for position, label in enumerate(label_names)}
    missing = [wnid for wnid in subset.wnids if wnid not in position_of]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(subset.wnids)} classes of {subset.name} "
            f"({', '.join(missing[:5])}): its labels are not ILSVRC-2012's WordNet ids."
        )
    return tuple(position_of[wnid] for wnid in subset.wnids)


def _test_split(builder, name: str) -> str:
    # ImageNet's own test split has no labels.
    order = ("validation", "test") if name.startswith("imagenet") else ("test", "validation")
    for split in order:
        if split in builder.info.splits:
            return split
    raise UserError(f"{builder.data_path} has no test split; it has {list(builder.info.splits)}.")


def _labels(
    source, folder: pathlib.Path, split: str, cache_dir: pathlib.Path
) -> tuple[np.ndarray, list[str]]:
    """Labels `[N]` as they are, and the names of images that are of ILSVRC's validation."""
    identity = digest_of([_record_files(folder, split), len(source)])
    path = cache_dir / f"tfds_labels_{identity[:32]}.npz"  # zipped, with a checksum
    with contextlib.suppress(Exception):  # NumPy and zipfile raise nearly anything of a damaged one
        with np.load(path, allow_pickle=False) as known:
            return known["labels"], known["validation"].tolist()

    def read(batch: int) -> list[tuple[int, str]]:
        first = batch * _LABEL_BATCH
        records = source.__getitems__(range(first, min(first + _LABEL_BATCH, len(source))))
        return [(int(record["label"]), _file_name(record)) for record in records]

    batches = in_workers(read, range(-(-len(source) // _LABEL_BATCH)))
    found = [entry for batch in batches for entry in batch]
    labels = np.array([label for label, _ in found], np.int64)
    validation = [name for _, name in found if is_of_validation(name)]
    marked = np.array(validation, str)
    write_atomically(path, lambda file: np.savez(file, labels=labels, validation=marked))
    return labels, validation


def _file_name(record: Mapping[str, Any]) -> str:
    """What an image's file was called, where the set keeps that."""
    names = (record.get(feature) for feature in _FILE_NAMES)
    return next((os.fsdecode(name) for name in names if name is not None), "")


def _record_files(folder: pathlib.Path, split: str) -> list:
    """What identifies the records of a split: set, config, version, files with sizes and times."""
    files = sorted(folder.glob(f"*-{split}.*array_record*"))
    stats = [(file.name, file.stat()) for file in files]
    return [*folder.parts[-3:], *([name, s.st_size, s.st_mtime_ns] for name, s in stats)]


def _listing(source, keep, labels, folder: pathlib.Path, split: str) -> Listing:
    return Listing(
        labels=labels,
        read=lambda i: source[int(keep[i])]["image"],
        name=lambda i: f"record {keep[i]} of split {split} of {folder}",
        identity=digest_of([_record_files(folder, split), keep.tolist(), labels.tolist()]),
    )
