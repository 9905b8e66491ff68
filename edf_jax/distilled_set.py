"""The distilled set: how it starts, what it holds, how it is kept on disk.

References:
  DATM (2310.05773), section 3.3: initialisation from images that experts classify correctly.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edf_jax.config.pinned import differing
from edf_jax.config.resolve import flatten
from edf_jax.data import Normalisation
from edf_jax.runtime import processes, storage
from edf_jax.runtime.errors import UserError

_FORMAT = "edf_jax distilled set 1"


@dataclasses.dataclass(frozen=True)
class DistilledSet:
    """A few synthetic images with learned labels, and the rate to train on them with.

    Attributes:
        images: `[n, H, W, C]` float32, normalised (see `pixels`).
        labels: `[n, C]` float32 logits; probabilities are their softmax.
        alpha: the student's learned rate.
        class_names: by label.
        normalisation: what turns pixels into `images`.
        step: updates made; 0 for the real images it grew from.
        config: the run's resolved config as `{dotted key: value}`; {} where unknown.
        data: fingerprint of the real images that it stands for; empty where unknown.
        best: on a finished run's last set, the steps of the run's best sets by name.
    """

    images: np.ndarray
    labels: np.ndarray
    alpha: float
    class_names: tuple[str, ...]
    normalisation: Normalisation
    step: int = 0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: str = ""
    best: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """The images as pixels in [0, 1], `[n, H, W, C]`."""
        return np.asarray(self.normalisation.invert(self.images), np.float32)

    @property
    def classes(self) -> np.ndarray:
        """Each image's likeliest class, int32 `[n]`."""
        return np.argmax(self.labels, axis=1).astype(np.int32)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a `.safetensors` file, whole or not at all, that knows its name.

        With ZCA the file also holds `pixels`, for readers without the matrix.
        """
        path = pathlib.Path(path)
        tensors, metadata = self.packed()
        storage.save_tensors(path, tensors, {**metadata, "name": path.stem})

    def packed(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata that `unpacked` makes the set of."""
        tensors = {
            "images": np.ascontiguousarray(self.images, np.float32),
            "labels": np.ascontiguousarray(self.labels, np.float32),
            "alpha": np.asarray(self.alpha, np.float32),
        }
        if self.normalisation.zca is not None:
            tensors["pixels"] = self.pixels
        metadata = {
            "format": _FORMAT,
            "class_names": json.dumps(self.class_names),
            "normalisation": self.normalisation.to_json(),
            "step": str(self.step),
            "config": json.dumps(dict(self.config), sort_keys=True),
            "data": self.data,
            "best": json.dumps(dict(self.best)),
        }
        return tensors, metadata


def load(path: str | os.PathLike) -> DistilledSet:
    """Reads a distilled set that `DistilledSet.save` wrote.

    Args:
        path: a `.safetensors` file, or a run's folder: the set that the run's `distill.select`
            says, by default `distilled/last.safetensors`.

    Raises:
        DamagedFile: there is no such file, it isn't what was written, or in a run's `distilled/`
            another set has its name.
        UserError: it isn't a distilled set, or lies in another run than its own.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        selected = _run_config(path).get("distill.select")
        names = {"test": "best_on_test", "heldout": "best_on_held_out"}
        path = path / "distilled" / f"{names.get(str(selected), 'last')}.safetensors"
    if not path.exists():
        raise storage.DamagedFile(f"there is no distilled set at {path}")
    tensors, metadata = storage.load_tensors(path, _FORMAT)
    found = unpacked(tensors, metadata)
    if path.parent.name == "distilled":
        storage.check_place(path, metadata, {"name": path.stem})
        _check_run(path, found.config)
    return found


def _check_run(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Refuses a set with another config than that of the run whose folder it lies in."""
    own = _run_config(path.parent.parent)
    difference = differing(config, {key: value for key, value in own.items() if key in config})
    if difference is not None:
        name, was, value = difference
        raise UserError(
            f"{path} was put there from elsewhere: it was made with {name}={was!r}, its folder's "
            f"run has {value!r}; remove it, and the run's command makes it again"
        )


def _run_config(workdir: pathlib.Path) -> dict[str, Any]:
    """A run's config, flat; {} where it isn't known."""
    try:
        return flatten(storage.read_record(workdir / "config.json", sealed=False))
    except storage.DamagedFile:
        return {}


def unpacked(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> DistilledSet:
    """The set that `DistilledSet.packed` took apart."""
    config = json.loads(metadata.get("config", "{}"))
    return DistilledSet(
        tensors["images"],
        tensors["labels"],
        float(tensors["alpha"]),
        tuple(json.loads(metadata["class_names"])),
        Normalisation.from_json(metadata["normalisation"], config.get("data.cache_dir") or None),
        int(metadata.get("step", 0)),
        config,
        metadata.get("data", ""),
        json.loads(metadata.get("best", "{}")),
    )


def shared(what: str, make: Callable[[], DistilledSet | None]) -> DistilledSet | None:
    """The set that the first of processes which run together makes, as `hosts.shared`."""
    if processes.count() == 1:
        return make()

    def packed() -> tuple[dict[str, str] | None, dict[str, np.ndarray]]:
        found = make()
        if found is None:
            return None, {}
        tensors, metadata = found.packed()
        return metadata, tensors

    metadata, tensors = processes.shared_arrays(what, packed)
    return None if metadata is None else unpacked(tensors, metadata)


