"""Coresets by scores, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edf_jax.data import coresets
from edf_jax.runtime.errors import UserError

_LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 1])
_SCORES = np.array([0.1, 0.9, 0.7, 0.2, 0.7, 0.3, 0.5, 0.8])


def test_the_hardest_of_each_class_come_first():
    found = coresets.hardest(_SCORES, _LABELS, 2)
    np.testing.assert_array_equal(found, [2, 4, 1, 7])
    with pytest.raises(UserError, match="4 training images"):
        coresets.hardest(_SCORES, _LABELS, 5)


def test_strata_share_what_is_wanted_and_small_ones_give_all():
    # 12 of 4 strata: 3 each; one has 1 and one 2, so the others give (12 - 3) / 2.
    np.testing.assert_array_equal(coresets._budgets(np.array([9, 1, 9, 2]), 12), [4, 1, 5, 2])
    np.testing.assert_array_equal(coresets._budgets(np.array([0, 3, 5]), 2), [0, 1, 1])
    assert coresets._budgets(np.array([3, 0, 2]), 5).tolist() == [3, 0, 2]


def test_coverage_leaves_out_the_hardest_and_takes_of_every_stratum():
    # A class of 20 with scores 0 to 19: the hardest 30% are 14 to 19; 7 strata of two scores each.
    scores, labels = np.arange(20.0), np.zeros(20, int)
    found = coresets.coverage(np.random.default_rng(0), scores, labels, 7, strata=7)
    assert len(set(found)) == 7 and found.max() <= 13
    edges = np.linspace(0, 13, 8)
    assert np.histogram(found, edges)[0].tolist() == [1] * 7


def test_coverage_leaves_out_less_where_too_few_would_be_left():
    scores, labels = np.arange(10.0), np.zeros(10, int)
    found = coresets.coverage(np.random.default_rng(0), scores, labels, 9)
    assert sorted(found) == list(range(9))
    same = coresets.coverage(np.random.default_rng(0), np.ones(10), labels, 4)
    assert len(set(same)) == 4


@pytest.mark.parametrize("ipc", [1, 2, 4])
def test_coverage_has_as_many_of_each_class(ipc):
    found = coresets.coverage(np.random.default_rng(1), _SCORES, _LABELS, ipc)
    assert np.bincount(_LABELS[found]).tolist() == [ipc, ipc] and len(set(found)) == 2 * ipc
