"""Files that can't be used, made in a folder by name: configs, data, weights, sets, runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

CONFIGS = {
    "divides": "def get_config():\n    return 1 / 0\n",
    "misspelt": "def get_config(:\n",
    "nothing": "def get_config():\n    pass\n",
    "empty": "",
    "without": "config = {}\n",
    "imports": "import no_such_module\n",
    "exits": "import sys\nsys.exit(3)\n",
    "dictionary": "def get_config():\n    return {'ipc': 3}\n",
    "number": "def get_config():\n    return 3\n",
    "typo": (
        "from edf_jax.config import default_config\n"
        "def get_config():\n    return default_config(**{'distill.lr_imgg': 1})\n"
    ),
    "wrong_type": (
        "from edf_jax.config import default_config\n"
        "def get_config():\n    return default_config(**{'distill.ipc': 'ten'})\n"
    ),
    "lacks": (
        "from edf_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n    del config.distill.ipc\n"
        "    return config\n"
    ),
    "binary": "\0\0\0",
    "raises": "def get_config():\n    raise RuntimeError('two\\nlines')\n",
    "recurses": "def get_config():\n    return get_config()\n",
}


class Payload:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def make(name: str, folder: Path) -> None:
    """Makes what `name` says in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, _, rest = name.partition("/")
    if kind == "config":
        text = CONFIGS.get(rest, "def get_config():\n    return None\n")
        (folder / f"{rest}.py").write_text(text)
    else:
        MAKERS[name](folder)


def names(kind: str) -> list[str]:
    """The names of a kind: 'folder', 'npz', 'idx', 'class list', 'weights' or 'set'."""
    return [name for name in MAKERS if name.startswith(f"{kind}: ")]


def file_of(name: str) -> str:
    """The file that a name of the kinds 'weights' and 'set' makes."""
    return name.rpartition(" in ")[2]


def _image(side: int = 8, colour: int = 90) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 0, 255 - colour)).save(content, "PNG")
    return content.getvalue()


def _folder(
    folder: Path, *, classes=("a", "b"), splits=("train", "val"), count: int = 3,
    image: Callable[[str, str, int], bytes | None] = lambda split, name, i: _image(),
) -> None:
    for split in splits:
        for name in classes:
            place = folder / "data" / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                content = image(split, name, i)
                if content is not None:
                    (place / f"{i}.png").write_bytes(content)


def _bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    content = bytearray(_image())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    return bytes(content)


def _arrays(**changed) -> dict[str, np.ndarray]:
    images = np.arange(20 * 8 * 8 * 3, dtype=np.uint8).reshape(20, 8, 8, 3)
    labels = np.arange(20) % 2
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    return {**arrays, **changed}


