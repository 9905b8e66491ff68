"""Data sets in their real layouts, a few small images each, made on the fly."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
from types import SimpleNamespace

import numpy as np
from PIL import Image


def data_config(**changes) -> SimpleNamespace:
    """`config.data` with its usual values."""
    usual = {
        "source": "folder",
        "name": "",
        "path": "",
        "subset": "",
        "class_list": "",
        "resolution": 16,
        "zca": False,
        "resize": "squash",
        "antialias": True,
        "cache_dir": "",
        "workers": 2,
        "seed": 0,
        "difficulty": 0.5,
        "composites": 1,
        "test_composites": 1,
        "held_out": 0.0,
    }
    assert changes.keys() <= usual.keys()
    return SimpleNamespace(**usual | {k: str(v) if k == "path" else v for k, v in changes.items()})


def photograph(seed: int, height: int = 20, width: int = 26) -> np.ndarray:
    """Smooth uint8 `[height, width, 3]`, another one for each seed."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    waves = generator.uniform(0.5, 2.0, (2, 3))
    return ((np.sin(waves[0] * 6 * x + waves[1] * 6 * y + seed) + 1) * 127).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_folder(root, classes, *, train: int = 3, test: int = 2, test_name: str = "val") -> None:
    """An ImageFolder: `train/<class>/*.JPEG` and `<test_name>/<class>/*.JPEG`.

    The brightness of the first pixel row says the class, so that labels can be checked.
    """
    for split, count in (("train", train), (test_name, test)):
        for position, name in enumerate(classes):
            folder = pathlib.Path(root) / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = marked(position, seed=100 * position + i)
                (folder / f"{name}_{i}.JPEG").write_bytes(jpeg(image))


def marked(position: int, seed: int) -> np.ndarray:
    """A photograph whose upper half is a grey that says `position` (up to 12)."""
    image = photograph(seed)
    image[: len(image) // 2] = 20 * position
    return image


def marks(images: np.ndarray) -> np.ndarray:
    """The positions that `marked` wrote, `[N]`."""
    corner = np.asarray(images)[:, :4, :4].astype(float)
    return np.rint(corner.mean(axis=(1, 2, 3)) / 20).astype(int)


def write_tfds(
    data_dir, name, labels_of_split, label_names, *, grey=False, config=None, files=None
) -> None:
    """A set as `tfds build --file_format=array_record` leaves it; record i is marked i % 10."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils.lazy_imports_utils import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = pathlib.Path(data_dir) / name / (config or "") / "1.0.0"
    folder.mkdir(parents=True)
    shape = (28, 28, 1) if grey else (None, None, 3)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, encoding_format="png" if grey else "jpeg"),
            "label": tfds.features.ClassLabel(names=list(label_names)),
            "file_name": tfds.features.Text(),
        }
    )
    features.save_config(folder)
    splits = []
    for split, labels in labels_of_split.items():
        shards = np.array_split(np.arange(len(labels)), 2)
        size = 0
        for number, shard in enumerate(shards):
            path = folder / f"{name}-{split}.array_record-{number:05d}-of-00002"
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            for i in shard:
                example = tf_example_pb2.Example()
                image = marked(int(i) % 10, seed=int(i))
                encoded = jpeg(image)
                if grey:
                    buffer = io.BytesIO()
                    Image.fromarray(image).convert("L").resize((28, 28)).save(buffer, "PNG")
                    encoded = buffer.getvalue()
                example.features.feature["image"].bytes_list.value.append(encoded)
                example.features.feature["label"].int64_list.value.append(int(labels[i]))
                file_name = (files[split][i] if files else f"{split}_{i}").encode()
                example.features.feature["file_name"].bytes_list.value.append(file_name)
                record = example.SerializeToString()
                size += len(record)
                writer.write(record)
            writer.close()
        splits.append(
            {
                "name": split,
                "shardLengths": [str(len(shard)) for shard in shards],
                "numBytes": str(size),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    record = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": "array_record",
        "moduleName": f"tensorflow_datasets.{name}",
        "splits": splits,
    }
    if config:
        record["configName"] = config
    (folder / "dataset_info.json").write_text(json.dumps(record))


def write_idx(folder, *, compressed: bool, train: int = 40, test: int = 20, side: int = 28):
    """MNIST's four files; returns what is in them: (train images, labels, test images, labels)."""
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    written = []
    for prefix, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, side, side), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            path = pathlib.Path(folder) / f"{prefix}-{kind}-ubyte"
            content = header + array.tobytes()
            if compressed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
        written += [images, labels]
    return written
