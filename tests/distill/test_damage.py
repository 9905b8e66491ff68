"""Damaged copies of every file that a later step reads.

The run either ends with the contents of an undamaged one, or is refused in a line; rows of
metrics.jsonl that are lost may stay lost, with a warning. Nothing changes a result in silence.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edf_jax.data import load_dataset, whitening
from edf_jax.main import main
from tests import tiny_run
from tests.damage import DAMAGES, damage

_SETTINGS = {
    "experts__num": 2, "experts__epochs": 3, "distill__max_start_epoch": 2,
    "distill__iterations": 16, "distill__save_every": 3, "distill__eval_every": 5,
    "log__tensorboard": False, "evaluate__epochs": 1, "evaluate__baseline_rates": "0.03",
}
_NOT_READ = ("figures/*.png", "report.html", "*/.lock", ".lock", "tensorboard/*")


def _main(workdir, *flags, **settings):
    arguments = tiny_run.arguments(workdir, **{**_SETTINGS, **settings})
    return main(["edf_jax", *arguments, *flags])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The contents of a whole run, a run left half-way, and the finished one."""
    folder = tmp_path_factory.mktemp("runs")
    whole, half = folder / "whole", folder / "half"
    assert _main(half, "--stage=distill", distill__iterations=13) == 0
    shutil.copytree(half, whole)
    assert _main(whole) == 0
    return tiny_run.contents(whole), {"half": half, "whole": whole}


def _files(workdir: Path) -> list[str]:
    return sorted(
        path.relative_to(workdir).as_posix()
        for path in workdir.rglob("*")
        if path.is_file() and not any(path.match(pattern) for pattern in _NOT_READ)
    )


def _check(runs, state, name, how, seed, tmp_path, capsys) -> str:
    """Damages one file of a copy and runs on; returns what was said."""
    expected, states = runs
    workdir = tmp_path / "copy"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(states[state], workdir)
    damage(workdir / name, how, np.random.default_rng(seed))
    capsys.readouterr()
    status = _main(workdir)
    lines = capsys.readouterr().err.splitlines()
    case = f"{how} {name} of the {state} run: {lines}"
    warnings = [line for line in lines if line.startswith("WARNING: ")]
    assert not any("Traceback" in line for line in lines), case
    if status == 2:
        assert sum(line.startswith("edf_jax: ") for line in lines) == 1, case
        return lines[-1]
    assert status == 0, case
    found = tiny_run.contents(workdir)
    if any(value == "damaged" for value in found.values()):
        # Nothing read it, as its place in the run is over.
        place = name.partition("/digests.json")[0].partition("/arrays")[0]
        assert [key for key, value in found.items() if value == "damaged"] == [place], case
        del found[place]
        expected = {key: value for key, value in expected.items() if not key.startswith(place)}
    if name == "metrics.jsonl":
        rows = [key for key in expected if re.search(r"^\w+ row \d", key)]
        assert {found.pop(row, None) for row in rows} <= {*(expected[row] for row in rows), None}
        expected = {key: value for key, value in expected.items() if key not in rows}
        # The result says how many rows there are.
        found, expected = (
            {k: re.sub(r'"metrics_rows": \d+', "", v) for k, v in of.items()}
            for of in (found, expected)
        )
    lost = any(key.startswith(name) for key in expected) and not (workdir / name).exists()
    if lost and re.fullmatch(r"distilled/step_\d+\.safetensors", name):
        # A set of an iteration that is over can't be made again. The result needs none of it; that
        # it is gone is told, unless whoever deleted it knows.
        assert how == "delete" or any("left out of the report" in line for line in warnings), case
        expected = {key: value for key, value in expected.items() if not key.startswith(name)}
    assert found == expected, case
    return "\n".join(warnings)


_SNAPSHOT = "experts/group_000/epoch_0003"


def _data_file(workdir: Path, checkpoint: str) -> str:
    """The largest file of a checkpoint: its arrays."""
    files = [path for path in (workdir / checkpoint).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size).relative_to(workdir).as_posix()