def _npz(folder: Path, **changed) -> Path:
    arrays = {name: array for name, array in _arrays(**changed).items() if array is not None}
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def _npy_claiming(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    content = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue()


def _npz_of_bytes(folder: Path, **members: bytes) -> None:
    _npz(folder)
    whole = {name: _array_bytes(array) for name, array in _arrays().items()}
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        for name, content in {**whole, **members}.items():
            archive.writestr(f"{name}.npy", content)


def _array_bytes(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _truncated(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte")


def _idx(folder: Path, **changed: bytes | None) -> None:
    images = np.zeros((20, 8, 8), np.uint8).tobytes()
    labels = (np.arange(20) % 2).astype(np.uint8).tobytes()
    contents = {
        name: struct.pack(">I", 0x0803) + struct.pack(">3I", 20, 8, 8) + images
        if "images" in name
        else struct.pack(">I", 0x0801) + struct.pack(">I", 20) + labels
        for name in _IDX
    }
    (folder / "data").mkdir()
    for name, content in contents.items():
        content = changed.get(name.partition("-idx")[0].replace("-", "_"), content)
        if content is not None:
            (folder / "data" / name).write_bytes(content)


def _bytes_at(name: str, content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return make


def _pickle(what: object) -> bytes:
    return pickle.dumps(what)


def _torch_file(folder: Path, what: object) -> None:
    """A file of PyTorch's with any content, written without PyTorch: a zip with one pickle."""
    with zipfile.ZipFile(folder / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", _pickle(what))
        archive.writestr("w/version", "3\n")


def _safetensors(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _run(folder: Path, **values) -> None:
    from edf_jax.config.resolve import default_config, flatten, resolve

    config = resolve(default_config(**values))
    (folder / "config.json").write_text(json.dumps(flatten(config)))


def _store(folder: Path) -> None:
    from edf_jax.experts.trajectories import TrajectoryStore

    settings = {"seed": 123, "num_params": 5}
    TrajectoryStore(folder).create({"settings": settings, "group_size": 2, "num_experts": 4})


def _labels_beyond(n: int = 20) -> np.ndarray:
    return np.r_[np.arange(n - 1) % 2, 5]


_DEEP = "[" * 100_000
_RESULT = {"method": "edf", "distilled_mean": 40.0, "distilled_std": 1.0, "seconds": 9.0}


def _stranger(folder: Path, **files: object) -> None:
    """A run that isn't of our making: `result`, `config` and `metrics` as text, or as JSON."""
    (folder / "run").mkdir(parents=True)
    whole = {"config": {"seed": 0}, "result": _RESULT, "metrics": "", **files}
    for name, content in whole.items():
        text = content if isinstance(content, str) else json.dumps(content)
        path = folder / "run" / ("metrics.jsonl" if name == "metrics" else f"{name}.json")
        path.write_text(text)


MAKERS: dict[str, Callable[[Path], object]] = {
    "rows: deep": lambda f: (f / "rows.json").write_text(_DEEP),
    "rows: broken": lambda f: (f / "rows.json").write_text('{"mtt": '),
    "rows: a list": lambda f: (f / "rows.json").write_text("[1]"),
    "rows: of numbers": lambda f: (f / "rows.json").write_text('{"mtt": 3}'),
    "rows: an unknown key": lambda f: (f / "rows.json").write_text('{"a": {"seeed": 1}}'),
    "rows: a list as a key": lambda f: (f / "rows.json").write_text('{"a": {"baseline": []}}'),
    "rows: no text": lambda f: (f / "rows.json").write_bytes(b"\xff\xfe\x00"),
    "stranger: deep result": lambda f: _stranger(f, result=_DEEP),
    "stranger: deep config": lambda f: _stranger(f, config=_DEEP),
    "stranger: result is a list": lambda f: _stranger(f, result=[1]),
    "stranger: broken result": lambda f: _stranger(f, result='{"method": '),
    "stranger: words as figures": lambda f: _stranger(
        f, result={**_RESULT, "distilled_mean": "forty", "random_mean": [1]}
    ),
    "stranger: lists for records": lambda f: _stranger(
        f, result={**_RESULT, "stages": [1], "versions": 3, "rows": {"a": 1}}
    ),
    "file": _bytes_at("file", b"just a file"),
    "somebody's notes": _bytes_at("notes.txt", b"years of work"),
    "run of another seed": lambda f: _run(f, seed=7),
    "run of more iterations": lambda f: _run(f, **{"distill.iterations": 99_999}),
    "store of another seed": _store,
    "folder: empty": lambda f: (f / "data").mkdir(),
    "folder: a file": _bytes_at("data", b""),
    "folder: no train": lambda f: _folder(f, splits=("val",)),
    "folder: no test": lambda f: _folder(f, splits=("train",)),
    "folder: no classes": lambda f: _folder(f, classes=("",), count=0),
    "folder: one class": lambda f: _folder(f, classes=("a",)),
    "folder: an empty class": lambda f: _folder(
        f, image=lambda s, c, i: None if c == "b" else _image()
    ),
    "folder: an empty class in val": lambda f: _folder(
        f, image=lambda s, c, i: None if (s, c) == ("val", "b") else _image()
    ),
    "folder: a class more in val": lambda f: (
        _folder(f), _folder(f, classes=("c",), splits=("val",)),
    ),
    "folder: no image is one": lambda f: _folder(f, image=lambda s, c, i: b"no image"),
    "folder: empty images": lambda f: _folder(f, image=lambda s, c, i: b""),
    "folder: a class of truncated images": lambda f: _folder(
        f, image=lambda s, c, i: _image()[: 45 if c == "b" else None]
    ),
    "folder: images that are bombs": lambda f: _folder(f, image=lambda s, c, i: _bomb()),
    "folder: pickles as images": lambda f: _folder(f, image=lambda s, c, i: _pickle(Payload())),
    "folder: several sizes": lambda f: _folder(f, image=lambda s, c, i: _image(8 + i)),
    "folder: other sizes in val": lambda f: _folder(
        f, image=lambda s, c, i: _image(8 if s == "train" else 9)
    ),
    "class list: missing": lambda f: _folder(f),
    "class list: empty": lambda f: (_folder(f), (f / "classes.txt").write_text("")),
    "class list: unknown": lambda f: (_folder(f), (f / "classes.txt").write_text("n00\nn01\n")),
    "class list: binary": lambda f: (_folder(f), (f / "classes.txt").write_bytes(b"\xff\0\xfe")),
    "class list: not there": lambda f: (
        _folder(f), (f / "classes.txt").write_text("n01440764\nn02102040\n"),
    ),
    "npz: text": _bytes_at("data.npz", b"not an archive"),
    "npz: empty": _bytes_at("data.npz", b""),
    "npz: a pickle": _bytes_at("data.npz", _pickle(Payload())),
    "npz: truncated": lambda f: _truncated(_npz(f)),
    "npz: pickled images": lambda f: _npz(f, x_train=np.array([Payload()] * 20, object)),
    "npz: pickled labels": lambda f: _npz(f, y_test=np.array([Payload()] * 20, object)),
    "npz: no labels": lambda f: _npz(f, y_train=None),
    "npz: float images": lambda f: _npz(f, x_train=np.zeros((20, 8, 8, 3))),
    "npz: flat images": lambda f: _npz(f, x_train=np.zeros((20, 64), np.uint8)),
    "npz: five channels": lambda f: _npz(f, x_train=np.zeros((20, 8, 8, 5), np.uint8)),
    "npz: no images": lambda f: _npz(
        f, x_train=np.zeros((0, 8, 8, 3), np.uint8), y_train=np.zeros(0, int)
    ),
    "npz: fewer labels": lambda f: _npz(f, y_train=np.zeros(19, int)),
    "npz: float labels": lambda f: _npz(f, y_train=np.linspace(0, 1, 20)),
    "npz: negative labels": lambda f: _npz(f, y_train=np.arange(20) % 2 - 1),
    "npz: a label beyond": lambda f: _npz(f, y_test=_labels_beyond()),
    "npz: a class without images": lambda f: _npz(f, y_train=_labels_beyond()),
    "npz: one class": lambda f: _npz(f, y_train=np.zeros(20, int), y_test=np.zeros(20, int)),
    "npz: matrix of labels": lambda f: _npz(f, y_train=np.zeros((20, 2), int)),
    "npz: words as labels": lambda f: _npz(f, y_train=np.array(["cat"] * 20)),
    "npz: claims a terabyte": lambda f: _npz_of_bytes(f, x_train=_npy_claiming((2**40,))),
    "npz: claims less than nothing": lambda f: _npz_of_bytes(f, x_train=_npy_claiming((-1, 8, 8))),
    "npz: no array inside": lambda f: _npz_of_bytes(f, x_train=b"text"),
    "npz: sizes differ": lambda f: _npz(f, x_test=np.zeros((20, 9, 9, 3), np.uint8)),
    "idx: empty": lambda f: (f / "data").mkdir(),
    "idx: no labels": lambda f: _idx(f, train_labels=None),
    "idx: no test": lambda f: _idx(f, t10k_images=None),
    "idx: empty images": lambda f: _idx(f, train_images=b""),
    "idx: a pickle": lambda f: _idx(f, train_images=_pickle(Payload())),
    "idx: labels for images": lambda f: _idx(f, train_images=struct.pack(">2I", 0x0801, 20)),
    "idx: claims a terabyte": lambda f: _idx(
        f, train_images=struct.pack(">4I", 0x0803, 2**20, 2**10, 2**10)
    ),
    "idx: cut short": lambda f: _idx(
        f, train_images=struct.pack(">4I", 0x0803, 20, 8, 8) + bytes(100)
    ),
    "idx: a byte too many": lambda f: _idx(
        f, train_labels=struct.pack(">2I", 0x0801, 20) + bytes(21)
    ),
    "idx: one class": lambda f: _idx(f, train_labels=struct.pack(">2I", 0x0801, 20) + bytes(20)),
    "idx: no gzip": lambda f: (
        _idx(f, train_images=None),
        (f / "data" / "train-images-idx3-ubyte.gz").write_bytes(b"text"),
    ),
    "idx: a bomb": lambda f: (
        _idx(f, train_images=None),
        (f / "data" / "train-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">4I", 0x0803, 20, 8, 8) + bytes(10**8), 1)
        ),
    ),
    "idx: truncated gzip": lambda f: (
        _idx(f, train_images=None),
        (f / "data" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(5000))[:20]),
    ),
    "weights: text in w.pth": _bytes_at("w.pth", b"weights"),
    "weights: empty in w.pth": _bytes_at("w.pth", b""),
    "weights: a pickle in w.pth": _bytes_at("w.pth", _pickle(Payload())),
    "weights: a pickle in an archive in w.pth": lambda f: _torch_file(f, Payload()),
    "weights: a list in w.pth": lambda f: _torch_file(f, [1, 2, 3]),
    "weights: no tensors in w.pth": lambda f: _torch_file(f, {"conv1.weight": "heavy"}),
    "weights: empty in w.safetensors": _bytes_at("w.safetensors", b""),
    "weights: text in w.safetensors": _bytes_at("w.safetensors", b"weights, but not many"),
    "weights: no tensors in w.safetensors": _bytes_at("w.safetensors", _safetensors(b"{}")),
    "weights: other tensors in w.safetensors": _bytes_at(
        "w.safetensors",
        _safetensors(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    ),
    "weights: a header of exabytes in w.safetensors": _bytes_at("w.safetensors", b"\xff" * 64),
    "weights: offsets beyond in w.safetensors": _bytes_at(
        "w.safetensors",
        _safetensors(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4000]}}', bytes(4)),
    ),
    "set: text in s.safetensors": _bytes_at("s.safetensors", b"a set"),
    "set: no set in s.safetensors": _bytes_at("s.safetensors", _safetensors(b"{}")),
    "set: text in s.npz": _bytes_at("s.npz", b"a set"),
    "set: pickles in s.npz": lambda f: np.savez(
        f / "s.npz", images=np.array([Payload()], object), labels=np.array([Payload()], object)
    ),
    "set: no labels in s.npz": lambda f: np.savez(f / "s.npz", images=np.zeros((2, 8, 8, 3))),
    "set: a pickle in s.pt": _bytes_at("s.pt", _pickle(Payload())),
    "set: no images in s": lambda f: (f / "s").mkdir(),
    "set: text in s.txt": _bytes_at("s.txt", b"a set"),
}
