"""Reading what a run leaves in its folder; what is missing reads as empty.

The rows of metrics.jsonl that figures and the report know (all but the first key optional):
  experts   step (counts up), epoch, group (trained together), test_accuracy (%, the group's mean)
  distill   step (iteration), loss, skipped, start_epoch, max_start_epoch (first not allowed), alpha
  evaluate  step (iteration), accuracy_mean, accuracy_std (%)
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edf_jax import distilled_set
from edf_jax.config.pinned import identity
from edf_jax.config.resolve import flatten
from edf_jax.distilled_set import DistilledSet
from edf_jax.runs import tuned
from edf_jax.runs.metrics import read_metrics
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

_MAPS_FILE = Path("figures") / "activation_maps.safetensors"
_MAPS_FORMAT = "edf_jax activation maps 1"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ActivationMaps:
    """Maps `[n, H, W]` in [0, 1] of a run's last images, and DAE weights `[n, H, W]`."""

    maps: np.ndarray
    weights: np.ndarray
    network: str


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """One run's folder."""

    workdir: Path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, nested, with what the run found for 'auto'; empty when missing."""
        config = self.asked
        for key, value in self.tuned.get("chosen", {}).items():
            group, _, leaf = key.rpartition(".")
            config.setdefault(group, {})[leaf] = value
        return config

    @property
    def asked(self) -> dict[str, Any]:
        """The resolved config as the run's folder is pinned to it, nested."""
        return _read_json(self.workdir / "config.json")

    @property
    def tuned(self) -> dict[str, Any]:
        """tuned.json: what was found for 'auto', and why; empty where nothing was."""
        return _read_json(self.workdir / tuned.FILE)

    @property
    def result(self) -> dict[str, Any]:
        """result.json; empty while the run has not finished.

        Raises:
            UserError: it can't be read, or is another run's.
        """
        path = self.workdir / "result.json"
        found, config = _read_json(path), self.asked
        whose = found.pop("config_digest", None)
        if whose and config and whose != identity(flatten(config)):
            raise UserError(
                f"{path} is of a run with another config: remove it, and the run's command makes "
                "it again"
            )
        return found

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The stage's rows of metrics.jsonl."""
        return read_metrics(self.workdir, stage)

    def distilled(self, name: str) -> DistilledSet | None:
        """The set saved as `distilled/<name>.safetensors`: "last", "best_on_test", "step_0"..."""
        path = self.workdir / "distilled" / f"{name}.safetensors"
        return distilled_set.load(path) if path.exists() else None

    @functools.cached_property
    def last(self) -> DistilledSet | None:
        """The set after the last iteration; of a run that goes on, that of its last evaluation."""
        found, steps = self.distilled("last"), self.saved_steps()
        return self.distilled(f"step_{steps[-1]}") if found is None and steps else found

    @functools.cached_property
    def first(self) -> DistilledSet | None:
        """The real images that the last set grew from, where they are saved and match it."""
        first, last = self.distilled("step_0"), self.last
        matches = first is not None and last is not None and first.images.shape == last.images.shape
        return first if matches else None

    @property
    def classes(self) -> np.ndarray:
        """The class that each image of the last set grew from; a learned label may drift off it."""
        known = self.first or self.last
        return np.zeros(0, np.int32) if known is None else known.classes

    def step_path(self, step: int) -> Path:
        """Where the set of one iteration is saved."""
        return self.workdir / "distilled" / f"step_{step}.safetensors"

    def saved_steps(self) -> list[int]:
        """Iterations with a saved set, in order."""
        names = [path.stem for path in (self.workdir / "distilled").glob("step_*.safetensors")]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def activation_maps(self) -> ActivationMaps | None:
        """What `save_activation_maps` saved, unless it is of another set than the last."""
        if self.last is None:
            return None
        return _read_activation_maps(self.workdir, self.last.parameters)


def open_run(workdir: str | Path) -> RunFiles:
    """The run in `workdir`.

    Raises:
      UserError: there is no run.
    """
    folder = Path(workdir)
    if not any((folder / name).exists() for name in ("config.json", "metrics.jsonl", "distilled")):
        raise UserError(
            f"{folder} is no run of edf_jax: it has no config.json, metrics.jsonl or distilled/. "
            "Give the folder that --workdir named."
        )
    return RunFiles(folder)


def activation_maps_are_there(workdir: str | Path, parameters: np.ndarray) -> bool:
    """Whether the activation maps of the images stored as these parameters are kept, and intact."""
    return _read_activation_maps(Path(workdir), parameters) is not None


def _read_activation_maps(workdir: Path, parameters: np.ndarray) -> ActivationMaps | None:
    path = workdir / _MAPS_FILE
    if not path.exists():
        return None
    try:
        tensors, metadata = storage.load_tensors(path, _MAPS_FORMAT)
        own = storage.digest(np.asarray(parameters, np.float32))
        storage.check_place(path, metadata, {"images": own})
    except UserError as error:
        _log.warning("%s: left out", error)
        return None
    return ActivationMaps(tensors["maps"], tensors["weights"], metadata["network"])


def save_activation_maps(
    workdir: str | Path, parameters: np.ndarray, maps, weights, *, network: str
) -> Path:
    """Keeps a set's activation maps for figures and the report.

    Args:
      workdir: the run's folder.
      parameters: `[m, H, W, C]`, the set's, which say what the maps are of.
      maps: `[n, H, W]` in [0, 1], in the order of the decoded images.
      weights: `[n, H, W]` or `[n, H, W, 1]`, the DAE weight of each pixel.
      network: what made the maps, in a few words.

    Returns:
      The file's path.
    """
    maps = np.asarray(maps, np.float32)
    tensors = {"maps": maps, "weights": np.asarray(weights, np.float32).reshape(maps.shape)}
    path = Path(workdir) / _MAPS_FILE
    about = {"format": _MAPS_FORMAT, "network": network}
    about["images"] = storage.digest(np.asarray(parameters, np.float32))
    storage.save_tensors(path, tensors, about)
    return path


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return storage.read_record(path, sealed=False)
    except storage.DamagedFile as error:
        raise UserError(f"{error}: remove it, or run again") from error


def selected(result: Mapping[str, Any]) -> str:
    """The kind of set that a run's result is about (`distill.select`)."""
    kinds = {"test": "best_on_test", "heldout": "best_on_held_out"}
    kind = kinds.get(result.get("select", "last"), "distilled")
    return kind if f"{kind}_mean" in result else "distilled"
