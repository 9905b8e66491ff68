"""`edf`: every command under one name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

import edf_jax
from edf_jax.runtime import commands


def _status(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["edf", *arguments])
    return commands.main()


def test_a_command_is_run_as_its_module(monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        _status(monkeypatch, "doctor", "--help")
    assert left.value.code == 0 and "usage: python -m edf_jax.doctor" in capsys.readouterr().out


@pytest.mark.parametrize("module", [module for module, _ in commands.COMMANDS.values()])
def test_every_command_can_be_run(module):
    spec = importlib.util.find_spec(module)
    package = spec.submodule_search_locations is not None
    assert not package or importlib.util.find_spec(f"{module}.__main__")


def test_the_version_is_the_package_s(monkeypatch, capsys):
    assert _status(monkeypatch, "--version") == 0
    version = importlib.metadata.version("edf_jax")
    assert capsys.readouterr().out == f"edf_jax {version}\n" and edf_jax.__version__ == version


def test_an_unknown_command_is_told(monkeypatch, capsys):
    assert _status(monkeypatch, "ditsil") == 2
    assert "no command ditsil" in capsys.readouterr().err
    assert _status(monkeypatch) == 2


def test_importing_the_package_imports_no_jax():
    code = "import sys, edf_jax; edf_jax.__version__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
