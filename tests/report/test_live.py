"""Pages of runs that go on: written at evaluations, served, and drawn anew when files change."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import urllib.error
import urllib.request

import pytest

from edf_jax.report import live
from edf_jax.report.__main__ import main
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime.errors import UserError
from tests.report.test_report import _BROWSER, _browse, make_run


def _going_on(folder):
    run = make_run(folder, finished=False)
    (run / "distilled" / "last.safetensors").unlink()
    config = json.loads((run / "config.json").read_text())
    config["distill"]["iterations"] = 100
    (run / "config.json").write_text(json.dumps(config))
    return run


@contextlib.contextmanager
def _served(*runs):
    with live.serve(runs, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


def test_a_run_that_goes_on_is_served_with_what_there_is(tmp_path):
    run = _going_on(tmp_path / "run")
    with _served(run) as address:
        page = _get(address)
        for words in (
            "has not finished", "<dd>40 of 100 iterations", "Left of the distillation",
            "Accuracy at iteration 40, %", "distilled images after iteration 40",
            '<meta http-equiv="refresh"',
        ):  # fmt: skip
            assert words in page, words
        assert page == _get(address)
        with MetricsWriter(run, tensorboard=False) as metrics:
            metrics.write(40, "distill", loss=0.5, skipped=False)
        assert "41 of 100 iterations" in _get(address)
    assert not (run / "report.html").exists()


def test_a_finished_run_is_not_loaded_again(tmp_path):
    with _served(make_run(tmp_path / "run", iterations=8)) as address:
        assert 'http-equiv="refresh"' not in _get(address)


def test_several_runs_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path / name, iterations=8) for name in ("one", "two")]
    with _served(*runs) as address:
        both = _get(address)
        assert both.count("<iframe") == 2 and 'title="one"' in both
        assert "<h1>two</h1>" in _get(f"{address}/1")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            _get(f"{address}/2")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            _get(f"{address}/config.json")


def test_a_file_that_cannot_be_read_is_told_and_asked_for_again(tmp_path):
    run = _going_on(tmp_path / "run")
    (run / "config.json").write_text("{")
    with _served(run) as address:
        with pytest.raises(urllib.error.HTTPError) as refused:
            _get(address)
        told = refused.value.read().decode()
        assert refused.value.code == 503 and "config.json" in told and "refresh" in told


def test_a_port_that_is_taken_and_no_run_are_told_in_a_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", iterations=8)
    with live.serve([run], 0) as server:
        assert main([str(run), f"--serve={server.server_address[1]}"]) == 2
        assert "give another, --serve=PORT" in capsys.readouterr().err
    assert main([str(run), "--serve", "--csv"]) == 2
    assert "leave out --csv" in capsys.readouterr().err
    with pytest.raises(UserError, match="port 99999"):
        live.serve([run], 99999)
    with pytest.raises(UserError, match="is no run"):
        live.serve([tmp_path], 0)


def test_evaluations_write_the_page_and_spare_those_that_follow_at_once(tmp_path, caplog):
    run = _going_on(tmp_path / "run")
    evaluations = {"evaluate": live.PageSoFar(run, seconds_between=3600.0)}
    with MetricsWriter(run, tensorboard=False, after=evaluations) as metrics:
        metrics.write(41, "evaluate", accuracy_mean=50.0, accuracy_std=1.0)
    assert not (run / "report.html").exists()
    with MetricsWriter(
        run, tensorboard=False, after={"evaluate": live.PageSoFar(run, seconds_between=0.0)}
    ) as metrics:
        metrics.write(41, "distill", loss=0.5)
        assert not (run / "report.html").exists()
        metrics.write(41, "evaluate", accuracy_mean=50.0, accuracy_std=1.0)
        assert "Accuracy at iteration 41, %</dt><dd>50.0 ± 1.0" in (run / "report.html").read_text()
        (run / "config.json").write_text("{")
        with caplog.at_level(logging.WARNING):
            metrics.write(42, "evaluate", accuracy_mean=51.0, accuracy_std=1.0)
    assert "the page of the run so far can't be written" in caplog.text


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium here to open the pages in")
def test_a_browser_shows_runs_side_by_side(tmp_path):
    runs = [_going_on(tmp_path / "one"), make_run(tmp_path / "two", iterations=8)]
    with _served(*runs) as address:
        flags = ("--window-size=1200,900", f"--screenshot={tmp_path / 'both.png'}")
        _browse(f"{address}/", tmp_path, *flags, "--virtual-time-budget=5000")
    from PIL import Image

    with Image.open(tmp_path / "both.png") as picture:
        left, right = (picture.crop((x, 0, x + 600, 900)).convert("L") for x in (0, 600))
    # Both frames have text and pictures on them.
    assert all(len(half.getcolors()) > 50 for half in (left, right))
