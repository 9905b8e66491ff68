"""The forms that a distilled set is exported in, each a function that writes one.

Every form says, in a record beside the arrays, what a reader needs: the class names, what pixels
were normalised with, and the rate to train at.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edf_jax.data.sources import distinct
from edf_jax.distilled_set import DistilledSet
from edf_jax.runtime.errors import UserError

FORMAT = "edf_jax export 1"


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Soft labels: the softmax of `[n, C]` logits, float32."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


def as_uint8(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as whole numbers from 0 to 255."""
    return (pixels * 255 + 0.5).astype(np.uint8)


def set_name(distilled: DistilledSet) -> str:
    """The name of the data that the set stands for, as far as its config tells; for file names."""
    config = {"origin": distilled.origin.get("name", ""), **distilled.config}
    keys = ["origin", "data.subset", "data.name", "data.source"]
    if config.get("data.source") == "folder":
        keys.insert(2, "data.path")
    words = next((str(config[key]) for key in keys if config.get(key)), "")
    name = re.sub(r"[^a-z0-9]+", "_", pathlib.PurePath(words).name.lower()).strip("_")
    return name if name[:1].isalpha() else f"images_{name}".strip("_")


# Which of a run's sets it is, and by what images it was chosen.
CHOSEN = {
    "distilled": "the run's last, chosen by no images",
    "best_on_held_out": "the run's best on training images that were held out",
    "best_on_test": "the run's best on test images, which flatters its accuracy on them",
    "average": "the mean of the run's images over its iterations, chosen by no images",
}


def describe(
    distilled: DistilledSet, result: Mapping[str, Any], kind: str = ""
) -> dict[str, Any]:
    """The record: everything about a set that isn't an array.

    Args:
        distilled: the set.
        result: the run's `result.json`; accuracies are told if they are of this very set.
        kind: which of the run's sets it is, as `result.json` calls it; '' is the first whose step
            is the set's.
    """
    normalisation = distilled.normalisation
    pixels = as_uint8(distilled.pixels)
    error = np.asarray(normalisation.apply(pixels)) - distilled.images
    kind = kind or next((k for k in CHOSEN if result.get(f"{k}_step") == distilled.step), "")
    accuracy = {}
    if result.get(f"{kind}_step") == distilled.step:
        accuracy = {f: result[f"{kind}_{f}"] for f in ("mean", "std", "num_eval")}
    ids = distilled.origin.get("classes", ())
    if len(set(ids)) < len(distilled.class_names):
        ids = [str(label) for label in range(len(distilled.class_names))]
    names = [f"{k}_{f}" for k in ("random", "initial", "full") for f in ("mean", "std")]
    references = {k: result[k] for k in names if k in result}
    return {
        "format": FORMAT,
        "name": set_name(distilled),
        "num_images": len(distilled.images),
        "image_shape": list(distilled.images.shape[1:]),
        # What the set takes as it was learned; exports hold the decoded images.
        "stored": {
            "parametrisation": distilled.parametrisation.name,
            "factor": distilled.parametrisation.factor,
            "num_images": len(distilled.parameters),
            "dtype": "float32",
            **distilled.stored_bytes.figures(),
            "decoded_image_bytes": 4 * distilled.images.size,
        },
        # Two of ImageNet's classes are cranes; readers want different names.
        "class_names": list(distinct(distilled.class_names, ids)),
        "origin": dict(distilled.origin),
        "alpha": distilled.alpha,
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
        "zca": normalisation.zca.digest if normalisation.zca is not None else None,
        # What 8-bit pixels lose of the learned images, in units of the normalised ones.
        "rounding_rms": round(float(np.sqrt(np.mean(np.square(error)))), 6),
        "step": distilled.step,
        "chosen": CHOSEN.get(kind, ""),
        "accuracy": accuracy,
        "references": references if accuracy else {},
        "provenance": {k: result[k] for k in ("command", "versions", "hardware") if k in result},
        "config": dict(distilled.config),
    }


def encode_png(image: np.ndarray) -> bytes:
    """A PNG file of uint8 `[H, W, C]` with 1 or 3 channels.

    Raises:
        UserError: another number of channels.
    """
    from PIL import Image

    if image.shape[-1] not in (1, 3):
        raise UserError(
            f"PNG holds 1 or 3 channels, these images have {image.shape[-1]}: use --to=npz or torch"
        )
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


