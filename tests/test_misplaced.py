"""Whole files in the wrong place are noticed; `python -m tests.misplaced` tries them all."""

from __future__ import annotations

from tests import misplaced


def test_files_in_the_wrong_place_change_nothing_in_silence(tmp_path, capsys):
    tally = misplaced.misplace(tmp_path, 8, 0, others=("another seed",), states=("half",))
    told = capsys.readouterr().out
    assert not tally["SILENT"], told
    assert tally["refused"] + tally["told"] >= 5, told
