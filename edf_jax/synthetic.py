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

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax import hosts
from edf_jax.data import Normalisation
from edf_jax.errors import UserError
from edf_jax.storage import load_tensors, save_tensors

_FORMAT = "edf_jax distilled set 1"
# Softmax of these logits is exactly one-hot in float32.
_HARD_LOGIT = 120.0
_NOISE_CONFIDENCE = 0.9


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
    if hosts.count() == 1:
        return make()

    def packed() -> tuple[dict[str, str] | None, dict[str, np.ndarray]]:
        found = make()
        if found is None:
            return None, {}
        tensors, metadata = found.packed()
        return metadata, tensors

    metadata, tensors = hosts.shared_arrays(what, packed)
    return None if metadata is None else unpacked(tensors, metadata)


def average_labels(expert_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Soft labels: the mean logits of the experts that are right, of all where none is.

    Args:
        expert_logits: `[K, n, C]`.
        labels: `[n]`, the true classes.

    Returns:
        `[n, C]` logits.

    References:
        DATM (2310.05773); where no expert is right the official code divides 0 by 0.
    """
    right = jnp.argmax(expert_logits, axis=-1) == labels
    counts = jnp.sum(right, axis=0)
    weights = jnp.where(counts == 0, 1 / len(expert_logits), right / jnp.maximum(counts, 1))
    return jnp.einsum("kn,knc->nc", weights.astype(expert_logits.dtype), expert_logits)


def hard_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Logits whose softmax is one-hot, `[n, C]` float32."""
    return np.float32(_HARD_LOGIT) * np.eye(num_classes, dtype=np.float32)[labels]


def smoothed_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Logits whose softmax is 0.9 on the class and equal elsewhere, `[n, C]` float32."""
    probabilities = np.full(
        (len(labels), num_classes), (1 - _NOISE_CONFIDENCE) / max(num_classes - 1, 1), np.float32
    )
    probabilities[np.arange(len(labels)), labels] = _NOISE_CONFIDENCE
    return np.log(probabilities)


def choose_random(rng: np.random.Generator, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Positions of `ipc` random images of each class in order, `[C * ipc]`.

    Raises:
        UserError: a class has fewer.
    """
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        _check_enough(len(members), ipc, label)
        chosen.append(rng.permutation(members)[:ipc])
    return np.concatenate(chosen)


def choose_predicted_correctly(
    rng: np.random.Generator, labels: np.ndarray, predictions, num_experts: int, ipc: int
) -> np.ndarray:
    """Positions of `ipc` images of each class that the first experts classify correctly.

    Args:
        rng: shuffles each class.
        labels: `[N]`, true classes.
        predictions: `expert -> [N]` predicted classes, called for as many experts as needed.
        num_experts: how many there are.
        ipc: images per class.

    Returns:
        `[C * ipc]` positions, class by class. Where all experts together are right on too few
        images of a class, its other images fill up.
    """
    num_classes = int(labels.max()) + 1
    orders = [rng.permutation(np.flatnonzero(labels == label)) for label in range(num_classes)]
    chosen: list[list[int]] = [[] for _ in orders]
    for label, order in enumerate(orders):
        _check_enough(len(order), ipc, label)
    for expert in range(num_experts):
        if all(len(members) == ipc for members in chosen):
            break
        predicted = np.asarray(predictions(expert))
        for order, members in zip(orders, chosen, strict=True):
            new = [i for i in order[predicted[order] == labels[order]] if i not in members]
            members.extend(new[: ipc - len(members)])
    for order, members in zip(orders, chosen, strict=True):
        members.extend([i for i in order if i not in members][: ipc - len(members)])
    return np.concatenate([np.asarray(members) for members in chosen])


def choose_near_centres(
    rng: np.random.Generator, features: np.ndarray, labels: np.ndarray, ipc: int
) -> np.ndarray:
    """Positions of the `ipc` images of each class that are nearest to k-means centres.

    Each class's features are clustered into `ipc` clusters, and each cluster gives the image
    nearest to its centre.

    Args:
        rng: for the first centres.
        features: `[N, F]`.
        labels: `[N]`.
        ipc: images per class.

    References:
        Liu et al., "DREAM: Efficient Dataset Distillation by Representative Matching"
        (2302.14416).
    """
    from sklearn.cluster import KMeans

    chosen = []
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        _check_enough(len(members), ipc, label)
        seed = int(rng.integers(2**31))
        distances = KMeans(ipc, n_init=1, random_state=seed).fit_transform(features[members])
        taken: list[int] = []
        for cluster in range(ipc):
            nearest = np.argsort(distances[:, cluster], kind="stable")
            taken.append(next(int(i) for i in nearest if i not in taken))
        chosen.append(members[taken])
    return np.concatenate(chosen)


def _check_enough(count: int, ipc: int, label: int) -> None:
    if count < ipc:
        raise UserError(
            f"distill.ipc={ipc} is more than the {count} training images of class {label}: lower it"
        )