@pytest.mark.parametrize(
    "state, name, how, said",
    [
        ("half", "config.json", "truncate", "config.json is missing or damaged"),
        ("half", "times.json", "flip", "time counts from now"),
        ("half", "metrics.jsonl", "flip", "1 rows are lost or damaged"),
        ("half", "metrics.jsonl", "delete", "lacks 13 rows of stage distill"),
        ("half", "experts/store.json", "empty", "made again from the snapshots"),
        ("half", f"{_SNAPSHOT}/digests.json", "truncate", "epoch_0003"),
        ("half", f"{_SNAPSHOT}/arrays/manifest.ocdbt", "empty", "trained again"),
        ("half", "checkpoints/iteration_000013 data", "flip", "checkpoint before"),
        ("half", "checkpoints/iteration_000013/digests.json", "delete", "checkpoint before"),
        ("half", "distilled/step_0.safetensors", "truncate", "made again"),
        ("half", "distilled/best_on_test.safetensors", "flip", "made again from the set"),
        ("whole", "distilled/step_0.safetensors", "flip", "made again"),
        ("whole", "distilled/step_0.safetensors", "delete", "made again"),
        ("whole", "distilled/last.safetensors", "flip", "made again from the last checkpoint"),
        ("whole", "distilled/best_on_test.safetensors", "delete", "made again"),
        ("whole", "figures/activation_maps.safetensors", "flip", "left out"),
        ("whole", "evaluation.json", "flip", "measured again"),
    ],
)
def test_damage_is_told_of_and_made_good(runs, tmp_path, capsys, state, name, how, said):
    if name.endswith(" data"):
        name = _data_file(runs[1][state], name.removesuffix(" data"))
    for seed in range(2 if how == "flip" else 1):
        assert said in _check(runs, state, name, how, seed, tmp_path, capsys)


@pytest.mark.parametrize("name", ["average", "best_on_held_out"])
def test_a_lost_moving_average_or_best_set_is_made_again(tmp_path, capsys, name):
    settings = {"distill__average": 0.9, "data__held_out": 0.1}
    workdir = tmp_path / "run"
    assert _main(workdir, "--stage=distill", **settings) == 0
    expected = tiny_run.contents(workdir)
    path = workdir / "distilled" / f"{name}.safetensors"
    for damages in ("flip", "delete", "delete and its checkpoints"):
        damage(path, damages.split()[0], np.random.default_rng(0))
        if "checkpoints" in damages:
            shutil.rmtree(workdir / "checkpoints")
        capsys.readouterr()
        assert _main(workdir, "--stage=distill", **settings) == 0
        assert "made again from the last checkpoint" in capsys.readouterr().err
        assert tiny_run.contents(workdir) == expected


@pytest.mark.slow
@pytest.mark.parametrize("state", ["half", "whole"])
def test_no_damage_to_any_file_changes_the_result_in_silence(runs, tmp_path, capsys, state):
    tried = 0
    for name in _files(runs[1][state]):
        for how in DAMAGES:
            if (runs[1][state] / name).stat().st_size:
                _check(runs, state, name, how, tried, tmp_path, capsys)
                tried += 1
    with capsys.disabled():
        print(f"\n{tried} damaged copies of the {state} run")


class _Config(dict):
    __getattr__ = dict.__getitem__


def test_no_damage_to_prepared_images_goes_unseen(tmp_path, recwarn):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).save(folder / f"{i}.png")
    config = _Config(
        source="folder", name="", path=str(tmp_path / "data"), subset="", class_list="",
        resolution=8, zca=True, resize="squash", antialias=True,
        cache_dir=str(tmp_path / "cache"), workers=1, on_device="auto", seed=0, held_out=0.0,
    )
    whole = load_dataset(config)
    expected = whole.info.normalisation.apply(np.asarray(whole.train.images))
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) >= 6
    for number, file in enumerate(sorted(files)):
        for how in DAMAGES:
            damage(file, how, np.random.default_rng(number))
            whitening.load.cache_clear()
            whitening.load_inverse.cache_clear()
            again = load_dataset(config)
            case = f"{how} {file.name}"
            assert again.info.fingerprint == whole.info.fingerprint, case
            for split in ("train", "test"):
                ours, theirs = getattr(again, split), getattr(whole, split)
                np.testing.assert_array_equal(ours.images, theirs.images, case)
                np.testing.assert_array_equal(ours.labels, theirs.labels, case)
            found = again.info.normalisation.apply(np.asarray(again.train.images))
            np.testing.assert_array_equal(found, expected, case)
            np.testing.assert_allclose(
                again.info.normalisation.invert(found), whole.train.images / 255, atol=2e-3
            )
            if not file.exists():
                break
