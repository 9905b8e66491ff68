"""The record of a run: rows, torn lines, resumption, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.runs.metrics import MetricsWriter, read_metrics
from edf_jax.runtime.errors import UserError


def _rows(workdir, stage=None):
    return [
        {key: value for key, value in row.items() if key != "time"}
        for row in read_metrics(workdir, stage)
    ]


def test_each_event_is_a_row_of_json_on_disk_at_once(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(3, "distill", loss=jnp.float32(0.5), skipped=True, expert=np.int32(7))
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row.pop("time") > 1e9
    assert len(row.pop("check")) == 8
    assert row == {
        "row": 1, "stage": "distill", "step": 3, "loss": 0.5, "skipped": True, "expert": 7
    }


def test_numbers_that_json_lacks_become_null(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(0, "distill", loss=float("nan"), alpha=np.inf)
    assert _rows(tmp_path) == [{"stage": "distill", "step": 0, "loss": None, "alpha": None}]


def test_a_vector_is_refused(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        with pytest.raises(ValueError, match=r"shape \(2,\)"):
            metrics.write(0, "distill", loss=np.zeros(2))


def test_a_line_torn_by_a_kill_is_dropped(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(0, "distill", loss=1.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "distill", "step": 1, "lo')
    assert len(read_metrics(tmp_path)) == 1
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(1, "distill", loss=0.5)
    assert [row["loss"] for row in _rows(tmp_path)] == [1.0, 0.5]


def test_a_changed_row_is_left_out_with_a_warning(tmp_path, caplog):
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        for step in range(3):
            metrics.write(step, "distill", loss=0.25, skipped=False)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (lines[1].replace("0.25", "0.26"), lines[1].replace('"step"', '"stop"'), "x\n"):
        path.write_text(lines[0] + damaged + lines[2])
        caplog.clear()
        assert [row["step"] for row in read_metrics(tmp_path)] == [0, 2]
        assert "line 2 is damaged; 1 rows are lost or damaged" in caplog.text
    caplog.clear()
    MetricsWriter(tmp_path, tensorboard=False).close()
    assert "line 2 is damaged" in caplog.text
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 2]


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ((0, 2, 3), "1 rows are lost"),
        ((1, 2, 3), "1 rows are lost"),
        ((0, 1, 1, 2, 3), "line 3 is there twice"),
        ((0, 2, 1, 3), "line 3 is out of its place"),
    ],
)
def test_rows_that_are_lost_doubled_or_swapped_are_told_and_set_right(
    tmp_path, caplog, order, told
):
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        for step in range(4):
            metrics.write(step, "distill", loss=0.25)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[at] for at in order))
    for read in (lambda: None, lambda: MetricsWriter(tmp_path, tensorboard=False).close()):
        caplog.clear()
        read()
        assert [row["step"] for row in read_metrics(tmp_path)] == sorted(set(order))
        assert told in caplog.text
    caplog.clear()
    read_metrics(tmp_path)
    assert not caplog.text


def test_rows_lost_at_the_end_of_a_finished_run_are_told(tmp_path, caplog):
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        for step in range(3):
            metrics.write(step, "distill", loss=0.25)
    (tmp_path / "result.json").write_text(json.dumps({"metrics_rows": metrics.count}))
    assert len(read_metrics(tmp_path)) == 3 and not caplog.text
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert len(read_metrics(tmp_path)) == 2 and "1 rows are lost at the end" in caplog.text


def test_a_row_blanked_with_zeros_is_told(tmp_path, caplog):
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        for step in range(3):
            metrics.write(step, "distill", loss=0.25)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + bytes(len(lines[1]) - 1) + b"\n" + lines[2])
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 2]
    assert "line 2 is damaged" in caplog.text


def test_rows_of_earlier_versions_have_no_numbers(tmp_path, caplog):
    rows = [{"stage": "distill", "step": step, "time": 0, "loss": 0.5} for step in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(3, "distill", loss=0.5)
    assert [row["step"] for row in _rows(tmp_path)] == [0, 1, 2, 3]
    assert not caplog.text


def test_a_full_disk_ends_the_events_and_not_the_rows(tmp_path):
    script = """
import logging, resource, sys
import numpy as np
from edf_jax.runs.metrics import MetricsWriter, read_metrics
logging.basicConfig()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
with MetricsWriter(sys.argv[1]) as metrics:
    for step in range(40):
        metrics.images(step, "distill", "grid", np.random.default_rng(0).random((64, 64, 3)))
        metrics.write(step, "distill", loss=0.5)
print(len(read_metrics(sys.argv[1])))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "40\n"
    assert ended.stderr.count("TensorBoard events can't be written") == 1
    assert "Traceback" not in ended.stderr and "ignored" not in ended.stderr, ended.stderr


def test_a_resumed_run_rewrites_exactly_the_rows_after_its_checkpoint(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(9, "experts", accuracy=80.0)
        for step in range(5):
            metrics.write(step, "distill", loss=float(step))
    uninterrupted = _rows(tmp_path)
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.truncate_after("distill", 2)
        assert [row["step"] for row in _rows(tmp_path, "distill")] == [0, 1, 2]
        for step in (3, 4):
            metrics.write(step, "distill", loss=float(step))
    assert _rows(tmp_path) == uninterrupted


def test_without_a_file_there_are_no_rows(tmp_path):
    assert read_metrics(tmp_path / "nowhere") == []


def _events(folder):
    from tensorboardX.proto.event_pb2 import Event

    # Each record: length (8 bytes), its checksum (4), the event, its checksum (4).
    events = []
    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            events.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return events


def test_tensorboard_gets_scalars_pictures_and_histograms(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(4, "distill", loss=0.25, note="words stay out")
        metrics.images(4, "distill", "grid", np.full((8, 12, 3), 0.5))
        metrics.images(4, "distill", "maps", np.zeros((2, 8, 12, 1)))
        metrics.histogram(4, "distill", "pixels", np.array([0.0, 1.0, np.nan]))
    events = _events(tmp_path / "tensorboard" / "distill")
    values = {v.tag: v for event in events for v in event.summary.value}
    assert values["distill/loss"].simple_value == 0.25
    assert (values["distill/grid"].image.height, values["distill/grid"].image.width) == (8, 12)
    assert values["distill/pixels"].histo.num == 2
    assert {"distill/maps", "distill/loss", "distill/grid", "distill/pixels"} == set(values)


def test_tensorboard_forgets_the_steps_that_a_resumed_run_makes_again(tmp_path):
    for _ in range(2):
        with MetricsWriter(tmp_path) as metrics:
            metrics.truncate_after("distill", 1)
            for step in (2, 3):
                metrics.write(step, "distill", loss=1.0)
    starts = [e for e in _events(tmp_path / "tensorboard" / "distill") if e.session_log.status == 1]
    assert [event.step for event in starts] == [2]


class _FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged = [], []

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def define_metric(self, *names, **settings):
        pass

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        pass


def test_wandb_continues_the_same_charts_and_gets_no_step_twice(tmp_path, monkeypatch):
    wandb = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with MetricsWriter(tmp_path, False, wandb_project="edf") as metrics:
        for step in range(3):
            metrics.write(step, "distill", loss=float(step))
    with MetricsWriter(tmp_path, False, wandb_project="edf") as metrics:
        metrics.truncate_after("distill", 1)
        for step in (2, 3):
            metrics.write(step, "distill", loss=float(step))
    first, second = wandb.inits
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert [values["distill/step"] for values in wandb.logged] == [0, 1, 2, 3]


def test_wandb_missing_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"edf_jax\[wandb\]"):
        MetricsWriter(tmp_path, wandb_project="edf")