def write_images(distilled: DistilledSet, record: Mapping[str, Any], out: pathlib.Path) -> None:
    """`<class>/<number>.png` and `labels.csv` with the soft label of each file.

    Folders start with the class's number, so that readers that number classes by the order of
    their folders' names (torchvision's ImageFolder) give the right labels.
    """
    names = record["class_names"]
    digits = len(str(len(names) - 1))
    rows = []
    soft_labels = probabilities(distilled.labels)
    for i, (pixels, label) in enumerate(zip(as_uint8(distilled.pixels), distilled.classes)):
        safe = re.sub(r"[^\w-]+", "_", names[label]).strip("_")
        file = pathlib.PurePosixPath(f"{label:0{digits}d}_{safe}", f"{i:05d}.png")
        path = out / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(pixels))
        rows.append([file, label, names[label], *(f"{p:.9g}" for p in soft_labels[i])])
    with open(out / "labels.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        columns = [f"probability_{label}" for label in range(len(names))]
        writer.writerow(["file", "label", "class_name", *columns])
        writer.writerows(rows)


def write_npz(distilled: DistilledSet, record: Mapping[str, Any], out: pathlib.Path) -> None:
    """One file, readable without pickling: the arrays of the set, and the record as JSON text."""
    with open(out, "wb") as stream:
        np.savez(
            stream,
            images=distilled.images,
            pixels=distilled.pixels,
            labels=distilled.labels,
            probabilities=probabilities(distilled.labels),
            classes=distilled.classes,
            alpha=np.float32(distilled.alpha),
            class_names=np.asarray(record["class_names"]),
            mean=np.asarray(distilled.normalisation.mean, np.float32),
            std=np.asarray(distilled.normalisation.std, np.float32),
            record=np.asarray(json.dumps(record)),
        )


def write_torch(distilled: DistilledSet, record: Mapping[str, Any], out: pathlib.Path) -> None:
    """The three files of the official codes: `images_best.pt`, `labels_best.pt`, `lr_best.pt`.

    Normalised images `[n, C, H, W]`, label logits `[n, C]` and a scalar, all float32.

    Raises:
        UserError: PyTorch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "--to=torch needs PyTorch: pip install 'edf_jax[interop]', or use --to=npz"
        ) from error
    arrays = {
        "images": np.ascontiguousarray(distilled.images.transpose(0, 3, 1, 2)),
        "labels": distilled.labels,
        "lr": np.asarray(distilled.alpha),
    }
    for name, array in arrays.items():
        # PyTorch's own writing to a file hides what the disk says.
        content = io.BytesIO()
        torch.save(torch.tensor(array, dtype=torch.float32), content)
        (out / f"{name}_best.pt").write_bytes(content.getvalue())


def write_tfds(distilled: DistilledSet, record: Mapping[str, Any], out: pathlib.Path) -> None:
    """A prepared TFDS set with one split `train`, as array_record: needs no TensorFlow to read.

    Raises:
        UserError: tensorflow-datasets or array_record is missing.
    """
    try:
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.proto import tf_example_pb2
    except ImportError as error:
        raise UserError(
            "--to=tfds needs the packages: pip install tensorflow-datasets array_record"
        ) from error

    shape, classes = distilled.images.shape[1:], len(distilled.class_names)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=record["class_names"]),
            "soft_label": tfds.features.Tensor(shape=(classes,), dtype=np.float32),
        }
    )
    features.save_config(out)
    soft_labels = probabilities(distilled.labels)
    size = 0
    writer = ArrayRecordWriter(
        str(out / f"{record['name']}-train.array_record-00000-of-00001"), "group_size:1"
    )
    for i, pixels in enumerate(as_uint8(distilled.pixels)):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["image"].bytes_list.value.append(encode_png(pixels))
        feature["label"].int64_list.value.append(int(distilled.classes[i]))
        feature["soft_label"].float_list.value.extend(soft_labels[i].tolist())
        content = example.SerializeToString()
        size += len(content)
        writer.write(content)
    writer.close()
    info = {
        "name": record["name"],
        "version": "1.0.0",
        "description": f"{record['name']}, distilled to {record['num_images']} images by edf_jax.",
        "fileFormat": "array_record",
        "moduleName": f"tensorflow_datasets.{record['name']}",
        "splits": [
            {
                "name": "train",
                "shardLengths": [str(record["num_images"])],
                "numBytes": str(size),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
    (out / "dataset_info.json").write_text(json.dumps(info, indent=1))
