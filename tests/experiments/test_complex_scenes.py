"""Methods on simple and complex scenes: fair trials on held-out images, then the comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs.cluttered_digits import get_config
from edf_jax import compare, distilled_set, main
from edf_jax.config.resolve import SCHEMA
from edf_jax.data import load_dataset
from edf_jax.methods import gradcam
from edf_jax.report import comparison
from experiments import complex_scenes, scene_maps, true_maps
from tests.tiny_run import arguments


def test_held_out_images_are_training_images_of_other_digits(tmp_path):
    config = get_config("hard_ipc10")
    config.data.resolution = 8
    path = tmp_path / "a" / "heldout.npz"
    complex_scenes.held_out_file(path, config.data)
    train = load_dataset(config.data).train
    with np.load(path) as arrays:
        images = np.concatenate([arrays["x_train"], arrays["x_test"]])
        labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
        share = len(arrays["y_test"]) / len(labels)
        counts = np.bincount(arrays["y_test"])
    assert len(images) == len(train.images) and 0.19 < share < 0.21
    # All classes alike: a tenth of the held-out images each.
    assert counts.min() > 0.09 * counts.sum()
    flat = {(image.tobytes(), label) for image, label in zip(train.images, train.labels)}
    assert {(image.tobytes(), label) for image, label in zip(images, labels)} == flat


def test_each_method_has_the_same_trials_and_takes_its_best():
    rows = complex_scenes.tuning_rows(10)
    by_method = {}
    for row in rows.values():
        values = {k: v for k, v in row.items() if k != "method"}
        by_method.setdefault(row["method"], []).append(values)
    assert len({json.dumps(trials) for trials in by_method.values()}) == 1
    means = {label: float(i) for i, label in enumerate(rows)}
    chosen = complex_scenes.chosen_rows(means, 10)
    assert list(chosen) == ["random", "mtt", "datm", "edf", "edf without CPD", "edf without DAE"]
    assert chosen["mtt"] == {"method": "mtt", **complex_scenes.TRIALS[10][-1]}
    without = chosen["edf without CPD"]
    assert {k: v for k, v in without.items() if chosen["edf"].get(k) != v} == {
        "distill.loss_mask": "none"
    }
    means = {label: float(i) for i, label in enumerate(complex_scenes.tuning_rows(1))}
    assert list(complex_scenes.chosen_rows(means, 1)) == ["random", "mtt", "datm", "edf"]


def test_a_level_runs_from_trials_to_tables_and_continues(tmp_path, monkeypatch):
    launched = []

    def launch(cell, command, config_file=None):
        launched.append(cell)
        result = {"stages": {"experts": 1.0}, "peak_memory_mb": 1}
        kind = cell.baseline or "distilled"
        rate = cell.config.distill.lr_img
        result[f"{kind}_accuracies"] = [rate / 100 if cell.config.method == "edf" else 1.0]
        cell.workdir.mkdir(parents=True)
        (cell.workdir / "result.json").write_text(json.dumps(result))
        digest = compare._digest(cell)
        complex_scenes.storage.write_record(cell.workdir / "cell.json", {"config": digest})

    monkeypatch.setattr(complex_scenes, "run_in_child", launch)
    config = get_config("easy_ipc10")
    config.data.resolution = 8
    complex_scenes.run("easy", 10, tmp_path, config.copy_and_resolve_references())
    trials = [cell for cell in launched if cell.config.data.source == "npz"]
    asked = 3 * len(complex_scenes.TRIALS[10])
    assert len([cell for cell in trials if cell.kind == "method"]) == asked
    finals = [cell for cell in launched if cell not in trials]
    assert len([cell for cell in finals if cell.kind != "experts"]) == 6 * 3
    edf = {cell.config.distill.lr_img for cell in finals if cell.name.startswith("edf")}
    assert edf == {3000.0}
    title, rows = comparison.load(tmp_path / "easy_ipc10")
    assert "3 seeds" in title and len(rows) == 6
    launched.clear()
    complex_scenes.run("easy", 10, tmp_path, config.copy_and_resolve_references())
    assert launched == []
    # A closer look takes what is made, and continues too.
    complex_scenes.run("easy", 10, tmp_path, config.copy_and_resolve_references(), closer=True)
    assert len(launched) == 4 * 10 - 3 * 3
    rows = {row.label: row for row in comparison.load(tmp_path / "easy_closer_ipc10")[1]}
    assert list(rows) == ["datm", "edf without DAE", "edf", "edf, SmoothGrad-CAM++"]
    assert all(len(row.last.by_seed) == 10 for row in rows.values())
    maps = {cell.config.cam.method for cell in launched if "SmoothGrad" in cell.name}
    assert maps == {"smooth_grad_cam_pp"}
    assert not list(tmp_path.rglob("*.tmp"))
    launched.clear()
    complex_scenes.run("easy", 10, tmp_path, config.copy_and_resolve_references(), closer=True)
    assert launched == []


def test_maps_and_dropped_shares_are_told_of_a_run(tmp_path, monkeypatch):
    settings = {
        "distill__drop": 0.5, "distill__iterations": 2, "distill__eval_every": 2,
        "log__tensorboard": False,
    }  # fmt: skip
    run = tmp_path / "cmp" / "cells" / "edf" / "seed_0"
    assert main.main(["edf_jax.main", *arguments(run, **settings), "--stage=distill"]) == 0
    figures = scene_maps.measure(run)
    assert 0.05 < figures["digit_pixels"] < 0.4
    assert 1 <= figures["last_weight_beside"] < 2 and 0 <= figures["first_cam_right"] <= 1
    # Half of the parameters, and those that are off the least.
    assert 0 < figures["dropped_share_of_loss"] < 0.25
    assert figures["movement_on_digit"] > 0
    # The same run with the digits' places for maps starts alike and goes elsewhere.
    again = tmp_path / "true" / "cells" / "seed_0"
    # What it registers is taken away again.
    monkeypatch.setitem(SCHEMA, "cam.method", SCHEMA["cam.method"])
    monkeypatch.setitem(gradcam.METHODS, true_maps.METHOD, None)
    assert 0 <= true_maps.run_again(run, again, "")["distilled_mean"] <= 100
    first, last = ("distilled/step_0.safetensors", "distilled/last.safetensors")
    np.testing.assert_array_equal(
        *(distilled_set.load(path / first).images for path in (run, again))
    )
    images, others = (distilled_set.load(path / last).images for path in (run, again))
    assert not np.array_equal(images, others)
    table = {"title": "digits", "rows": {"edf": ["a"]}, "experts": {}}
    cell = {"name": "edf", "folder": "cells/edf/seed_0", "kind": "method", "baseline": ""}
    (tmp_path / "cmp" / "comparison.json").write_text(json.dumps({**table, "cells": {"a": cell}}))
    assert main.main(["edf_jax.main", *arguments(run, **settings)]) == 0
    ((gain, _),) = true_maps.compare_with(tmp_path / "cmp", tmp_path / "true").values()
    before, after = (json.loads((w / "result.json").read_text()) for w in (run, again))
    assert gain == pytest.approx(after["distilled_mean"] - before["distilled_mean"])
    assert [row.label for row in comparison.load(tmp_path / "true")[1]] == ["edf, true maps"]
