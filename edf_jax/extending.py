"""What a config file of your own can add: methods, their parts, networks, datasets.

`docs/extending.md` has a worked example of each.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from edf_jax.config.resolve import AUTO, METHODS, SCHEMA
from edf_jax.data import load
from edf_jax.data.sources import Source
from edf_jax.methods import family, gradcam
from edf_jax.models import register_network

# The keys whose choices are entries of a table.
_TABLES: dict[str, dict[str, Any]] = {
    "distill.loss_mask": family.LOSS_MASKS,
    "distill.start_schedule": family.START_BOUNDS,
    "distill.labels": family.LABELS,
    "distill.gradient": family.THROUGH_STEPS,
    "distill.parametrisation": family.PARAMETRISATIONS,
    "experts.schedule": family.EXPERT_SCHEDULES,
    "cam.method": gradcam.METHODS,
}


def add_part(key: str, name: str, part: Any) -> None:
    """Adds a choice to a part of the loop; one of that name is replaced.

    Args:
        key: such as `distill.loss_mask`.
        name: what a config calls it.
        part: what the entries of that table are (`edf_jax.methods.family`, `gradcam.METHODS`).

    Raises:
        ValueError: the key is none whose choices can be added to.
    """
    if key not in _TABLES:
        raise ValueError(f"{key} is none of {', '.join(_TABLES)}")
    _TABLES[key][name] = part
    _add_choice(key, name)


def add_method(name: str, *, like: str, **changes: Any) -> None:
    """Adds a method of the family; one of that name is replaced.

    Args:
        name: what `method` calls it.
        like: the method that it starts from.
        **changes: dotted keys and values that are its own (`**{"distill.loss_mask": "cpd"}`).

    Raises:
        ValueError: there is no such method or key, or a value is none of a key's.
    """
    if like not in METHODS:
        raise ValueError(f"there is no method {like!r} (there are {', '.join(METHODS)})")
    for key, value in changes.items():
        fault = SCHEMA[key].fault(value) if key in SCHEMA else "is no key of a config"
        if fault or value == AUTO:
            raise ValueError(f"{key}={value!r} {fault or 'leaves the method open'}")
    METHODS[name] = {**METHODS[like], **changes}
    _add_choice("method", name)


def add_network(name: str, build: Callable, *, options: Sequence[str] = ()) -> None:
    """Adds a network to the registry, as `edf_jax.models.register_network`."""
    register_network(name, build, options=options)


def add_source(name: str, open_source: Callable[[Any, pathlib.Path], Source]) -> None:
    """Adds a source of images; one of that name is replaced.

    Args:
        name: what `data.source` calls it.
        open_source: of `config.data` and the cache folder.
    """
    load.OPENERS[name] = open_source
    _add_choice("data.source", name)


def _add_choice(key: str, name: str) -> None:
    known = SCHEMA[key]
    if name not in known.choices:
        SCHEMA[key] = dataclasses.replace(known, choices=(*known.choices, name))
