"""Where the reference outputs lie and how the parity tests read them."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

# Of the difference to where a training started: a short way is mostly float32's rounding.
WAY_TOLERANCE = 1e-2

_DEFAULT = pathlib.Path(__file__).parent.parent / "fixtures" / "reference"


def folder() -> pathlib.Path:
    """The fixtures' folder: `EDF_REFERENCE_FIXTURES`, or the project's copy."""
    return pathlib.Path(os.environ.get("EDF_REFERENCE_FIXTURES") or _DEFAULT)


def load_npz(name: str) -> dict[str, np.ndarray]:
    """All arrays of `<name>.npz`."""
    with np.load(folder() / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def load_json(name: str) -> dict:
    """The content of `<name>.json`."""
    return json.loads((folder() / f"{name}.json").read_text())


def meta() -> dict:
    """The settings that the fixtures were made with."""
    return load_json("meta")


def standard_normals(k: int) -> np.random.Generator:
    """The generator of stream `k`, by the fixtures' seed rule."""
    return np.random.default_rng(meta()["seed"] * 1000 + k)


def relative_error(actual, expected) -> float:
    """`||actual - expected|| / ||expected||` in float64."""
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / (np.linalg.norm(expected) + 1e-300))
