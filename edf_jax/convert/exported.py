"""Reads a distilled set in every form of ours that holds all of it: `edf_jax.load`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zipfile

import numpy as np

from edf_jax import distilled_set
from edf_jax.convert.distilled_set import import_set, of_record
from edf_jax.distilled_set import DistilledSet
from edf_jax.runtime.errors import UserError


def load(path: str | os.PathLike) -> DistilledSet:
    """Reads a distilled set: of a run, of the zoo, or what `edf_jax.export` wrote.

    Args:
        path: what `distilled_set.load` takes (a `.safetensors` file, a run's folder or
            `zoo:NAME`); or an export as `npz`, `torch` or `huggingface`.

    Raises:
        UserError: nothing is there, it isn't a set of ours, or an export that holds 8 bits alone.
    """
    place = distilled_set.located(path)
    if place.suffix == ".npz":
        return _read_npz(place)
    is_export = (place / "distilled_set.json").exists() and not (place / "distilled").is_dir()
    if not is_export:
        return distilled_set.load(place)
    if (place / "images_best.pt").exists():
        return import_set(place)
    exact = place / "distilled.safetensors"
    if not exact.exists():
        raise UserError(f"{place} holds 8-bit images: export as npz, torch or huggingface")
    return distilled_set.load(exact)


def _read_npz(path: pathlib.Path) -> DistilledSet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            told = of_record(str(arrays["record"]))
            tensors = [arrays[name] for name in ("images", "labels", "alpha")]
        images, labels, alpha = tensors
        given = {field.name: getattr(told, field.name) for field in dataclasses.fields(told)}
        found = DistilledSet(images, labels, float(alpha), **given)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} can't be read as an export of edf_jax: {error}") from error
    if images.ndim != 4 or labels.shape != (len(images), len(told.class_names)):
        raise UserError(f"{path} holds images {images.shape} with labels {labels.shape}")
    return found
