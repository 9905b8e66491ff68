"""DD-Ranking's scores, the statistics of several networks, and baselines, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edf_jax.data import coresets
from edf_jax.evaluate.dd_ranking import Estimate, augmentation_robust, label_robust, normalise
from edf_jax.runs.statistics import Accuracies, interval95
from edf_jax.runtime.errors import UserError


def test_scores_run_from_0_to_100():
    assert normalise(-1) == pytest.approx(0)
    assert normalise(1) == pytest.approx(100)
    assert normalise(0) == pytest.approx(26.894142)  # (1 - 1/e) / (e - 1/e)


def test_the_label_robust_score_is_the_published_formula():
    score = label_robust(Estimate(90, 1), Estimate(30, 2), Estimate(55, 2), Estimate(35, 1))
    assert score.second == pytest.approx((60, 5**0.5))  # HLR = 90 - 30
    assert score.first == pytest.approx((20, 5**0.5))  # IOR = 55 - 35
    # alpha = 0.5 * 0.2 - 0.5 * 0.6 = -0.2; (e^-0.2 - e^-1) / (e - e^-1)
    assert score.value == pytest.approx(19.18187, abs=1e-4)
    # d LRS / d alpha = 100 e^alpha / (e - e^-1), and alpha's deviation is 0.5 sqrt(10) points.
    assert score.std == pytest.approx(34.8336 * 0.5 * 10**0.5 / 100, rel=1e-4)
    same = label_robust(Estimate(90), Estimate(70), Estimate(55), Estimate(35))
    assert same.value == pytest.approx(normalise(0.0))


def test_the_augmentation_robust_score_is_the_published_formula():
    score = augmentation_robust(Estimate(60), Estimate(40), Estimate(50), Estimate(45))
    assert (score.first.mean, score.second.mean) == (20, 5)
    # beta = 0.5 * 0.2 + 0.5 * 0.05 = 0.125
    assert score.value == pytest.approx(32.55908, abs=1e-4)


def test_the_interval_is_students():
    accuracies = Accuracies((1.0, 2.0, 3.0, 4.0, 5.0), 360)
    assert accuracies.mean == 3 and accuracies.std == pytest.approx(2**0.5)
    # t = 2.776445 for 4 degrees of freedom, sample deviation sqrt(2.5)
    half = 2.776445 * 2.5**0.5 / 5**0.5
    assert accuracies.figures()["interval"] == pytest.approx([3 - half, 3 + half])
    assert interval95(3.0, 0.0, 1) is None


def test_figures_say_what_the_last_epoch_gave():
    figures = Accuracies((4.0, 6.0), 100, (3.0, 5.0)).figures()
    assert (figures["mean"], figures["last_epoch_mean"]) == (5, 4)
    assert figures["num_images"] == 100 and figures["num_eval"] == 2


_POINTS = np.asarray([0.0, 1.0, 2.0, 9.0, 100.0, 104.0, 101.0, 102.0])[:, None]
_LABELS = np.asarray([0, 0, 0, 0, 1, 1, 1, 1])


def test_herding_follows_the_classes_means():
    # Class 0 has mean 3: 2 is nearest; then (2 + 0, 1, 9) / 2 = 1, 1.5, 5.5: 1 is nearest;
    # then (3 + 0, 9) / 3 = 1, 4. Class 1, mean 101.75: 102; then 101 (101.5); then 104 (102.33).
    found = coresets.herding(_POINTS, _LABELS, 3)
    np.testing.assert_array_equal(found, [2, 1, 3, 7, 6, 5])


def test_k_centre_takes_the_farthest_from_those_taken():
    # From 2 the farthest is 9, then 0. From 102: 100 and 104 are as far, the first is taken.
    found = coresets.k_centre(_POINTS, _LABELS, 3)
    np.testing.assert_array_equal(found, [2, 3, 0, 7, 4, 5])


@pytest.mark.parametrize("choose", [coresets.herding, coresets.k_centre])
def test_baselines_choose_each_image_once_and_refuse_too_few(choose):
    features = np.zeros((8, 2))  # all the same
    assert sorted(choose(features, _LABELS, 4)) == list(range(8))
    with pytest.raises(UserError, match="class 0 has 4 training images, 5 are wanted"):
        choose(features, _LABELS, 5)
