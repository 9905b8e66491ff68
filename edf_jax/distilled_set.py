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

from edf_jax.data import Normalisation
from edf_jax.runtime import processes
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.storage import load_tensors, save_tensors

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
    """

    images: np.ndarray
    labels: np.ndarray
    alpha: float
    class_names: tuple[str, ...]
    normalisation: Normalisation
    step: int = 0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """The images as pixels in [0, 1], `[n, H, W, C]`."""
        return np.asarray(self.normalisation.invert(self.images), np.float32)

    @property
    def classes(self) -> np.ndarray:
        """Each image's likeliest class, int32 `[n]`."""
        return np.argmax(self.labels, axis=1).astype(np.int32)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a `.safetensors` file, whole or not at all.

        With ZCA the file also holds `pixels`, for readers without the matrix.
        """
        save_tensors(pathlib.Path(path), *self.packed())

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
        }
        return tensors, metadata


def load(path: str | os.PathLike) -> DistilledSet:
    """Reads a distilled set that `DistilledSet.save` wrote.

    Args:
        path: a `.safetensors` file, or a run's folder: the set that the run's `distill.select`
            says, by default `distilled/last.safetensors`.

    Raises:
        UserError: there is no such file, or it isn't a distilled set.
        DamagedFile: it isn't what was written.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "distilled" / f"{_selected(path)}.safetensors"
    if not path.exists():
        raise UserError(f"there is no distilled set at {path}")
    return unpacked(*load_tensors(path, _FORMAT))


def _selected(workdir: pathlib.Path) -> str:
    """The name of the set that a run's config says it is about."""
    try:
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        selected = config["distill"]["select"]
    except (OSError, ValueError, KeyError, TypeError):
        return "last"
    return {"test": "best_on_test", "heldout": "best_on_held_out"}.get(selected, "last")


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


