"""Each augmentation, with the draws that the official code made."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from edf_jax.methods import dsa
from tests.parity import reference
from tests.parity.reference_networks import nhwc


def _ops() -> dict:
    settings = reference.meta()["dsa"]
    return {
        "brightness": functools.partial(dsa.brightness, strength=settings["brightness"]),
        "saturation": functools.partial(dsa.saturation, strength=settings["saturation"]),
        "contrast": functools.partial(dsa.contrast, strength=settings["contrast"]),
        "crop": dsa.crop,
        "cutout": functools.partial(dsa.cutout, ratio=settings["ratio_cutout"]),
        "flip": functools.partial(dsa.flip, probability=settings["prob_flip"]),
        "scale": functools.partial(dsa.scale, ratio=settings["ratio_scale"]),
        "rotate": functools.partial(dsa.rotate, degrees=settings["ratio_rotate"]),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", _ops())
def test_op_is_the_official_one(name, dtype):
    arrays = reference.load_npz("dsa")
    count = sum(key.startswith(f"{name}_draw") for key in arrays)
    with jax.enable_x64(True):
        draws = [jnp.asarray(arrays[f"{name}_draw{i}"].reshape(-1), dtype) for i in range(count)]
        result = _ops()[name](jnp.asarray(nhwc(arrays["x"]), dtype), *draws)
    error = reference.relative_error(result, nhwc(arrays[f"{name}_out"]))
    print(f"relative error {name} {dtype}: {error:.2e}")
    assert result.dtype == dtype
    assert error < 1e-4


def test_fixture_holds_no_other_op():
    outputs = {key.removesuffix("_out") for key in reference.load_npz("dsa") if "_out" in key}
    assert outputs == set(_ops())
