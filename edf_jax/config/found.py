"""Settings that a config leaves to the data and to the time there is, for any dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edf_jax.config.key import AUTO
from edf_jax.config.schema import SCHEMA

_EVALUATE = {
    "evaluate.num": 3,
    "evaluate.epochs": 300,
    "evaluate.during_num": 2,
    "evaluate.during_epochs": 150,
}
# Every number that can be found; a tenth of the training images is set aside for it.
EVERYTHING: dict[str, Any] = {
    **{name: AUTO for name, key in SCHEMA.items() if key.auto is not None},
    **_EVALUATE,
    "data.held_out": 0.1,
    "model.name": "ConvNet",
    "distill.eval_every": 100000,
    "distill.save_every": 25,
    "cam.every": 25,
    "budget.minutes": 20.0,
}
# Common Pattern Dropout's published shares; with one image per class it drops nothing.
_DROP = {1: 0.0, 10: 0.25}


def of(values: Mapping[str, Any], *, ipc: int, minutes: float, **given: Any) -> dict[str, Any]:
    """A variant that keeps what `values` say of the data, and leaves all else to be found.

    Args:
        values: another variant of the dataset.
        ipc: images per class.
        minutes: what a run may take, about.
        **given: dotted keys and values that are not to be found.
    """
    data = {k: v for k, v in values.items() if k.startswith(("data.", "augment.strategy"))}
    size = {"data.resolution": data.pop("data.resolution", AUTO)}
    own = {"distill.ipc": ipc, "distill.drop": _DROP[ipc], "budget.minutes": minutes}
    return {**EVERYTHING, **size, **data, "data.zca": False, **own, **given}


def variants(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`laptop_ipc1`, `laptop_ipc10` and `gpu_ipc10` of a dataset.

    Args:
        values: another variant of it. Images of over 32 pixels are brought to 32 for a laptop; a
            GPU has them as large as there is time for.
    """
    large = values.get("data.resolution", 128) > 32
    laptop = {"data.resolution": 32} if large else {}
    gpu = {"data.resolution": AUTO} if large else {}
    return {
        **{f"laptop_ipc{ipc}": of(values, ipc=ipc, minutes=20, **laptop) for ipc in (1, 10)},
        "gpu_ipc10": of(values, ipc=10, minutes=60, **{"evaluate.num": 5, **gpu}),
    }
