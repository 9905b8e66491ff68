"""A run's folder: one config, one process at a time, clocks that add up; killed and continued."""

from __future__ import annotations

import json
import os
import time

import jax
import numpy as np
import pytest

from edf_jax.config.resolve import default_config, resolve
from edf_jax.runs.files import RunFiles
from edf_jax.runs.folder import OF_A_GRID, Run, check_same, refuse_foreign
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError
from tests import crash


def _run(workdir, **values):
    return Run(workdir, resolve(default_config(**values)), "command")


def test_a_second_process_on_a_folder_is_refused(tmp_path):
    with _run(tmp_path / "r"):
        with pytest.raises(UserError, match="another process works on .*r: wait"):
            with _run(tmp_path / "r"):
                pass
    with _run(tmp_path / "r"):
        pass


def test_another_value_for_a_pinned_key_is_refused_with_both(tmp_path):
    with _run(tmp_path, **{"distill.ipc": 10}):
        pass
    pinned = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match="was started with distill.ipc=10, not 1"):
        with _run(tmp_path, **{"distill.ipc": 1}):
            pass
    assert (tmp_path / "config.json").read_text() == pinned


def test_free_keys_and_more_iterations_continue(tmp_path):
    with _run(tmp_path):
        pass
    changed = {
        "evaluate.epochs": 3, "log.tensorboard": False, "distill.select": "test",
        "distill.on_nan": "stop", "distill.iterations": 10_001,
    }
    with _run(tmp_path, **changed):
        pass
    assert json.loads((tmp_path / "config.json").read_text())["distill"]["iterations"] == 10_001
    with pytest.raises(UserError, match=r"iterations=10001: fewer \(10000\) need another"):
        with _run(tmp_path):
            pass


def test_a_key_that_was_no_key_then_counts_as_its_default():
    config = resolve(default_config())
    check_same("it", {"distill.ipc": config.distill.ipc}, config)
    with pytest.raises(UserError, match="seed=0, not 5"):
        check_same("it", {"distill.ipc": 10}, resolve(default_config(seed=5)))


@pytest.mark.parametrize("content", [None, "", "{", "3", "[]", '{"seed": '])
def test_a_damaged_config_is_written_again_with_a_warning(tmp_path, caplog, content):
    storage.write_record(tmp_path / "experts" / "store.json", {})
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with _run(tmp_path):
        pass
    assert "config.json is missing or damaged" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_time_adds_up_over_sittings_by_stage(tmp_path):
    for _ in range(2):
        with _run(tmp_path) as run:
            with run.stage("experts"):
                time.sleep(0.06)
            time.sleep(0.03)
    times = storage.read_record(tmp_path / "times.json")["seconds"]
    assert times["experts"] > 0.11 and times["set-up"] > 0.05
    with _run(tmp_path) as run:
        provenance = run.provenance()
    assert provenance["seconds"] >= 0.1 and provenance["command"] == "command"


@pytest.mark.parametrize("content", ["", '{"seconds": {"experts": 5}, "digest": "0"}', None])
def test_damaged_times_start_again_with_a_warning(tmp_path, caplog, content):
    with _run(tmp_path):
        pass
    (tmp_path / "times.json").unlink()
    if content is not None:
        (tmp_path / "times.json").write_text(content)
    with _run(tmp_path) as run:
        assert run.provenance()["seconds"] < 2
    assert "time counts from now" in caplog.text


def test_a_mistake_found_before_anything_was_made_leaves_nothing(tmp_path):
    with pytest.raises(UserError):
        with _run(tmp_path / "a" / "b"):
            raise UserError("no images")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        ("notes.txt",),
        (".thesis.tmp", "figures/.backup.old", "checkpoints/state.tmp"),
        ("config.json", "model.safetensors"),
        ("metrics.jsonl",),
    ],
)
def test_a_folder_of_somebody_else_is_refused_and_nothing_in_it_touched(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"model_type": "vit"}')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="holds other files .*: give a new or an empty folder"):
        with _run(tmp_path):
            pass
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_teacher_half_trained_is_no_other_folder(tmp_path):
    storage.save_arrays(tmp_path / "teacher", {"leaf0": np.zeros(2)}, {"epoch": 1})
    refuse_foreign(tmp_path, OF_A_GRID)


