"""Sets that come as arrays: idx files (the MNIST family) and .npz."""

from __future__ import annotations

import gzip
import pathlib
import warnings
import zlib

import numpy as np

from edf_jax.data.catalogue import find_benchmark
from edf_jax.data.sources import (
    Listing,
    MissingData,
    Source,
    check_labels,
    class_numbers,
    distinct,
    existing_folder,
)
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")
_IDX_FILES = {
    "train": ("train-images{}idx3-ubyte", "train-labels{}idx1-ubyte"),
    "test": ("t10k-images{}idx3-ubyte", "t10k-labels{}idx1-ubyte"),
}
_IDX_LAYOUT = "a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k- pair"
_NPZ_LAYOUT = "a .npz file with x_train, y_train, x_test and y_test"
_NPZ_KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)


def idx_folder(data_config) -> pathlib.Path:
    """The folder of the idx files: `data.path`, or Debian's for Fashion-MNIST.

    Raises:
        MissingData: there is none.
    """
    benchmark = find_benchmark(data_config.name)
    fashion = benchmark is not None and benchmark.name == "fashion_mnist"
    if not data_config.path and fashion and DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    folder = existing_folder(data_config.path, _IDX_LAYOUT)
    # torchvision keeps the files in <root>/<class of the dataset>/raw.
    for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        if _idx_file(place, _IDX_FILES["train"][0]) is not None:
            return place
    raise MissingData(
        f"data.path={data_config.path} holds no idx files; expected is {_IDX_LAYOUT}."
    )


def open_idx(data_config) -> Source:
    """MNIST, Fashion-MNIST and their like from idx files, gzipped or not.

    Raises:
        UserError: a file is missing, damaged or doesn't fit the others.
    """
    folder = idx_folder(data_config)
    arrays = []
    for split, patterns in _IDX_FILES.items():
        for pattern, dimensions in zip(patterns, (3, 1), strict=True):
            path = _idx_file(folder, pattern)
            if path is None:
                raise UserError(f"{folder} has no {pattern.format('-')} (of the {split} split).")
            arrays.append(read_idx(path, dimensions))
    return _from_arrays(data_config.name or folder.name, arrays, folder, None)


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """uint8 array of an idx file.

    Raises:
        UserError: it is not one, has other than `dimensions` dimensions, or is cut short.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again.") from None
    # Two zero bytes, the type (8: unsigned byte), the number of dimensions, then each as uint32.
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < 4 + 4 * dimensions:
        raise UserError(f"{path} is not an idx file of bytes in {dimensions} dimension(s).")
    shape = tuple(np.frombuffer(content, ">u4", count=dimensions, offset=4).tolist())
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != np.prod(shape):
        raise UserError(
            f"{path} says {shape} but holds {len(values)} bytes; it is cut short: fetch it again."
        )
    return values.reshape(shape)


def open_npz(data_config) -> Source:
    """A set from one .npz file: images uint8 `[N, H, W]` or `[N, H, W, C]`, labels `[N]`.

    Keys are x_train, y_train, x_test, y_test (or train_images, train_labels, test_images,
    test_labels), and class_names where it has them.

    Raises:
        UserError: no such file, or arrays that don't fit.
    """
    path = npz_path(data_config)
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = next((k for k in _NPZ_KEYS if set(k) <= set(archive.files)), None)
            if keys is None:
                found = ", ".join(archive.files) or "nothing"
                raise UserError(f"{path} has {found}; expected is {_NPZ_LAYOUT}.")
            arrays = [np.asanyarray(archive[key]) for key in keys]
            names = None
            if "class_names" in archive:
                given = [str(name) for name in archive["class_names"]]
                names = distinct(given, [str(label) for label in range(len(given))])
    except UserError:
        raise
    # A damaged archive makes zipfile and NumPy raise nearly anything; a claim of terabytes too.
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as .npz without pickled objects ({error})."
        ) from None
    return _from_arrays(data_config.name or path.stem, arrays, path, names)


def npz_path(data_config) -> pathlib.Path:
    """The .npz file that `data.path` names.

    Raises:
        MissingData: it is not set or not there.
    """
    if not data_config.path:
        raise MissingData(f"data.path is not set; expected is {_NPZ_LAYOUT}.")
    path = pathlib.Path(data_config.path).expanduser()
    if not path.is_file():
        raise MissingData(f"data.path={data_config.path} is not a file; expected is {_NPZ_LAYOUT}.")
    return path


def _idx_file(folder: pathlib.Path, pattern: str) -> pathlib.Path | None:
    for separator in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / (pattern.format(separator) + suffix)
            if path.is_file():
                return path
    return None


def _from_arrays(name: str, arrays, where: pathlib.Path, class_names) -> Source:
    benchmark = find_benchmark(name)
    if class_names is None and benchmark is not None:
        class_names = benchmark.class_names
    if class_names is None:
        labels = class_numbers(arrays[1], len(arrays[1]), f"the train split of {where}")
        class_names = tuple(f"class {i}" for i in range(int(labels.max(initial=0)) + 1))
    train, test = (
        _listing(images, labels, class_names, split, where)
        for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:]))
    )
    shape, other = (list(listing.images.shape[1:]) for listing in (train, test))  # type: ignore[union-attr]
    if shape != other:
        raise UserError(f"Images of {where} are {shape} in train but {other} in test.")
    normalisation = None
    if benchmark is not None and len(benchmark.normalisation.mean) == shape[-1]:
        normalisation = benchmark.normalisation
    return Source(
        name=benchmark.name if benchmark is not None else name,
        class_names=class_names,
        channels=shape[-1],
        train=train,
        test=test,
        normalisation=normalisation,
    )


def _listing(images: np.ndarray, labels, class_names, split: str, where: pathlib.Path) -> Listing:
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"The {split} images of {where} are {images.dtype} {list(images.shape)}; expected "
            "is uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]."
        )
    if len(images) != len(labels):
        raise UserError(
            f"The {split} split of {where} has {len(images)} images but {len(labels)} labels."
        )
    if images.max(initial=0) == 1:
        warnings.warn(
            f"The {split} images of {where} are 0 and 1 of 255: were they in [0, 1] before they "
            "became bytes?",
            stacklevel=2,
        )
    labels = check_labels(labels, class_names, split, where)
    return Listing(
        labels=labels,
        read=lambda i: images[i],
        name=lambda i: f"{split} image {i} of {where}",
        identity=storage.fingerprint(np.ascontiguousarray(images).data, labels.tobytes()),
        images=images,
    )
