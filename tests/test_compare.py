"""Comparisons: which cells there are, equal terms, continuing, and the tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from edf_jax import compare
from edf_jax.config import load
from edf_jax.config.resolve import METHODS, SCHEMA, default_config, flatten, parse_variant
from edf_jax.report import comparison
from edf_jax.report.__main__ import main
from edf_jax.runs.grid import ABLATIONS, make_grid, names_of
from edf_jax.runs.metrics import open_metrics
from edf_jax.runtime import locks, storage
from edf_jax.runtime.errors import UserError

_TINY = {
    "data.resolution": 16,
    "model.width": 4,
    "experts.num": 2,
    "experts.epochs": 2,
    "experts.batch": 256,
    "distill.ipc": 1,
    "distill.iterations": 2,
    "distill.syn_steps": 2,
    "distill.expert_epochs": 1,
    "distill.current_max_start_epoch": 1,
    "distill.max_start_epoch": 2,
    "distill.expansion_end": 2,
    "distill.eval_every": 2,
    "evaluate.num": 2,
    "evaluate.epochs": 2,
    "evaluate.baseline_rates": "0.01",
    "log.tensorboard": False,
}


def _plan(tmp_path, methods="", ablate="", seeds=1, **values):
    config = default_config(**{**_TINY, **values})
    return make_grid(config, names_of(methods, ablate), seeds, tmp_path)


def _configs(plan, label):
    return [flatten(plan.runs[identity].config) for identity in plan.rows[label]]


# Which cells.


def test_evaluation_is_the_same_for_all_and_the_methods_numbers_their_own(tmp_path):
    plan = _plan(tmp_path, "random,mtt,ftd,edf", seeds=2)
    assert list(plan.rows) == ["random", "mtt", "ftd", "edf"]
    evaluations = [
        {k: v for k, v in config.items() if k.startswith(("evaluate.", "augment."))}
        for label in plan.rows
        for config in _configs(plan, label)
    ]
    assert all(evaluation == evaluations[0] for evaluation in evaluations)
    assert [c["distill.threshold"] for c in _configs(plan, "mtt")] == [0, 0]
    assert [c["distill.threshold"] for c in _configs(plan, "edf")] == [1.5, 1.5]
    assert [c["seed"] for c in _configs(plan, "mtt")] == [0, 1]
    assert {c["experts.seed"] for label in plan.rows for c in _configs(plan, label)} == {0}


def test_what_the_user_gave_stands_for_all(tmp_path):
    plan = _plan(tmp_path, "mtt,edf", **{"distill.threshold": 2.5})
    assert {_configs(plan, label)[0]["distill.threshold"] for label in plan.rows} == {2.5}


def test_experts_are_trained_once_and_first(tmp_path):
    plan = _plan(tmp_path, "random,mtt,tesla,ftd,datm,pad,edf", seeds=2)
    cells = list(plan.runs.values())
    assert [cell.workdir.name for cell in cells if cell.kind == "experts"] == [
        "experts-sgd",
        "experts-gsam",
        "experts-gsam-pad",
    ]
    assert [cell.kind for cell in cells[:3]] == ["experts"] * 3
    assert len(cells) == 3 + 7 * 2
    shared = {label: {plan.experts.get(i) for i in ids} for label, ids in plan.rows.items()}
    assert shared["mtt"] == shared["tesla"] and shared["ftd"] == shared["datm"] == shared["edf"]
    assert shared["random"] == {None}
    folders = [cell.workdir for cell in cells]
    assert len(set(folders)) == len(folders)


def test_other_networks_have_experts_of_their_own(tmp_path):
    rows = {"edf": {"method": "edf"}, "wide": {"method": "edf", "model.width": 24}}
    plan = make_grid(default_config(**_TINY), rows, 1, tmp_path)
    trainers = [cell for cell in plan.runs.values() if cell.kind == "experts"]
    assert [cell.config.model.width for cell in trainers] == [_TINY["model.width"], 24]
    assert len({cell.workdir for cell in trainers}) == 2


def test_methods_are_the_same_whichever_the_config_names(tmp_path):
    names = names_of("mtt,datm,edf", "")
    of_edf, of_mtt = (
        make_grid(parse_variant(text, {"tiny": _TINY}, "tiny"), names, 1, tmp_path)
        for text in ("tiny", "tiny,method=mtt")
    )
    for label in names:
        one, other = _configs(of_edf, label)[0], _configs(of_mtt, label)[0]
        different = {k for k in one if one[k] != other[k]}
        assert all(k.startswith(("evaluate.", "augment.")) for k in different), different


def test_published_settings_differ_by_row_but_networks_data_and_evaluation_do_not(tmp_path):
    config = load("cifar10", "ipc10,evaluate.num=3")
    plan = make_grid(config, names_of("mtt,datm,edf", ""), 1, tmp_path)
    rows = [_configs(plan, label)[0] for label in plan.rows]
    assert [row["distill.lr_img"] for row in rows] == [100.0, 100.0, 1000.0]
    assert [row["distill.lr_teacher"] for row in rows] == [0.001, 0.01, 0.01]
    for name in ("model.name", "data.zca", "evaluate.batch", "experts.epochs", "evaluate.num"):
        assert len({row[name] for row in rows}) == 1, name
    assert plan.title == "cifar10, 10 images per class, crop ratio 0.25 in all rows"


def test_a_row_has_the_experts_that_its_method_is_made_of(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "slow", {**METHODS["edf"], "experts.lr": 0.001})
    monkeypatch.setitem(SCHEMA, "method", dataclasses.replace(
        SCHEMA["method"], choices=(*SCHEMA["method"].choices, "slow")
    ))
    rows = {"edf": {"method": "edf"}, "slow": {"method": "slow"}}
    for method in rows:
        plan = make_grid(default_config(method=method, **_TINY), rows, 1, tmp_path)
        assert [_configs(plan, label)[0]["experts.lr"] for label in rows] == [0.01, 0.001]


def test_the_title_says_where_the_crop_ratio_is_a_rows_own(tmp_path):
    rows = {"edf": {"method": "edf"}, "datm": {"method": "datm", "augment.crop_ratio": 0.125}}
    plan = make_grid(default_config(**_TINY), rows, 1, tmp_path)
    assert plan.title.endswith("crop ratio 0.125 or 0.25 by row")


def test_ablations_change_their_keys_alone(tmp_path):
    plan = _plan(tmp_path, ablate=",".join(ABLATIONS))
    base = _configs(plan, "edf")[0]
    for rows in ABLATIONS.values():
        for label, changes in rows.items():
            config = _configs(plan, label)[0]
            different = {k for k in config if config[k] != base[k]}
            assert different <= set(changes)
            assert all(config[k] == v for k, v in changes.items())
    neither = _configs(plan, "edf without CPD and DAE")[0]
    assert (neither["distill.loss_mask"], neither["distill.pixel_weight"]) == ("none", "none")


def test_rows_of_the_same_settings_share_a_run(tmp_path):
    plan = _plan(tmp_path, "edf", "beta,drop,cam_method")
    assert plan.rows["edf, beta 1"] == plan.rows["edf"] == plan.rows["edf, drop 0.25"]
    assert plan.rows["edf, grad_cam"] == plan.rows["edf"]
    assert len({tuple(ids) for ids in plan.rows.values()}) == 1 + 4 + 5 + 3


@pytest.mark.parametrize(
    "methods, ablate, told",
    [
        ("", "", "give --methods"),
        ("mtt,edff", "", "did you mean edf"),
        ("", "cdp", "did you mean cpd"),
        ("random,,edf", "", "'' is none of"),
    ],
)
def test_unknown_names_are_refused(methods, ablate, told):
    with pytest.raises(UserError, match=told):
        names_of(methods, ablate)


def test_rows_of_ones_own_add_to_the_others_or_change_them(tmp_path):
    path = tmp_path / "rows.json"
    rows = {
        "edf": {"distill.lr_img": 7},
        "slow mtt": {"method": "mtt", "distill.lr_img": 3.0},
        "herded": {"baseline": "herding"},
    }
    path.write_text(json.dumps(rows))
    config = default_config(**_TINY)
    plan = make_grid(config, names_of("datm,edf", "", str(path)), 1, tmp_path)
    assert list(plan.rows) == ["datm", "edf", "slow mtt", "herded"]
    (edf,), (mtt,) = _configs(plan, "edf"), _configs(plan, "slow mtt")
    assert (edf["distill.lr_img"], edf["distill.loss_mask"]) == (7.0, "cpd")
    assert (mtt["distill.lr_img"], mtt["distill.labels"]) == (3.0, "hard")
    assert plan.runs[plan.rows["herded"][0]].baseline == "herding"


@pytest.mark.parametrize(
    "text, told",
    [
        ("{", "can't be read"),
        ("[1]", "isn't of the form"),
        ('{"a": {"distill.lr_imag": 1}}', "did you mean distill.lr_img"),
        ('{"a": {"baseline": "best"}}', "'best' is none of"),
    ],
)
def test_rows_that_cannot_be_are_refused(text, told, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        names_of("", "", str(path))


def test_labels_that_look_alike_have_folders_of_their_own(tmp_path):
    labels = ["a b", "A-B", "a/b", "a b ", "--", "é", "../..", "experts-sgd", "x" * 300, "x" * 301]
    rows = {label: {"distill.lr_img": i} for i, label in enumerate(labels, 1)}
    plan = make_grid(default_config(**_TINY), rows, 2, tmp_path)
    folders = {run.workdir for run in plan.runs.values()}
    assert len(folders) == len(plan.runs) == 2 * len(labels) + 1
    experts = {run.workdir for run in plan.runs.values() if run.kind == "experts"}
    for folder in folders - experts:
        # The label's folder lies in cells/, and has the seeds in it.
        assert folder.parents[1] == tmp_path / "cells" and not experts & set(folder.parents)
        assert len(folder.parent.name) < 256 and ".." not in folder.parts


# Running them.


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"parallel.data": 64}, "parallel"),
        ({"cam.weights": "/nowhere.pth"}, "/nowhere.pth"),
        ({"data.source": "folder", "data.path": "/nowhere"}, "/nowhere"),
        ({"distill.ipc": 10**6}, "ipc"),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_any_is_at_work(tmp_path, values, told):
    plan = _plan(tmp_path, "mtt", **values)
    config_file = str(pathlib.Path(__file__).parents[1] / "configs" / "cluttered_digits.py")
    with pytest.raises(UserError, match=told) as refusal:
        compare.check_runs(list(plan.runs.values()), config_file)
    assert str(refusal.value).startswith(("experts-", "mtt, seed 0: "))
    assert "\n" not in str(refusal.value) and not any(tmp_path.iterdir())


def _pretend(accuracy=50.0, fail_at=None):
    """Stands for running a cell: what it leaves behind, made up."""
    launched = []

    def launch(cell, command):
        if fail_at is not None and len(launched) == fail_at:
            raise UserError("the disk is full")
        launched.append(cell.name)
        seconds = {"prepare": 1.0, "distill": 20.0, "evaluate": 5.0, "report": 3.0}
        result = {"stages": seconds, "peak_memory_mb": 100 + len(launched)}
        seed = cell.config.seed
        if cell.kind == "experts":
            result["stages"] = {"prepare": 1.0, "experts": 40.0}
        elif cell.kind == "baseline":
            result[f"{cell.baseline}_accuracies"] = [10.0 + seed, 12.0 + seed]
        else:
            result["distilled_accuracies"] = [accuracy + seed, accuracy + 2 + seed]
            result["best_on_test_accuracies"] = [accuracy + 5, accuracy + 5]
            result |= {"distilled_image_bytes": 122_880, "distilled_label_bytes": 400}
            if cell.config.method == "ftd":
                result["average_accuracies"] = [accuracy + 1, accuracy + 1]
        cell.workdir.mkdir(parents=True)
        storage.write_text(cell.workdir / "result.json", json.dumps(result))
        storage.write_record(cell.workdir / "cell.json", {"config": compare._digest(cell)})

    return launch, launched


def test_a_table_holds_means_deviations_time_and_memory(tmp_path):
    plan = _plan(tmp_path, "random,ftd,edf", seeds=2)
    launch, _ = _pretend()
    rows = compare.compare(plan, tmp_path, "compare", launch)
    random, ftd, edf = (row.figures() for row in rows)
    assert (edf["mean"], edf["networks"], edf["seeds"]) == (51.5, 4, 2)
    assert edf["std"] == pytest.approx(1.118, abs=1e-3)
    # The means of the seeds are 51 and 52; Student's t with one degree of freedom is 12.706.
    assert edf["interval_high"] - edf["mean"] == pytest.approx(12.706 * 0.5, abs=0.01)
    assert (edf["best_on_test_mean"], edf["average_mean"]) == (55, None)
    assert ftd["average_mean"] == 51 and random["mean"] == 11.5
    assert edf["seconds"] == 25 and edf["experts_seconds"] == 40
    assert edf["experts"] == ftd["experts"] == "experts-gsam" and random["experts"] is None
    assert (edf["image_bytes"], edf["label_bytes"], random["image_bytes"]) == (122_880, 400, None)
    assert rows[2].cells()["bytes, images + labels"] == "122,880 + 400"


def test_the_table_is_written_in_four_forms(tmp_path):
    plan = _plan(tmp_path, "random,mtt,edf")
    rows = compare.compare(plan, tmp_path, "compare", _pretend()[0])
    markdown = (tmp_path / "table.md").read_text()
    assert "| edf | 51.0 ± 1.0 |" in markdown and "moving average" not in markdown
    assert "Training the experts, once for all rows" in markdown
    table = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [row["method"] for row in table] == ["random", "mtt", "edf"]
    assert float(table[2]["mean"]) == rows[2].figures()["mean"]
    latex = (tmp_path / "table.tex").read_text()
    assert "edf & 51.0 $\\pm$ 1.0 &" in latex and latex.count("\\\\\n") == 4
    assert "cluttered\\_digits" in latex
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_the_mean_over_seeds_of_what_runs_logged(tmp_path):
    plan = _plan(tmp_path, "random,edf", seeds=2)
    launch, _ = _pretend()

    def log_too(cell, command):
        launch(cell, command)
        if cell.kind == "method":
            with open_metrics(cell.workdir) as metrics:
                for step, accuracy in ((0, 20.0), (10, 30.0 + 4 * cell.config.seed)):
                    metrics.write(step, "evaluate", accuracy_mean=accuracy, accuracy_std=0.0)

    compare.compare(plan, tmp_path, "compare", log_too)
    curves = comparison.learning_curves(comparison.load_grid(tmp_path))
    assert list(curves) == ["edf"]
    for found, expected in zip(curves["edf"], ([0, 10], [20, 32], [0, 2]), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_gains_are_paired_by_seed():
    def row(label, *by_seed):
        return comparison.Row(label, comparison.Figure(by_seed), None, None, 0, 0, None, None)

    rows = [row("datm", (50.0, 52.0), (60.0, 62.0)), row("edf", (52.0, 52.0), (63.0, 64.0))]
    ((label, (mean, interval)),) = comparison.gains(rows, "datm").items()
    # By 1 and by 2.5; Student's t with one degree of freedom is 12.706.
    assert (label, mean) == ("edf", 1.75)
    assert interval[1] - mean == pytest.approx(12.706 * 0.75, abs=0.01)
    assert comparison.gains(rows[:1] + [row("a", (1.0,), (2.0,))], "a")["datm"][0] == 54.5
    with pytest.raises(UserError, match="no row is called 'mtt': datm, edf are"):
        comparison.gains(rows, "mtt")


def test_the_tables_are_made_again_from_the_logs(tmp_path, capsys):
    plan = _plan(tmp_path / "a", "random,mtt,edf", seeds=2)
    rows = compare.compare(plan, tmp_path / "a", "compare", _pretend()[0])
    (tmp_path / "a").rename(tmp_path / "moved")
    title, again = comparison.load(tmp_path / "moved")
    assert (title, again) == (plan.title, rows)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "result.json").write_text(json.dumps({"distilled_mean": 33.0}))
    capsys.readouterr()
    assert main([str(tmp_path / "moved"), str(run)]) == 0
    printed = capsys.readouterr().out
    assert comparison.to_markdown(rows) in printed and "| run | 33.0 |" in printed
    assert main([str(tmp_path / "moved"), "--csv"]) == 0
    assert capsys.readouterr().out == (tmp_path / "moved" / "table.csv").read_text()
    (tmp_path / "moved" / "comparison.json").write_text("{}")
    assert main([str(tmp_path / "moved")]) == 2
    assert "comparison.json can't be read" in capsys.readouterr().err


def test_a_stopped_comparison_continues_cell_by_cell(tmp_path):
    plan = _plan(tmp_path, "random,mtt,edf", seeds=2)
    launch, launched = _pretend(fail_at=4)
    with pytest.raises(UserError, match="disk is full"):
        compare.compare(plan, tmp_path, "compare", launch)
    assert len(launched) == 4 and not (tmp_path / "table.md").exists()
    launch, rest = _pretend()
    compare.compare(plan, tmp_path, "compare", launch)
    assert launched + rest == [cell.name for cell in plan.runs.values()]
    launch, none = _pretend()
    compare.compare(_plan(tmp_path, "random,mtt,edf", seeds=2), tmp_path, "compare", launch)
    assert none == []


def test_a_cell_made_with_another_evaluation_is_run_again(tmp_path):
    compare.compare(_plan(tmp_path, "edf"), tmp_path, "compare", _pretend()[0])
    other = _plan(tmp_path, "edf", **{"evaluate.epochs": 3})
    assert not any(compare.is_finished(cell) for cell in other.runs.values())


def test_two_comparisons_in_one_folder_are_refused(tmp_path):
    with locks.locked(tmp_path, "busy"):
        with pytest.raises(UserError, match="another process"):
            compare.compare(_plan(tmp_path, "edf"), tmp_path, "compare", _pretend()[0])


def test_cells_run_for_real_with_one_set_of_experts(tmp_path, capsys):
    plan = _plan(
        tmp_path,
        "random,herding,datm,edf",
        **{"distill.drop": 0.5, "evaluate.networks": "MLP", "evaluate.width": 4},
    )
    rows = compare.compare(plan, tmp_path, "compare", compare.run_here)
    assert all(0 <= row.last.mean <= 100 and row.seconds > 0 for row in rows)
    assert [row.best is None for row in rows] == [True, True, False, False]
    (store,) = (tmp_path / "experts").iterdir()
    folders = {cell.workdir for cell in plan.runs.values()}
    assert not any((folder / "experts").exists() for folder in folders)
    assert len(list(store.glob("group_*/epoch_*"))) == 3
    result = json.loads((tmp_path / "cells/edf/seed_0/result.json").read_text())
    assert len(result["distilled_accuracies"]) == 2 and "random_mean" not in result
    # Real images are measured on the network that the methods are.
    networks = {
        json.loads((folder / "result.json").read_text())["network"]
        for folder in tmp_path.glob("cells/*/seed_0")
    }
    assert networks == {"MLP (width 4)"}


def test_the_command_tells_mistakes_in_one_line(capsys):
    config = "--config=configs/cluttered_digits.py:demo"
    assert compare.main(["compare", config, "--methods=mtt,edff"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("did you mean edf?")
    assert compare.main(["compare", "--methods=mtt"]) == 2
    assert compare.main(["compare", config, "--methods=mtt", "--seeds=0"]) == 2
    assert compare.main(["compare", "--help"]) == 0
    assert "random, herding" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_command_continues(tmp_path):
    flags = [f"--config.{key}={value}" for key, value in _TINY.items()]
    command = [
        *(sys.executable, "-m", "edf_jax.compare", "--methods=random,datm,edf"),
        *("--config=configs/cluttered_digits.py:demo", f"--workdir={tmp_path / 'cmp'}", *flags),
    ]
    root = pathlib.Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    first = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.DEVNULL)
    while not (tmp_path / "cmp/cells/random/seed_0/result.json").exists():
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    last = second.stdout.strip().splitlines()[-1]
    assert last.startswith("RESULT ")
    assert [row["method"] for row in json.loads(last[7:])["rows"]] == ["random", "datm", "edf"]
    assert "random, seed 0" not in second.stderr
    # The table is on standard output too.
    assert "| edf |" in second.stdout
