"""How commands end: in one line, whatever their surroundings."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys

import pytest

from edf_jax import main
from edf_jax.runtime import console
from tests import tiny_run
from tests.data_layouts import write_folder


def _folder_run(*flags: str) -> int:
    return main.main(["edf_jax", f"--config={tiny_run.ROOT}/configs/folder.py", *flags])


@pytest.mark.parametrize("flag", ["config.data.path", "config.data.cache_dir", "workdir"])
def test_the_home_of_nobody_is_told_in_a_line(tmp_path, capsys, flag):
    write_folder(tmp_path / "pets", ["cat", "dog"])
    flags = {"config.data.path": tmp_path / "pets", flag: "~nobody.at.all/x"}
    assert _folder_run("--dry_run", *(f"--{name}={value}" for name, value in flags.items())) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("edf_jax: a path begins with ~, but that home folder isn't known")


def test_a_user_without_a_home_is_told_what_to_set(tmp_path, capsys, monkeypatch):
    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    write_folder(tmp_path / "pets", ["cat", "dog"])
    assert _folder_run("--dry_run", f"--config.data.path={tmp_path}/pets") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == (
        "edf_jax: there is no home folder for the data cache: set --config.data.cache_dir\n"
    )
    flags = (f"--config.data.path={tmp_path}/pets", f"--config.data.cache_dir={tmp_path}/cache")
    assert _folder_run("--dry_run", *flags) == 0


def test_a_closed_pipe_ends_in_a_line():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "edf_jax.main", "--help"],
            env=tiny_run.environment(), stdout=writing, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert ended.returncode == console.CLOSED
    assert ended.stderr == "edf_jax: nobody reads the output any more (a closed pipe)\n"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": 1}}'])
def test_json_that_is_none_or_too_deep_is_told_in_a_line(capsys, text):
    assert console.exit_status(lambda: json.loads(text)) == console.MISTAKE
    said = capsys.readouterr().err
    assert said.startswith("edf_jax: a JSON file can't be read (") and said.count("\n") == 1


def test_a_path_that_is_too_long_is_told_in_a_line(tmp_path, capsys):
    assert console.exit_status(lambda: (tmp_path / ("x" * 300)).read_text()) == console.MISTAKE
    said = capsys.readouterr().err
    assert "file name too long; mend that" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("JAX_PLATFORMS", "abacus", "JAX_PLATFORMS='abacus': no such device is here"),
        ("XLA_FLAGS", "--xla_no_such=1", "XLA_FLAGS='--xla_no_such=1' can't be used: Unknown flag"),
    ],
)
def test_an_environment_that_cannot_be_is_told_in_a_line(tmp_path, variable, value, told):
    ended = subprocess.run(
        tiny_run.command(tmp_path / "run"),
        env={**tiny_run.environment(), variable: value},
        cwd=tiny_run.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "") and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"edf_jax: {told}")
    assert not (tmp_path / "run").exists()


def test_other_faults_keep_their_traceback():
    def fault() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        console.exit_status(fault)
