"""The distilled set: what it holds, how it is kept on disk; and any labelled images like it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from edf_jax.config.pinned import differing
from edf_jax.config.resolve import SCHEMA, autos, default_config, flatten
from edf_jax.data import Normalisation, Split, load_dataset
from edf_jax.methods.family import PARAMETRISATIONS
from edf_jax.methods.parametrisation.pixels import PIXELS
from edf_jax.methods.parametrisation.stored import Parametrisation
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.runtime import processes, storage
from edf_jax.runtime.errors import UserError

# Sets that come with the package.
ZOO = pathlib.Path(__file__).parent / "zoo" / "sets"
_FORMAT = "edf_jax distilled set 1"
# Of images stored as anything else than their pixels: who knows the first alone must not read it.
_FORMAT_OF_PARAMETERS = "edf_jax distilled set 2"
# A label surer than this is a hard one.
_HARD = 0.999


class StoredBytes(NamedTuple):
    """What a small set takes, in bytes of float32 numbers.

    Attributes:
        images: of the parameters that images are decoded from.
        labels: of the label logits, one of every decoded image and class.
    """

    images: int
    labels: int

    def figures(self) -> dict[str, int]:
        """As a result's rows tell them."""
        return {"image_bytes": self.images, "label_bytes": self.labels}

    @classmethod
    def of_figures(cls, row: Mapping[str, Any], kind: str = "") -> StoredBytes | None:
        """Those that a row tells, or a result of one of its kinds; None where it doesn't."""
        names = [f"{kind}_{name}".lstrip("_") for name in ("image_bytes", "label_bytes")]
        return cls(*(row[name] for name in names)) if names[0] in row else None

    @property
    def text(self) -> str:
        """The images' and the labels', as people read them."""
        return f"{self.images:,} + {self.labels:,}"


# The title of a column of `StoredBytes.text`.
BYTES = "bytes, images + labels"


@dataclasses.dataclass(frozen=True, repr=False)
class LabelledImages:
    """A few labelled images to train on: distilled, from elsewhere, or real ones.

    Attributes:
        parameters: `[m, H, W, C]` float32, what is stored; normalised images, `m = n`, unless
            `parametrisation` says otherwise.
        labels: `[n, C]` float32 logits, of every image; probabilities are their softmax.
        alpha: the learned rate to train on them with; None where there is none.
        config: the config of the run that learned them, as `{dotted key: value}`; {} where unknown.
        note: what they are, for people.
        positions: of the images in the real training set, None where they aren't from there.
        parametrisation: how images are stored.
    """

    parameters: np.ndarray
    labels: np.ndarray
    alpha: float | None = None
    _: dataclasses.KW_ONLY
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    positions: np.ndarray | None = None
    parametrisation: Parametrisation = PIXELS

    @functools.cached_property
    def images(self) -> np.ndarray:
        """`[n, H, W, C]` float32, normalised: decoded when first asked for."""
        return np.asarray(self.parametrisation.decode(self.parameters))

    @property
    def stored_bytes(self) -> StoredBytes:
        """What a file of the set holds but for its header, the rate, and `pixels` beside ZCA."""
        item = np.dtype(np.float32).itemsize
        return StoredBytes(item * self.parameters.size, item * self.labels.size)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        labels = "soft" if self.has_soft_labels else "hard"
        parts = [f"{len(self.images)} images of {shape}", f"{self.labels.shape[1]} classes"]
        parts += [f"{labels} labels", *([f"rate {self.alpha:.4g}"] if self.alpha else [])]
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def classes(self) -> np.ndarray:
        """Each image's likeliest class, int32 `[n]`."""
        return np.argmax(self.labels, axis=1).astype(np.int32)

    @property
    def digest(self) -> str:
        """Of everything that decides an accuracy."""
        alpha = np.nan if self.alpha is None else self.alpha
        arrays = (np.asarray(a, np.float32) for a in (self.parameters, self.labels, alpha))
        digests = "".join(storage.digest(array)[:8] for array in arrays)
        stored = self.parametrisation
        return digests if stored == PIXELS else f"{digests} {stored.name} {stored.factor}"

    @property
    def has_soft_labels(self) -> bool:
        """Whether any label is less than certain."""
        shifted = self.labels - self.labels.max(axis=1, keepdims=True)
        surest = 1 / np.exp(shifted).sum(axis=1)
        return bool(surest.min() < _HARD)

    def with_hard_labels(self) -> LabelledImages:
        """The same images, each labelled by its likeliest class alone; no learned rate."""
        labels = hard_labels(self.classes, self.labels.shape[1])
        return dataclasses.replace(self, labels=labels, alpha=None)


