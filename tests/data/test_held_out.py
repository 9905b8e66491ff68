"""Held-out training images: which they are, and sets chosen by them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import edf_jax
from edf_jax import distilled_set, main
from edf_jax.config.resolve import default_config, resolve
from edf_jax.data import describe_dataset, load_dataset
from edf_jax.data.held_out import hold_out
from edf_jax.runs.files import selected
from edf_jax.runtime.errors import UserError
from tests import tiny
from tests.data_layouts import data_config
from tests.evaluation_data import make_dataset
from tests.tiny_run import arguments


def _rows(split) -> list[bytes]:
    return [image.tobytes() for image in split.images]


def test_a_share_of_each_class_is_set_aside_the_same_every_time():
    whole = make_dataset()
    split, again = hold_out(whole, 0.25), hold_out(whole, 0.25)
    counts = np.bincount(whole.train.labels)
    np.testing.assert_array_equal(np.bincount(split.held_out.labels), np.round(counts / 4))
    assert sorted(_rows(split.train) + _rows(split.held_out)) == sorted(_rows(whole.train))
    by_image = dict(zip(_rows(whole.train), whole.train.labels, strict=True))
    for part in (split.train, split.held_out):
        assert [by_image[row] for row in _rows(part)] == part.labels.tolist()
    assert _rows(split.held_out) == _rows(again.held_out)
    assert split.test is whole.test and split.info.normalisation == whole.info.normalisation
    assert whole.info.fingerprint != split.info.fingerprint == again.info.fingerprint
    assert split.info.fingerprint != hold_out(whole, 0.3).info.fingerprint


def test_at_least_one_image_of_a_class_is_held_out_and_one_kept():
    whole = make_dataset()
    counts = np.bincount(whole.train.labels)
    few, most = hold_out(whole, 1e-3), hold_out(whole, 0.999)
    assert set(np.bincount(few.held_out.labels)) == {1}
    np.testing.assert_array_equal(np.bincount(most.held_out.labels), counts - 1)
    first = np.flatnonzero(whole.train.labels == 0)
    alone = np.delete(np.arange(len(whole.train)), first[1:])
    train = type(whole.train)(whole.train.images[alone], whole.train.labels[alone])
    with pytest.raises(UserError, match="data.held_out=0.1 leaves no training image of class"):
        hold_out(dataclasses.replace(whole, train=train), 0.1)


def test_composites_of_one_digit_stay_together():
    plain = data_config(source="cluttered_digits", resolution=8, composites=3)
    whole = load_dataset(plain)
    plain.held_out = 0.2
    split = load_dataset(plain)
    samples = len(whole.train) // 3
    sample = {row: i % samples for i, row in enumerate(_rows(whole.train))}
    kept, held = ({sample[row] for row in _rows(part)} for part in (split.train, split.held_out))
    assert not kept & held and len(kept | held) == samples
    planned = describe_dataset(plain)
    assert abs(planned.num_train - len(split.train)) < 3 * 10 and planned.counts == "approximate"


def test_choosing_by_images_that_are_not_there_is_refused():
    with pytest.raises(UserError, match="set data.held_out, such as 0.1"):
        resolve(default_config(**{"distill.select": "heldout"}))


def test_the_best_on_held_out_images_is_kept_through_a_stop(tmp_path):
    store = tiny.made_up_experts(tmp_path / "experts")
    worth = {0: (3.0, 1.0), 3: (5.0, 4.0), 6: (4.0, 2.0)}

    def evaluate(distilled, iteration):
        test, held = worth[iteration]
        return tiny.Accuracy(9.0 - test, held_out=(held, held))

    config = tiny.config("datm", **{"distill.save_every": 4})
    for workdir in (tmp_path / "a", tmp_path / "b"):
        tiny.run_distillation(config, workdir, store, on=evaluate)
    distilled = tmp_path / "a" / "distilled"
    assert distilled_set.load(distilled / "best_on_held_out.safetensors").step == 3
    assert distilled_set.load(distilled / "best_on_test.safetensors").step == 0
    told = [row["held_out_accuracy_mean"] for row in tiny.rows(tmp_path / "a", "evaluate")]
    assert told == [1.0, 4.0, 2.0]
    # As after a kill before the last evaluation, with the best set damaged.
    (distilled / "last.safetensors").unlink()
    (distilled / "best_on_held_out.safetensors").write_bytes(b"")
    tiny.run_distillation(config, tmp_path / "a", store, on=evaluate)
    ours, theirs = (
        distilled_set.load(tmp_path / name / "distilled" / "best_on_held_out.safetensors")
        for name in "ab"
    )
    np.testing.assert_array_equal(ours.images, theirs.images)


def test_a_run_is_about_the_set_that_held_out_images_choose(tmp_path, capsys):
    settings = {
        "data__held_out": 0.2, "distill__select": "heldout", "distill__eval_every": 4,
        "distill__iterations": 8, "log__tensorboard": False,
    }  # fmt: skip
    assert main.main(["edf_jax.main", *arguments(tmp_path / "run", **settings)]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert selected(result) == "best_on_held_out"
    rows = tiny.rows(tmp_path / "run", "evaluate")
    best = max(rows, key=lambda row: row["held_out_accuracy_mean"])
    chosen = edf_jax.load(tmp_path / "run")
    assert chosen.step == best["step"] == result["best_on_held_out_step"]
    said = capsys.readouterr()
    assert "Distilled, best on held-out images" in said.err
    assert json.loads(said.out.splitlines()[-1].removeprefix("RESULT "))["best_on_held_out_mean"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"reach <strong>{result['best_on_held_out_mean']:.1f}%</strong>" in report
    # Another choice of the finished run needs no distilling.
    other = ["edf_jax.main", *arguments(tmp_path / "run", **settings | {"distill__select": "test"})]
    assert main.main(other) == 0
    assert edf_jax.load(tmp_path / "run").step == result["best_on_test_step"]