def test_what_an_early_kill_leaves_is_no_other_folder(tmp_path):
    (tmp_path / ".lock").touch()
    with pytest.raises(KeyboardInterrupt):
        with storage.appearing(tmp_path / "config.json") as temporary:
            temporary.touch()
            (tmp_path / temporary.name.replace("config", "times")).touch()
            raise KeyboardInterrupt
    with _run(tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock", "config.json", "environment.json", "times.json",
    ]


def test_the_time_of_another_run_is_not_counted(tmp_path, caplog):
    for name, seed in (("a", 0), ("b", 1)):
        with _run(tmp_path / name, seed=seed) as run, run.stage("experts"):
            time.sleep(0.02)
    os.replace(tmp_path / "a" / "times.json", tmp_path / "b" / "times.json")
    with _run(tmp_path / "b", seed=1):
        pass
    assert "put there from elsewhere" in caplog.text and "time counts from now" in caplog.text


def test_a_result_is_read_in_its_own_run_alone(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        with _run(tmp_path / name, seed=seed) as run:
            run.write_result({"distilled_mean": 30.0 + seed})
    assert RunFiles(tmp_path / "b").result == {"distilled_mean": 31.0}
    os.replace(tmp_path / "a" / "result.json", tmp_path / "b" / "result.json")
    with pytest.raises(UserError, match="b/result.json is of a run with another config"):
        _ = RunFiles(tmp_path / "b").result
    (tmp_path / "b" / "result.json").write_text('{"distilled_mean": 32.0}')  # As they once were.
    assert RunFiles(tmp_path / "b").result == {"distilled_mean": 32.0}


def test_changed_bytes_of_a_config_are_noticed(tmp_path, caplog):
    with _run(tmp_path, **{"distill.ipc": 10}):
        pass
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"ipc": 10', '"ipc": 11'))
    with pytest.raises(UserError, match="digest differs.*remove it, or run again"):
        _ = RunFiles(tmp_path).config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "bfloat16"),
    ],
)
def test_other_settings_of_jax_than_a_run_was_started_with_are_refused(tmp_path, name, value):
    with _run(tmp_path):
        pass
    recorded, was = (tmp_path / "environment.json").read_text(), getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(UserError, match=f"with {name}={was}, not {value}, .*{name.upper()}"):
            with _run(tmp_path):
                pass
    finally:
        jax.config.update(name, was)
    assert (tmp_path / "environment.json").read_text() == recorded
    with _run(tmp_path):
        pass


def test_an_override_of_tf32_is_another_environment(tmp_path, monkeypatch):
    with _run(tmp_path):
        pass
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(UserError, match="with NVIDIA_TF32_OVERRIDE=None, not 1"):
        with _run(tmp_path):
            pass


def test_a_damaged_record_of_the_environment_is_made_again_with_a_warning(tmp_path, caplog):
    with _run(tmp_path):
        pass
    recorded = (tmp_path / "environment.json").read_text()
    (tmp_path / "environment.json").write_text(recorded.replace("false", "true"))
    with _run(tmp_path):
        pass
    assert "JAX's settings are taken from now" in caplog.text
    assert (tmp_path / "environment.json").read_text() == recorded


def test_a_failure_after_something_was_made_leaves_it(tmp_path):
    with pytest.raises(UserError):
        with _run(tmp_path / "r"):
            (tmp_path / "r" / "experts").mkdir()
            (tmp_path / "r" / "experts" / "store.json").write_text("{}")
            raise UserError("no space")
    assert (tmp_path / "r" / "config.json").exists()


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "s3://b", "/proc/none/run"])
def test_a_folder_that_cannot_be_is_refused(workdir):
    with pytest.raises(UserError, match="folder|can't be written"):
        with _run(crash.Path(workdir)):
            pass


def test_a_run_killed_twice_makes_what_one_left_alone_makes(tmp_path, capsys):
    assert crash.crash(2, 1, tmp_path) == (2, 2, 0), capsys.readouterr().out


@pytest.mark.slow
def test_a_run_killed_twenty_times_makes_what_one_left_alone_makes(tmp_path, capsys):
    assert crash.crash(20, 0, tmp_path) == (20, 20, 0), capsys.readouterr().out