@dataclasses.dataclass(frozen=True, repr=False)
class DistilledSet(LabelledImages):
    """A few synthetic images with learned labels, and the rate to train on them with.

    Attributes:
        class_names: by label.
        normalisation: what turns pixels into `images`.
        step: updates made; 0 for the real images it grew from.
        origin: `DatasetInfo.identity` of the real images; {} where unknown.
        best: on a finished run's last set, the steps of the run's best sets by name.
    """

    # Without the default that it has for images that no rate was learned with.
    alpha: float = dataclasses.field()
    class_names: tuple[str, ...]
    normalisation: Normalisation
    step: int = 0
    _: dataclasses.KW_ONLY
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    best: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """The images as pixels in [0, 1], `[n, H, W, C]`."""
        return np.asarray(self.normalisation.invert(self.images), np.float32)

    def test_data(self, path: str = "") -> Split:
        """The real test images that the set's run was measured on, as its config tells.

        Args:
            path: where those images are on this machine (`data.path`); built-in data need none.

        Raises:
            UserError: they aren't there, or are of other classes.
        """
        values = {key: value for key, value in self.config.items() if key.startswith("data.")}
        if path:
            values["data.path"] = path
        found = load_dataset(default_config(**values).data)
        wanted = list(self.origin.get("classes", found.info.class_ids))
        if list(found.info.class_ids) != wanted:
            raise UserError(f"{path} holds other classes than the set's: {', '.join(wanted)}")
        return found.test

    def save(self, path: str | os.PathLike) -> None:
        """Writes a `.safetensors` file, whole or not at all, that knows its name.

        With ZCA the file also holds `pixels`, for readers without the matrix.
        """
        path = pathlib.Path(path)
        tensors, metadata = self.packed()
        storage.save_tensors(path, tensors, {**metadata, "name": path.stem})

    def packed(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata that `unpacked` makes the set of."""
        stored = self.parametrisation
        as_pixels = stored == PIXELS
        tensors = {
            _tensor_of(stored): np.ascontiguousarray(self.parameters, np.float32),
            "labels": np.ascontiguousarray(self.labels, np.float32),
            "alpha": np.asarray(self.alpha, np.float32),
        }
        if self.normalisation.zca is not None:
            tensors["pixels"] = self.pixels
        metadata = {
            "format": _FORMAT if as_pixels else _FORMAT_OF_PARAMETERS,
            "class_names": json.dumps(self.class_names),
            "normalisation": self.normalisation.to_json(),
            "step": str(self.step),
            "config": json.dumps(dict(self.config), sort_keys=True),
            "origin": json.dumps(dict(self.origin)),
            "best": json.dumps(dict(self.best)),
        }
        if not as_pixels:
            metadata["parametrisation"] = json.dumps({"name": stored.name, "factor": stored.factor})
        return tensors, metadata


def _tensor_of(stored: Parametrisation) -> str:
    """What a file calls the parameters: they aren't to be taken for images where they are none."""
    return "images" if stored == PIXELS else "parameters"


def load(path: str | os.PathLike) -> DistilledSet:
    """Reads a distilled set that `DistilledSet.save` wrote.

    Args:
        path: a `.safetensors` file; a run's folder, which stands for the set that the run's
            `distill.select` says, by default `distilled/last.safetensors`; or `zoo:NAME`, a set
            that comes with the package (`python -m edf_jax.zoo` lists them).

    Raises:
        DamagedFile: there is no such file, it isn't what was written, or in a run's `distilled/`
            another set has its name.
        UserError: it isn't a distilled set, or lies in another run than its own.
    """
    path = located(path)
    if path.is_dir():
        path = path / "distilled" / f"{selected(path)}.safetensors"
    if not path.exists():
        raise storage.DamagedFile(f"there is no distilled set at {path}")
    tensors, metadata = storage.load_tensors(path, _FORMAT, _FORMAT_OF_PARAMETERS)
    found = unpacked(tensors, metadata)
    if path.parent.name == "distilled":
        storage.check_place(path, metadata, {"name": path.stem})
        _check_run(path, found.config)
    return found


def located(path: str | os.PathLike) -> pathlib.Path:
    """Where a set is: the file of the zoo that `zoo:NAME` means, any other path as it is.

    Raises:
        UserError: the zoo has no such set.
    """
    text = os.fspath(path)
    if not text.startswith("zoo:"):
        return pathlib.Path(path)
    name = text.removeprefix("zoo:")
    there = {each.stem: each for each in ZOO.glob("*.safetensors")}
    if name not in there:
        raise UserError(f"the zoo has no {name!r}; it has {', '.join(sorted(there))}")
    return there[name]


def _check_run(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Refuses a set with another config than that of the run whose folder it lies in."""
    own = _run_config(path.parent.parent)
    # A run's config keeps 'auto' for what the run found, and the set what was found.
    found = autos({key: value for key, value in own.items() if key in SCHEMA})
    compared = {key: own[key] for key in own if key in config and key not in found}
    difference = differing(config, compared)
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


def selected(workdir: pathlib.Path) -> str:
    """The name of the set that a run's config says it is about."""
    names = {"test": "best_on_test", "heldout": "best_on_held_out"}
    return names.get(str(_run_config(workdir).get("distill.select")), "last")


def unpacked(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> DistilledSet:
    """The set that `DistilledSet.packed` took apart."""
    config = json.loads(metadata.get("config", "{}"))
    if tensors["alpha"].size != 1:
        shape = tensors["alpha"].shape
        raise UserError(f"a distilled set's alpha has shape {shape}, not one number")
    stored = _parametrisation(metadata)
    return DistilledSet(
        tensors[_tensor_of(stored)],
        tensors["labels"],
        float(tensors["alpha"].item()),
        tuple(json.loads(metadata["class_names"])),
        Normalisation.from_json(metadata["normalisation"], config.get("data.cache_dir") or None),
        int(metadata.get("step", 0)),
        config=config,
        origin=json.loads(metadata.get("origin", "{}")),
        best=json.loads(metadata.get("best", "{}")),
        parametrisation=stored,
    )


def _parametrisation(metadata: Mapping[str, str]) -> Parametrisation:
    """How a file's images are stored.

    Raises:
        UserError: in a way that isn't known here.
    """
    if "parametrisation" not in metadata:
        return PIXELS
    said = json.loads(metadata["parametrisation"])
    if said["name"] not in PARAMETRISATIONS:
        raise UserError(
            f"a distilled set stores its images as {said['name']!r}, which isn't known here "
            f"(known are {', '.join(PARAMETRISATIONS)}): add it with edf_jax.extending.add_part"
        )
    return PARAMETRISATIONS[said["name"]](said["factor"])


def from_first_process(what: str, make: Callable[[], DistilledSet | None]) -> DistilledSet | None:
    """As `processes.from_first_process`, of a set."""
    if processes.count() == 1:
        return make()

    def packed() -> tuple[dict[str, str] | None, dict[str, np.ndarray]]:
        found = make()
        if found is None:
            return None, {}
        tensors, metadata = found.packed()
        return metadata, tensors

    metadata, tensors = processes.arrays_from_first_process(what, packed)
    return None if metadata is None else unpacked(tensors, metadata)


