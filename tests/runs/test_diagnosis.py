"""What is wrong with a run, from the rows that such runs left."""

from __future__ import annotations

import json

import pytest

from edf_jax import doctor
from edf_jax.runs.diagnosis import in_result, not_learning, untrained_experts

CONFIG = {"distill.threshold": 1.5, "distill.lr_img": 1000.0, "distill.lr_teacher": 0.04}


def rows(losses, *, gate=1.5, alpha=0.04, start=0):
    return [
        {"step": i, "loss": loss, "skipped": not loss <= gate, "alpha": alpha, "start_epoch": start}
        for i, loss in enumerate(losses)
    ]


def falling(count=60):
    return [0.8 - 0.3 * i / count for i in range(count)]


def test_a_run_that_learns_has_nothing_wrong():
    evaluations = [{"step": 0, "accuracy_mean": 43.5, "accuracy_std": 0.6},
                   {"step": 60, "accuracy_mean": 51.0, "accuracy_std": 0.5}]  # fmt: skip
    assert not_learning(CONFIG, rows(falling()), evaluations) == []


def test_experts_that_guess_come_first():
    told = untrained_experts([{"group": 0, "epoch": e, "loss": 2.25} for e in range(5)], 10)
    assert "experts have hardly learned" in told[0].what
    assert told[0].flags == ("--config.experts.lr=auto", "--config.experts.epochs=auto")
    assert untrained_experts([{"group": 0, "loss": 1.3}], 10) == []


def test_a_gate_that_shuts_from_the_first_is_alphas_fault():
    (finding,) = not_learning(CONFIG, rows([2.5] * 30), [])
    assert (finding.key, finding.value) == ("distill.lr_teacher", 0.02)
    assert "30 of 30 iterations changed nothing" in finding.what


def test_a_gate_that_shuts_later_is_the_images_rates():
    (finding,) = not_learning(CONFIG, rows([0.8] * 10 + [3.0] * 30), [])
    assert (finding.key, finding.value) == ("distill.lr_img", 250.0)
    assert finding.flags == ("--config.distill.lr_img=250",)


def test_students_that_diverge_have_too_large_a_rate():
    (finding,) = not_learning(CONFIG, rows([float("inf")] * 30), [])
    assert finding.key == "distill.lr_teacher" and finding.value == pytest.approx(0.004)


def test_an_alpha_that_left_its_place_is_told():
    run = rows(falling())
    run[-1]["alpha"] = -0.005
    (finding,) = not_learning(CONFIG, run, [])
    assert finding.flags == ("--config.distill.lr_lr=auto",)


@pytest.mark.parametrize(
    ("losses", "key", "words"),
    [
        ([0.7] * 60, "distill.lr_img", "too slowly"),
        ([0.7 + 0.01 * i for i in range(60)], "distill.lr_img", "too fast"),
        ([0.99] * 60, "", "can't follow"),
    ],
)
def test_a_loss_that_does_not_fall_is_told_by_its_height(losses, key, words):
    (finding,) = not_learning(CONFIG, rows(losses), [])
    assert finding.key == key and words in finding.what


def test_start_epochs_that_nobody_can_follow_are_told():
    run = rows(falling(90))
    for i, row in enumerate(run):
        row["start_epoch"] = 0 if i < 30 else i % 4
        if row["start_epoch"] > 1:
            row["loss"] = 1.2
    (finding,) = not_learning(CONFIG, run, [])
    assert finding.flags == ("--config.distill.max_start_epoch=2",)


def test_images_that_networks_learn_much_less_from_are_told():
    evaluations = [
        {"step": step, "held_out_accuracy_mean": mean, "held_out_accuracy_std": 0.5}
        for step, mean in ((0, 40.0), (30, 20.0))
    ]
    (finding,) = not_learning(CONFIG, rows(falling()), evaluations)
    assert finding.key == "distill.lr_img" and "20.0%" in finding.what
    evaluations[1]["held_out_accuracy_mean"] = 35.0
    assert not_learning(CONFIG, rows(falling()), evaluations) == []


def test_a_result_no_better_than_random_images_is_told():
    assert in_result({"distilled_mean": 15.0, "random_mean": 15.2})
    assert in_result({"distilled_mean": 20.0, "random_mean": 15.2}) == []
    assert in_result({}) == []


def test_the_doctor_tells_it_all_in_order(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps({"distill": {"threshold": 1.5, "lr_img": 1000.0, "lr_teacher": 0.04}})
    )
    lines = [{"stage": "distill", **row, "time": 0.0} for row in rows([2.5] * 30)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "result.json").write_text(
        json.dumps({"distilled_mean": 10.0, "random_mean": 15.0})
    )
    assert doctor.main([str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in told] == ["1. ", "2. "]
    assert "--config.distill.lr_teacher=auto" in told[0] and "15.0%" in told[1]


def test_the_doctor_refuses_what_is_no_run(tmp_path, capsys):
    assert doctor.main([str(tmp_path)]) == 2
    assert "is no run of edf_jax" in capsys.readouterr().err
    assert doctor.main([]) == 2
