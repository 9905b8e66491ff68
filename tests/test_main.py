"""The command from end to end: how it ends, what it refuses, and that it continues."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from edf_jax.config.flags import parse
from edf_jax.config.resolve import resolve
from edf_jax.main import main
from edf_jax.runs.metrics import read_metrics
from edf_jax.runtime import locks, storage
from tests import badinput, tiny_run

_SETTINGS = {
    "experts__num": 2, "experts__epochs": 3, "distill__max_start_epoch": 2,
    "distill__iterations": 30, "log__tensorboard": False, "evaluate__epochs": 1,
}


def _main(workdir, *flags, **settings):
    arguments = tiny_run.arguments(workdir, **{**_SETTINGS, **settings})
    return main(["edf_jax", *arguments, *flags])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert _main(workdir) == 0
    return workdir


def test_help_says_how_and_ends_well(capsys):
    for flag in ("--help", "-h", "--helpfull"):
        assert main(["edf_jax", flag]) == 0
        out = capsys.readouterr().out
        assert "--config=" in out and "75 stopped by SIGTERM" in out


def test_a_methods_flag_stands_against_the_variants(tmp_path):
    def threshold(*flags):
        config = resolve(parse(["edf_jax", *flags], lambda values: None).config)
        return config.method, config.distill.threshold

    file = f"--config={tiny_run.ROOT}/configs/imagenette.py:ipc10"
    assert threshold(f"{file},method=mtt") == ("mtt", 0.0)
    assert threshold(f"{file},method=mtt", "--config.method=datm") == ("datm", 1.5)
    both = ("--config.method=datm", "--config.distill.threshold=0.7")
    assert threshold(f"{file},method=mtt", *both) == ("datm", 0.7)


def test_a_missing_wandb_is_told_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert _main(tmp_path / "run", log__wandb_project="mine") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'edf_jax[wandb]'" in said
    assert not (tmp_path / "run").exists()


def test_a_finished_run_ends_in_a_line_for_programs_and_again_at_once(whole, capsys):
    began = time.monotonic()
    assert _main(whole) == 0
    assert time.monotonic() - began < 60
    name, _, figures = capsys.readouterr().out.splitlines()[-1].partition(" ")
    assert name == "RESULT"
    figures = json.loads(figures)
    assert {"random_mean", "distilled_mean", "full_mean", "seconds"} <= set(figures)
    assert figures["workdir"] == str(whole)


def _when_distilling(workdir, at, act):
    """Calls `act` in a thread once `at` iterations are recorded."""

    def watch():
        for _ in range(3000):
            if len(read_metrics(workdir, "distill")) >= at:
                return act()
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_sigterm_saves_and_the_same_command_continues_to_the_same_contents(
    whole, tmp_path, capsys
):
    workdir = tmp_path / "run"
    watcher = _when_distilling(workdir, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert _main(workdir) == 75
    watcher.join()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "edf_jax: asked to stop by SIGTERM; all is saved, and the same command continues"
    steps = len(read_metrics(workdir, "distill"))
    assert 8 <= steps < 30
    assert (workdir / "checkpoints" / f"iteration_{steps:06d}").exists()
    assert _main(workdir) == 0
    assert tiny_run.contents(workdir) == tiny_run.contents(whole)


def test_more_iterations_continue_to_what_so_many_make_from_the_start(whole, tmp_path):
    workdir = tmp_path / "run"
    assert _main(workdir, "--stage=distill", distill__iterations=13) == 0
    assert _main(workdir) == 0
    assert tiny_run.contents(workdir) == tiny_run.contents(whole)


def test_a_grid_of_one_image_is_pixels_bit_for_bit(whole, tmp_path):
    workdir = tmp_path / "run"
    grid = {"distill__parametrisation": "multi_formation", "distill__parametrisation_factor": 1}
    assert _main(workdir, **grid) == 0
    found, expected = tiny_run.contents(workdir), tiny_run.contents(whole)
    named_alike = {name.replace("/parameters", "/images"): value for name, value in found.items()}
    # Which name the config, or go by it.
    differing = {name for name in expected if named_alike.get(name) != expected[name]}
    assert all(name.endswith(("details", ".json")) for name in differing)
    accuracies = [
        storage.read_record(path / "result.json", sealed=False)["distilled_accuracies"]
        for path in (workdir, whole)
    ]
    assert accuracies[0] == accuracies[1]


def test_a_disk_that_fills_up_is_told_in_a_line_and_the_run_continues(
    whole, tmp_path, capsys, monkeypatch
):
    workdir, save = tmp_path / "run", storage.save_arrays

    def fill_up(path, *arguments):
        if path.name in ("epoch_0002", "iteration_000012"):
            with storage.writing(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, *arguments)

    for place in ("epoch_0002", "iteration_000012"):
        monkeypatch.setattr(storage, "save_arrays", fill_up)
        assert _main(workdir) == 2
        monkeypatch.undo()
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith("edf_jax: ")] == lines[-1:]
        assert f"{place} can't be written: no space left on device" in lines[-1]
        assert _main(workdir, "--stage=experts") == 0
    assert _main(workdir) == 0
    assert tiny_run.contents(workdir) == tiny_run.contents(whole)


def test_rows_that_cannot_be_written_end_the_run_in_a_line(whole, capsys, monkeypatch):
    from edf_jax.runs.metrics import MetricsWriter

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(whole / "metrics.jsonl"))

    monkeypatch.setattr(MetricsWriter, "__init__", full)
    assert _main(whole) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"edf_jax: {whole / 'metrics.jsonl'}: no space left on device")


def test_ctrl_c_ends_in_a_line(tmp_path, capsys, monkeypatch):
    from edf_jax.runs import prepare

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "load_dataset", interrupt)
    assert _main(tmp_path / "run") == 130
    assert capsys.readouterr().err == "edf_jax: interrupted; the same command continues\n"


def test_a_second_process_and_another_value_are_refused(whole, capsys):
    with locks.locked(whole, "busy"):
        assert _main(whole) == 2
    assert "another process works on" in capsys.readouterr().err
    assert _main(whole, distill__lr_img=3.0) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "distill.lr_img=1000.0, not 3.0" in said


def test_another_environment_is_refused_in_a_line(whole):
    ended = subprocess.run(
        tiny_run.command(whole, **_SETTINGS),
        env={**tiny_run.environment(), "JAX_ENABLE_X64": "1"},
        cwd=tiny_run.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "") and ended.stderr.count("\n") == 1
    assert "started with jax_enable_x64=False, not True" in ended.stderr
    assert "set that as it was" in ended.stderr


def test_configs_are_found_from_anywhere_and_ones_own_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["edf_jax", "--config=configs/cluttered_digits.py", "--dry_run"]) == 0
    assert main(["edf_jax", "--config", "configs/cluttered_digits.py:demo", "--dry_run"]) == 0
    own = "def get_config():\n    from edf_jax.config import default_config as d\n    return d()\n"
    (tmp_path / "own.py").write_text(own)
    assert main(["edf_jax", "--config=own.py", "--dry_run=plan"]) == 0
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "runs").exists()


def test_bad_flags_values_and_files_are_refused_in_a_line():
    cases = [
        *list(badinput.command_cases())[::2],
        *list(badinput.value_cases())[::30],
        *list(badinput.file_cases())[::6],
        *[case for case in badinput.place_cases() if not case.environment][::7],
        *list(badinput.stranger_cases())[::3],
        *badinput.generated_cases(15),
    ]
    assert badinput.check(cases, 1) == []


@pytest.mark.slow
def test_all_bad_inputs_are_refused_in_a_line(capsys):
    assert badinput.main() == 0, capsys.readouterr().out
