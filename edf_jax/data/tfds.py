"""Sets prepared by TensorFlow Datasets as array_record, read without TensorFlow."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

from edf_jax.data.catalogue import IMAGENETTE_FASTAI, find_benchmark
from edf_jax.data.normalisation import IMAGENET
from edf_jax.data.preprocess import in_workers
from edf_jax.data.sources import Listing, MissingData, Source, check_labels, digest_of
from edf_jax.data.subsets import Subset, chosen_subset, imagenet_classes, index_by_wnid
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

_LABEL_BATCH = 64  # records read at once in the pass over the labels


def tfds_name(data_config) -> str:
    """The TFDS set that `data.name` stands for; ImageNet's for a subset of it."""
    name = data_config.name.lower().replace("-", "_")
    benchmark = find_benchmark(name)
    if benchmark is not None and benchmark.tfds:
        return benchmark.tfds
    if name.split("/")[0] in ("imagenette", IMAGENETTE_FASTAI):
        return name.replace(IMAGENETTE_FASTAI, "imagenette")
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
    shape = features["image"].shape
    listings = []
    for split in ("train", _test_split(builder, name)):
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        labels = _labels(source, folder, split, cache_dir)
        keep = np.flatnonzero(np.isin(labels, classes.positions))
        label_of = np.full(max(labels.max(initial=0), max(classes.positions)) + 1, -1, np.int32)
        label_of[list(classes.positions)] = np.arange(len(classes.positions))
        kept = label_of[labels[keep]]
        check_labels(kept, classes.class_names, split, folder)
        listings.append(_listing(source, keep, kept, folder, split))
    return Source(
        name=classes.name,
        class_names=classes.class_names,
        channels=1 if shape[-1] == 1 else 3,
        train=listings[0],
        test=listings[1],
        imagenet_indices=classes.imagenet_indices,
        normalisation=classes.normalisation,
    )


class _Classes:
    """Which labels of the set are used, in the order of ours."""

    def __init__(self, name, positions, class_names, imagenet_indices, normalisation):
        self.name = name
        self.positions = positions
        self.class_names = class_names
        self.imagenet_indices = imagenet_indices
        self.normalisation = normalisation


def _choose_classes(data_config, name: str, label_names, folder: pathlib.Path) -> _Classes:
    benchmark = find_benchmark(name)
    subset = chosen_subset(data_config)
    if subset is not None:
        subset.warn_of_repetitions()
        positions = _subset_positions(subset, label_names, folder)
        table_name = IMAGENETTE_FASTAI if name.startswith("imagenette") else subset.name
        return _Classes(table_name, positions, subset.class_names, subset.indices, IMAGENET)
    everything = tuple(range(len(label_names)))
    known = index_by_wnid()
    if all(label in known for label in label_names):
        indices = tuple(known[label] for label in label_names)
        names = tuple(imagenet_classes()[i].name for i in indices)
        table_name = IMAGENETTE_FASTAI if name.startswith("imagenette") else name
        return _Classes(table_name, everything, names, indices, IMAGENET)
    if benchmark is not None:
        if len(benchmark.class_names) != len(label_names):
            raise UserError(
                f"{folder} has {len(label_names)} classes, but {name} has "
                f"{len(benchmark.class_names)}."
            )
        return _Classes(
            benchmark.name, everything, benchmark.class_names, None, benchmark.normalisation
        )
    return _Classes(name.split("/")[0], everything, label_names, None, None)


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


def _labels(source, folder: pathlib.Path, split: str, cache_dir: pathlib.Path) -> np.ndarray:
    identity = digest_of([_record_files(folder, split), len(source)])
    path = cache_dir / f"tfds_labels_{identity[:32]}.npy"
    try:
        labels = np.load(path, allow_pickle=False)
        if labels.shape == (len(source),) and labels.dtype == np.int32:
            return labels
    except (OSError, ValueError, EOFError):
        pass

    def read(batch: int) -> list[int]:
        first = batch * _LABEL_BATCH
        records = source.__getitems__(range(first, min(first + _LABEL_BATCH, len(source))))
        return [int(record["label"]) for record in records]

    batches = in_workers(read, range(-(-len(source) // _LABEL_BATCH)))
    labels = np.array([label for batch in batches for label in batch], np.int32)
    with storage.appearing(path) as made, open(made, "wb") as file:
        np.save(file, labels)
    return labels


def _record_files(folder: pathlib.Path, split: str) -> list:
    """What identifies the records of a split: set, config, version, files and their sizes."""
    files = sorted(folder.glob(f"*-{split}.*array_record*"))
    return [*folder.parts[-3:], *([f.name, f.stat().st_size] for f in files)]


def _listing(source, keep, labels, folder: pathlib.Path, split: str) -> Listing:
    return Listing(
        labels=labels,
        read=lambda i: source[int(keep[i])]["image"],
        name=lambda i: f"record {keep[i]} of split {split} of {folder}",
        identity=digest_of([_record_files(folder, split), keep.tolist(), labels.tolist()]),
    )
