"""Devices to compile for that aren't there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from edf_jax import main
from edf_jax.plan import targets
from edf_jax.runtime.errors import UserError


def test_a_target_and_how_many_of_it():
    assert targets.parse("h100") == (targets.TARGETS["h100"], 1)
    assert targets.parse("a100_40") == (targets.TARGETS["a100_40"], 1)
    assert targets.parse("v5ex4") == (targets.TARGETS["v5e"], 4)
    for wrong in ("h1000", "h100x9", "h100x", "x4", "cpu"):
        with pytest.raises(UserError, match="write one of a100_40"):
            targets.parse(wrong)


def test_rates_and_sizes_are_in_order():
    for name, target in targets.TARGETS.items():
        assert target.name == name and (target.gpu is None) != (target.tpu is None)
        assert target.rates["float32"] <= target.rates["tf32"] < target.rates["bfloat16"]
        assert 2**34 * 0.9 < target.memory < 2**38 and 1e11 < target.bandwidth < 1e13


def test_the_command_refuses_in_one_line(capsys):
    command = ["edf_jax", "--config=configs/cluttered_digits.py:demo", "--workdir=unused"]
    assert main.main([*command, "--dry_run=compile", "--target=gtx480"]) == 2
    assert "--target=gtx480: write one of" in capsys.readouterr().err
    for other in (["--dry_run"], []):
        assert main.main([*command, *other, "--target=h100"]) == 2
        assert "--target=h100 goes with --dry_run=compile" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "module", "extra"),
    [("l4", "jax_cuda12_plugin", "aot-gpu"), ("v6e", "libtpu", "aot-tpu")],
)
def test_without_the_compiler_one_line_says_what_installs_it(target, module, extra, capsys):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    command = ["edf_jax", "--config=configs/cluttered_digits.py:demo", "--workdir=unused"]
    assert main.main([*command, "--dry_run=compile", f"--target={target}"]) == 2
    told = capsys.readouterr().err.strip()
    assert f"pip install 'edf_jax[{extra}]'" in told and "\n" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "module"), [("h100", "jax_cuda12_plugin"), ("v5e", "libtpu")]
)
def test_a_run_is_compiled_for_what_is_not_there(target, module, tmp_path):
    if not importlib.util.find_spec(module):
        pytest.skip(f"needs {module} (an extra)")
    command = [
        sys.executable, "-m", "edf_jax.main", "--config=configs/cluttered_digits.py:demo",
        f"--workdir={tmp_path / 'run'}", "--dry_run=compile", f"--target={target}",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert f"compiled for {targets.TARGETS[target].kind}" in told
    rows = [line for line in told.splitlines() if line.startswith(("outer iteration", "epoch"))]
    assert len(rows) == 3 and all(row.split()[-1] == "yes" for row in rows)
    assert not (tmp_path / "run").exists()
