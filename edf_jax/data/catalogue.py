"""The benchmarks by name: class names, published counts, shapes, constants."""

from __future__ import annotations

import dataclasses

from edf_jax.data.normalisation import CIFAR, FASHION_MNIST, IMAGENET, MNIST, SVHN, Normalisation
from edf_jax.data.subsets import find_subset

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""
_FASHION = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

# Images of a class in ILSVRC-2012: 732 to 1,300 for training, exactly 50 for validation.
IMAGENET_TRAIN_PER_CLASS = 1300
IMAGENET_TEST_PER_CLASS = 50


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A published set.

    Attributes:
        name: as tables show it.
        class_names: by label.
        image_shape: `(H, W, C)` as published; zeros where images differ.
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
    tfds: str = ""


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in text.split())


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("cifar10", _words(_CIFAR10), (32, 32, 3), 50_000, 10_000, CIFAR, "cifar10"),
        Benchmark("cifar100", _words(_CIFAR100), (32, 32, 3), 50_000, 10_000, CIFAR, "cifar100"),
        Benchmark("mnist", _DIGITS, (28, 28, 1), 60_000, 10_000, MNIST, "mnist"),
        Benchmark(
            "fashion_mnist", _FASHION, (28, 28, 1), 60_000, 10_000, FASHION_MNIST, "fashion_mnist"
        ),
        Benchmark("svhn_cropped", _DIGITS, (32, 32, 3), 73_257, 26_032, SVHN, "svhn_cropped"),
        # The class names come with the data (words.txt).
        Benchmark(
            "tiny_imagenet",
            tuple(f"class {i}" for i in range(200)),
            (64, 64, 3),
            100_000,
            10_000,
            IMAGENET,
        ),
    )
}
_ALIASES = {
    "cifar_10": "cifar10",
    "cifar_100": "cifar100",
    "fashionmnist": "fashion_mnist",
    "svhn": "svhn_cropped",
    "tinyimagenet": "tiny_imagenet",
    "tiny": "tiny_imagenet",
}

# fast.ai's sets: their images of ImageNet are split their own way.
FASTAI_COUNTS = {"imagenette": (9_469, 3_925), "imagewoof": (9_025, 3_929)}
_FASTAI = "_fastai"


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


def find_benchmark(name: str) -> Benchmark | None:
    """A benchmark by its name ('cifar10', 'CIFAR-10', 'svhn' ...), or None."""
    key = name.lower().replace("-", "_")
    return BENCHMARKS.get(_ALIASES.get(key, key))
