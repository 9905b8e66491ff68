"""PyTorch's steps of a distillation and ours lead to the same place."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from edf_jax import distilled_set
from experiments import equal_footing, keep, rows
from tests.tiny_run import arguments

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch (the extra `bench`) is not installed",
)


def test_without_random_draws_both_sets_are_the_same(tmp_path, capsys):
    # One start, whole batches and no augmentation leave nothing to draw.
    settings = {
        "distill__ipc": 2, "distill__batch_syn": 20, "distill__iterations": 6,
        "distill__max_start_epoch": 1, "distill__drop": 0.25, "distill__threshold": 0.0,
        "distill__lr_img": 100.0, "distill__eval_every": 6, "cam__every": 2, "experts__num": 1,
        "experts__group": 1, "augment__strategy": "none", "log__tensorboard": False,
    }  # fmt: skip
    argv = ["equal_footing", *arguments(tmp_path / "run", **settings)]
    assert equal_footing.main(argv) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1].removeprefix("FOOTING "))
    assert told["within_noise"] in (True, False) and told["ours_mean"] > 0
    first, ours, theirs = (
        distilled_set.load(tmp_path / "run" / name)
        for name in (
            "distilled/step_0.safetensors",
            "distilled/last.safetensors",
            "pytorch/last.safetensors",
        )  # fmt: skip
    )
    assert ours.step == theirs.step == 6
    for name in ("images", "labels", "alpha"):
        start, one, other = (np.asarray(getattr(s, name)) for s in (first, ours, theirs))
        moved = np.linalg.norm(one - start)
        assert moved > 0
        error = np.linalg.norm(one - other) / moved
        print(f"relative error {name}: {error:.2e}")
        assert error < 1e-2
    # Both sides are kept, each with its losses.
    keep.keep(tmp_path / "run", tmp_path / "kept.csv")
    kept = {row.method: row for row in rows.read(tmp_path / "kept.csv")}
    assert list(kept) == ["initial", "ours", "pytorch"]
    assert kept["ours"].mean == pytest.approx(told["ours_mean"])
    curves = rows.read_lines(tmp_path / "curves" / "kept.csv")
    losses = {
        side: [
            line["loss"] for line in curves if (line["method"], line["stage"]) == (side, "distill")
        ]
        for side in ("ours", "pytorch")
    }
    assert len(losses["ours"]) == len(losses["pytorch"]) == 6
    # Nothing is made again.
    assert equal_footing.main(argv) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("FOOTING ")) == told


def test_other_methods_are_refused(tmp_path, capsys):
    argv = ["equal_footing", *arguments(tmp_path / "run", method="datm")]
    assert equal_footing.main(argv) == 2
    assert "the PyTorch side knows method='edf' only" in capsys.readouterr().err
