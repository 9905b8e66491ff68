"""Runs as rows of a file: read as they were written, known by their settings, added one by one."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json

import pytest

from edf_jax.config.resolve import default_config, resolve
from edf_jax.runtime.errors import UserError
from experiments import rows

_ROW = rows.Row(
    experiment="nette",
    method="edf, SmoothGrad-CAM++",
    data="imagenette",
    resolution=32,
    ipc=10,
    seed=3,
    accuracies=(41.73611068725586, 49.16666793823242),
    best_on_test=(50.0,),
    held_out=44.5,
    seconds=111.5,
    skipped=0,
    command='python -m edf_jax.main --x="a, b"',
    settings={"distill.lr_img": 1000.0, "seed": 3},
)


def _config(**values):
    return resolve(default_config(**values))


def test_a_row_reads_as_it_was_written(tmp_path):
    path = tmp_path / "results" / "nette.csv"
    other = dataclasses.replace(_ROW, method="datm", settings={"method": "datm"})
    rows.append(path, _ROW)
    rows.append(path, other)
    first, second = rows.read(path)
    # A float32 survives.
    assert first.accuracies == pytest.approx(_ROW.accuracies, rel=1e-7)
    assert dataclasses.replace(first, accuracies=_ROW.accuracies) == _ROW
    assert (second.method, second.digest) == ("datm", other.digest) != ("datm", first.digest)
    line = rows.read_lines(path)[0]
    assert (line["mean"], line["std"], line["digest"]) == ("45.45", "3.72", _ROW.digest)
    assert not list(path.parent.glob(".*"))


def test_a_trial_needs_no_test_images(tmp_path):
    trial = dataclasses.replace(_ROW, accuracies=(), best_on_test=())
    rows.append(tmp_path / "nette.csv", trial)
    assert rows.read(tmp_path / "nette.csv") == [trial]
    (line,) = rows.read_lines(tmp_path / "nette.csv")
    assert (line["mean"], line["held_out"]) == ("", "44.5")


def test_the_same_run_takes_its_rows_place(tmp_path):
    path = tmp_path / "nette.csv"
    rows.append(path, _ROW)
    rows.append(path, dataclasses.replace(_ROW, accuracies=(1.0,)))
    rows.append(path, dataclasses.replace(_ROW, experiment="woof"))
    assert [(row.experiment, row.mean) for row in rows.read(path)] == [
        ("nette", 1.0),
        ("woof", pytest.approx(_ROW.mean)),
    ]


def test_a_file_of_fewer_columns_can_be_added_to(tmp_path):
    path = tmp_path / "nette.csv"
    path.write_text(
        "experiment,method,data,resolution,ipc,seed,accuracies,note\nnette,edf,d,8,1,0,5 6,kept\n"
    )
    assert rows.read(path)[0].mean == 5.5
    rows.append(path, _ROW)
    assert [row.seed for row in rows.read(path)] == [0, 3]
    assert [line["note"] for line in rows.read_lines(path)] == ["kept", ""]


def test_paths_logs_and_devices_are_no_part_of_a_runs_identity():
    values = {"distill.ipc": 1, "data.path": "/a", "data.cache_dir": "/c", "experts.dir": "e"}
    values |= {"teacher.dir": "t", "data.workers": 2, "log.tensorboard": False}
    settings = rows.settings_of(_config(**values, **{"parallel.data": 1}))
    assert settings == rows.settings_of(_config(**{"distill.ipc": 1}))
    assert settings["distill.ipc"] == 1 and "data.path" not in settings
    # What config.json holds is the same run.
    written = json.loads(_config(**values).to_json())
    assert rows.settings_of(written) == settings


@pytest.mark.parametrize("key, value", [("seed", 1), ("distill.lr_img", 1.0), ("method", "mtt")])
def test_another_value_is_another_run(key, value, tmp_path):
    path = tmp_path / "nette.csv"
    settings = rows.settings_of(_config())
    assert not rows.is_kept(path, settings)
    rows.append(path, dataclasses.replace(_ROW, settings=settings))
    assert rows.is_kept(path, settings)
    assert not rows.is_kept(path, rows.settings_of(_config(**{key: value})))
    # Real images by the same config are another thing.
    assert not rows.is_kept(path, rows.settings_of(_config(), made="random"))


def test_a_key_that_is_new_leaves_earlier_runs_known():
    config = json.loads(_config().to_json())
    settings = rows.settings_of(config)
    del config["distill"]["drop"], config["data"]["held_out"]
    assert rows.settings_of(config) == settings


def test_several_add_to_a_file_at_once(tmp_path):
    path = tmp_path / "nette.csv"

    def add(seed):
        rows.append(path, dataclasses.replace(_ROW, seed=seed, settings={"seed": seed}))

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(add, range(12)))
    assert sorted(row.seed for row in rows.read(path)) == list(range(12))


@pytest.mark.parametrize(
    "text, told",
    [
        ("<<<<<<< HEAD\n", "row 2, has not as many columns"),
        ("nette,edf,d,8,ten,0,5\n", "row 2, isn't a run's .*'ten'"),
    ],
)
def test_a_file_that_holds_something_else_is_told_in_a_line(text, told, tmp_path):
    path = tmp_path / "nette.csv"
    path.write_text(
        f"experiment,method,data,resolution,ipc,seed,accuracies\nnette,edf,d,8,1,0,5\n{text}"
    )
    with pytest.raises(UserError, match=told):
        rows.read(path)


def test_a_file_without_the_columns_of_runs_is_told(tmp_path):
    (tmp_path / "nette.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="isn't a run's"):
        rows.read(tmp_path / "nette.csv")
