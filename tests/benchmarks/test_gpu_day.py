"""The GPU's ten minutes: which rows are run, how they are kept, and the page's table."""

from __future__ import annotations

import json

from benchmarks import gpu_day
from benchmarks.sizes import parse_sizes

_RECORD = {
    "ours_seconds": 0.6, "pytorch_seconds": 1.5, "ratio": 2.5, "ours_peak_mib": 2048.0,
    "pytorch_peak_mib": 40960.0, "pytorch_steps": 17, "ours_device": "NVIDIA H100",
}  # fmt: skip


def test_the_page_has_the_table_of_the_records_that_are_kept():
    page = gpu_day.PAGE.read_text()
    assert gpu_day.with_table(page, gpu_day.read()) == page


def test_a_measured_row_stands_beside_what_was_compiled():
    row = gpu_day.ROWS[1]
    lines = gpu_day.table({gpu_day.key(row): _RECORD}).splitlines()
    assert lines[3] == f"| {row.title} | tf32 | 0.6 | 0.48 | 1.5 | 2.50 | 2.0 | 40.0 (17) |"
    assert sum("not measured" in line for line in lines) == len(gpu_day.ROWS) - 1
    assert "NVIDIA H100" in lines[-1]


def test_rows_are_kept_and_those_that_are_left_are_run(tmp_path, monkeypatch):
    path, asked = tmp_path / "records.json", []

    def measure(row, seconds):
        asked.append(row)
        return None if len(asked) == 2 else _RECORD

    monkeypatch.setattr(gpu_day, "_measure", measure)
    assert gpu_day.main([f"--records={path}"]) == 1
    assert len(asked) == len(gpu_day.ROWS) == len(json.loads(path.read_text())) + 1
    assert gpu_day.main([f"--records={path}"]) == 0
    assert asked[8:] == [asked[1]]
    assert gpu_day.main([f"--records={tmp_path / 'none'}", "--minutes=0.1"]) == 0


def test_a_row_is_a_command_of_the_benchmarks():
    for row in gpu_day.ROWS:
        parse_sizes("", {}, row.command[2:])
