"""The growing bound of start epochs against the official formula."""

from __future__ import annotations

from edf_jax.methods import curriculum
from tests.parity import reference


def test_bounds_are_the_official_ones():
    rows = reference.load_npz("start_epoch_bound")["rows"].tolist()
    assert rows
    ours = [curriculum.start_epoch_bound(*row[:4]) for row in rows]
    assert ours == [row[4] for row in rows]
