"""The benchmarks do the same work twice, say so when they don't, and need few packages."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness, processes
from benchmarks.sizes import PRESETS, parse_sizes
from edf_jax.methods import dsa as augment

_TINY = [
    "--width=4", "--depth=1", "--resolution=8", "--ipc=1", "--batch=6", "--syn_steps=2",
    "--networks=2", "--epochs=2", "--images=12", "--rounds=1", "--device=cpu", "--threads=1",
]  # fmt: skip
_NEEDS_TORCH = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch (the extra `bench`) is not installed",
)
_OPTIONAL = (
    "ml_collections", "grain", "jaxtyping", "jinja2", "tensorflow_datasets", "tensorflow",
    "tensorboardX", "PIL", "matplotlib", "sklearn", "safetensors", "datasets", "psutil", "torch",
)  # fmt: skip


def _run(name: str, capsys, *flags: str) -> tuple[dict, str]:
    """A benchmark's record, as its last line has it, and all that it printed."""
    record = importlib.import_module(f"benchmarks.{name}").main([*_TINY, *flags])
    printed = capsys.readouterr().out
    last = printed.splitlines()[-1]
    assert last.startswith("BENCH ")
    assert json.loads(last.removeprefix("BENCH ")) == record
    return record, printed


@_NEEDS_TORCH
@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("matching", {"loss", "images", "labels", "alpha"}),
        ("experts", {"loss", "movement"}),
        ("evaluation", {"accuracy", "movement"}),
    ],
)
def test_both_frameworks_give_the_same_results(name, results, capsys):
    record, printed = _run(name, capsys)
    assert record["differences"].keys() == results
    assert max(record["differences"].values()) < 1e-4
    assert record["ratio"] == pytest.approx(
        record["pytorch_seconds"] / record["ours_seconds"], rel=1e-2
    )
    for which in ("ours", "pytorch"):
        assert record[f"{which}_peak_mib"] > 0
        assert record[f"{which}_device"] == "cpu"
    assert {"jax", "numpy", "torch"} <= record["versions"].keys()
    assert record["rate"]["gflops"] > 0
    assert "relative differences of results" in printed


@_NEEDS_TORCH
def test_maps_agree_to_rounding(capsys):
    record, _ = _run("gradcam", capsys, "--method=smooth_grad_cam_pp")
    assert record["differences"]["maps"] < 1e-4


@_NEEDS_TORCH
def test_results_that_differ_are_held_against_float64():
    record = harness.main("gradcam", "", {}, 0.0, _TINY)
    for which in ("ours", "pytorch"):
        assert 0 < record[f"{which}_from_float64"]["maps"] < 1e-6


def test_results_that_rounding_does_not_explain_are_an_error(capsys):
    from_float64 = {"ours_from_float64": {"a": 3e-3}, "pytorch_from_float64": {"a": 2e-3}}
    harness.check_results({"a": 5e-3, "b": 1e-5}, from_float64, 1e-4)
    from_float64["pytorch_from_float64"]["a"] = 1e-3
    with pytest.raises(SystemExit, match="differ by more than 0.0001: in a ours are 3.0e-03"):
        harness.check_results({"a": 5e-3}, from_float64, 1e-4)
    harness.check_results({"a": 5e-3}, {}, 1e-4)
    assert "float64 didn't fit" in capsys.readouterr().out


@_NEEDS_TORCH
def test_a_graph_that_does_not_fit_is_timed_on_fewer_steps_and_scaled(capsys):
    flags = ("--only=pytorch", "--syn_steps=4", "--memory_gib=0.001")
    record, _ = _run("matching", capsys, *flags)
    assert record["pytorch_steps"] == 1
    assert record["differences"] == {}
    assert "ours_seconds" not in record


def test_sizes_come_from_flags_then_the_benchmark_then_the_preset():
    sizes, _ = parse_sizes("", {"batch": 256}, ["--preset=imagenette-ipc10", "--syn_steps=3"])
    assert (sizes.width, sizes.resolution, sizes.batch, sizes.syn_steps) == (128, 128, 256, 3)
    assert parse_sizes("", {}, ["--precision=tf32"])[0].pytorch_precision == "tf32"
    assert {"cpu-small", "cpu", "imagenette-ipc10", "imagenette-ipc50"} == PRESETS.keys()


def test_rounds_take_turns_in_both_orders(capsys):
    asked = []

    def run(name, index):
        asked.append((index, name))
        return {"seconds": 1.0}

    rows = processes.alternate(("a", "b"), 2, run)
    assert asked == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert [len(found) for found in rows.values()] == [2, 2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_peak_memory_starts_anew():
    # In a process of its own: this one's threads and collector free memory when they please.
    script = """
import numpy as np
from benchmarks import processes

before = processes.resident_bytes()
large = np.ones(2**24)
assert processes.peak_resident_bytes() > before + large.nbytes // 2
del large
processes.reset_peak()
assert processes.peak_resident_bytes() < before + 2**26
assert processes.available_bytes() > 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=processes.ROOT)


def test_our_side_needs_no_optional_package():
    script = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {_OPTIONAL!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import benchmarks.ours
import benchmarks.problems
import benchmarks.matching, benchmarks.experts, benchmarks.evaluation, benchmarks.gradcam
import benchmarks.iteration_profile, benchmarks.precision
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=processes.ROOT, env=environment)


@_NEEDS_TORCH
def test_pytorchs_augmentation_is_ours():
    import torch

    from benchmarks.pytorch_layers import dsa

    generator = np.random.default_rng(0)
    images, cotangents = generator.standard_normal((2, 5, 9, 12, 3), np.float32)
    uniforms = generator.random((5, 3), np.float32)
    theirs_in = torch.tensor(images.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    for op in range(6):
        draws = augment.Draws(jnp.int32(op), jnp.asarray(uniforms))
        ours, pullback = jax.vjp(
            lambda x, draws=draws: augment.apply_dsa(draws, x, crop_ratio=0.25),
            jnp.asarray(images),
        )
        theirs = dsa(theirs_in, op, torch.tensor(uniforms), 0.25)
        (gradient,) = torch.autograd.grad(
            theirs, theirs_in, torch.tensor(cotangents.transpose(0, 3, 1, 2).copy())
        )
        for a, b in ((ours, theirs), (pullback(jnp.asarray(cotangents))[0], gradient)):
            expected = b.detach().numpy().transpose(0, 2, 3, 1)
            np.testing.assert_allclose(np.asarray(a), expected, atol=3e-5)


def _last_line(module: str, *flags: str) -> dict:
    command = [sys.executable, "-m", module, *_TINY, *flags]
    output = subprocess.run(
        command, check=True, cwd=processes.ROOT, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(output.splitlines()[-1].removeprefix("BENCH "))


@pytest.mark.slow
def test_precision_orders_by_width_of_the_format():
    errors = _last_line("benchmarks.precision", "--images=60", "--networks=1")["errors"]
    assert errors["float32"]["images"] < 1e-4
    assert errors["float32"]["images"] < errors["bfloat16"]["images"] < 0.5


@pytest.mark.slow
def test_profile_tells_parts_and_operations():
    record = _last_line("benchmarks.iteration_profile")
    assert record["parts"]["gradient of jvp"]["gflop"] > record["parts"]["forward pass"]["gflop"]
    assert sum(record["kinds"].values()) > 0
