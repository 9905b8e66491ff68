"""The benchmarks by name: class names, published counts, shapes, constants."""

from __future__ import annotations

import dataclasses
import json

from edf_jax.data import normalisation
from edf_jax.data.normalisation import Normalisation
from edf_jax.data.subsets import find_subset, package_text

# Images of a class in ILSVRC-2012: 732 to 1,300 for training, exactly 50 for validation.
IMAGENET_TRAIN_PER_CLASS = 1300
IMAGENET_TEST_PER_CLASS = 50
# fast.ai's sets: their images of ImageNet are split their own way.
FASTAI_COUNTS = {"imagenette": (9_469, 3_925), "imagewoof": (9_025, 3_929)}
_FASTAI = "_fastai"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A published set.

    Attributes:
        name: as tables show it.
        class_names: by label.
        image_shape: `(H, W, C)` as published.
        train, test: how many images.
        normalisation: the published constants.
        tfds: its name in TensorFlow Datasets, or ''.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: int
    test: int
    normalisation: Normalisation
    tfds: str


def _read(name: str, fields: dict) -> Benchmark:
    names = fields["class_names"]
    if isinstance(names, int):  # they come with the data
        names = [f"class {label}" for label in range(names)]
    lists = {"class_names": tuple(names), "image_shape": tuple(fields["image_shape"])}
    constants = getattr(normalisation, fields["normalisation"])
    return Benchmark(**{**fields, **lists, "name": name, "normalisation": constants})


_LISTED = json.loads(package_text("benchmarks.json"))
_BENCHMARKS = {name: _read(name, fields) for name, fields in _LISTED.items()}
_ALIASES = {
    "cifar_10": "cifar10",
    "cifar_100": "cifar100",
    "fashionmnist": "fashion_mnist",
    "svhn": "svhn_cropped",
    "tinyimagenet": "tiny_imagenet",
    "tiny": "tiny_imagenet",
}


def find_benchmark(name: str) -> Benchmark | None:
    """A benchmark by its name ('cifar10', 'CIFAR-10', 'svhn' ...), or None."""
    key = name.lower().replace("-", "_")
    return _BENCHMARKS.get(_ALIASES.get(key, key))


def fastai_name(name: str, imagenet_indices=None) -> str:
    """What a set with fast.ai's split is called, so that nobody takes it for the published one.

    Args:
        name: of the set as it would be called otherwise.
        imagenet_indices: of its classes in any order; where they are those of Imagenette or
            ImageWoof, that decides the name.
    """
    for known in FASTAI_COUNTS:
        if sorted(find_subset(known).indices) == sorted(imagenet_indices or ()):
            name = known
    return name if is_fastai(name) else name + _FASTAI


def is_fastai(name: str) -> bool:
    """Whether a set of this name has fast.ai's split, not the published one."""
    return name.endswith(_FASTAI)
