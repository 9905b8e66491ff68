"""The choices themselves, on numbers whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edf_jax.tune import choices
from edf_jax.tune.choices import Probes


def quadratic(best: float, gain: np.ndarray):
    """`rate -> Probes` of students that go as far as the rate is large, best at `best`."""

    def probe(rate: float) -> Probes:
        c = rate / best
        return Probes(gain * c, gain * c**2)

    return probe


def test_probes_know_the_loss_and_what_remains_of_it_at_the_best_rate():
    rng = np.random.default_rng(0)
    start, wanted, went = rng.standard_normal((3, 50))
    target, end = start + wanted, start + went
    probes = Probes(
        np.array([[[went @ wanted / (wanted @ wanted)]]]),
        np.array([[[went @ went / (wanted @ wanted)]]]),
    )
    assert probes.loss.item() == pytest.approx(np.sum((end - target) ** 2) / (wanted @ wanted))
    scales = np.linspace(-3, 3, 6001)
    losses = [np.sum((start + c * went - target) ** 2) / (wanted @ wanted) for c in scales]
    if went @ wanted > 0:
        assert 1 - probes.gain.item() == pytest.approx(min(losses), abs=1e-5)
    else:
        assert probes.gain.item() == 0


@pytest.mark.parametrize("first", [1e-4, 0.04, 10.0])
def test_alpha_is_found_from_rates_hundreds_of_times_too_large_and_too_small(first):
    gain = np.full((4, 1, 1), 0.3)

    def pick(probes):
        return probes.along[:, 0, 0], probes.length[:, 0, 0]

    alpha, tried, probes = choices.search_alpha(quadratic(0.04, gain), first, pick)
    assert alpha == pytest.approx(0.04, rel=0.15)
    assert tried[alpha] == min(tried.values()) == pytest.approx(0.7, abs=0.01)
    assert probes.loss.mean() == pytest.approx(tried[alpha])


def test_a_rate_at_which_students_diverge_is_left_downwards():
    def probe(rate):
        if rate > 0.1:
            return Probes(np.full((2, 1, 1), math.nan), np.full((2, 1, 1), math.inf))
        return quadratic(0.02, np.full((2, 1, 1), 0.4))(rate)

    def pick(probes):
        return probes.along[:, 0, 0], probes.length[:, 0, 0]

    alpha, tried, _ = choices.search_alpha(probe, 1.0, pick)
    assert alpha == pytest.approx(0.02, rel=0.15)
    assert math.isinf(tried[1.0])


def test_experts_get_half_of_a_rate_that_learns_fastest():
    losses = {0.025: 2.1, 0.1: 1.9, 0.2: 1.80, 0.4: 1.78, 1.6: math.nan}
    assert choices.choose_expert_rate(losses, math.log(10)) == 0.1
    # Measured on ImageWoof at 32 pixels, where as many steps teach a third as much.
    hard = {0.025: 2.203, 0.05: 2.137, 0.1: 2.086, 0.2: 2.076, 0.4: 2.095}
    assert choices.choose_expert_rate(hard, math.log(10)) == 0.05
    assert choices.choose_expert_rate({0.1: 2.5, 0.4: 3.0}, math.log(10)) == 0.05
    assert choices.next_rates(losses, 4.0) == []
    assert choices.next_rates({0.1: 2.0, 0.4: 1.5}, 4.0) == [1.6]
    assert choices.next_rates({0.1: math.nan, 0.4: math.nan}, 4.0) == [0.025]


def test_experts_are_used_up_to_the_epoch_of_the_lowest_loss():
    curve = {2: 1.8, 4: 1.4, 6: 1.2, 8: 1.3, 10: 1.6}
    assert choices.choose_epochs(curve, 0) == 6
    assert choices.choose_epochs(curve, 7) == 8
    assert not choices.still_falls(curve)
    assert choices.still_falls({2: 1.8, 4: 1.6, 6: 1.4, 8: 1.2})
    assert not choices.still_falls({2: 1.8, 4: 1.3, 6: 1.21, 8: 1.2})


def test_steps_and_targets_are_the_fewest_and_the_farthest_that_cost_little():
    # Measured on ImageNette at 32 pixels: 10, 20 and 40 steps, 1 to 3 epochs.
    gain = np.array([[[0.463, 0.385, 0.31], [0.474, 0.433, 0.371], [0.47, 0.438, 0.377]]])
    assert choices.choose_steps_and_targets(gain, [10, 20, 40], [1, 2, 3]) == (20, 2)
    only_near = np.array([[[0.5, 0.2, 0.1], [0.5, 0.2, 0.1], [0.5, 0.2, 0.1]]])
    assert choices.choose_steps_and_targets(only_near, [10, 20, 40], [1, 2, 3]) == (10, 1)


def test_start_epochs_go_as_far_as_students_can_follow():
    # Measured on ImageNette at 32 pixels; bounds of 4 and 12 epochs were good ones.
    starts = [0, 2, 4, 6, 8, 10, 13, 16, 20]
    gain = np.array([0.36, 0.159, 0.075, 0.042, 0.024, 0.013, 0.008, 0.009, 0.005])
    assert choices.choose_start_epochs(gain, starts) == (0, 3, 9)
    # What is measured at a start is noisy; the whole falls.
    noisy = np.array([0.36, 0.1, 0.134, 0.042, 0.024, 0.013, 0.008, 0.009, 0.005])
    assert choices.choose_start_epochs(noisy, starts) == (0, 4, 12)
    # An untrained network that learns nothing in its first epochs is no place to start from.
    gain = np.array([0.0, 0.1, 0.4, 0.35, 0.01])
    assert choices.choose_start_epochs(gain, [0, 4, 8, 12, 16]) == (4, 14, 16)
    assert choices.choose_start_epochs(np.zeros(5), [0, 4, 8, 12, 16])[0] == 0


def test_the_gate_is_over_every_loss_of_the_start():
    assert choices.choose_gate(np.array([0.6, 0.8])) == 1.5
    assert choices.choose_gate(np.array([0.9, 2.0, np.inf])) == 3.0


def test_images_move_as_far_whatever_the_gradients_scale():
    def step(gradient):
        rate = choices.rate_of_images(gradient, 0.5, 300, 1.2)
        # With momentum a steady gradient moves 1 / (1 - momentum) as far.
        return rate * gradient / (1 - 0.5) / 1.2

    assert step(1e-5) == pytest.approx(step(1e-2)) == pytest.approx(0.04)
    longer = choices.rate_of_images(1e-5, 0.5, 1200, 1.2)
    assert longer == pytest.approx(choices.rate_of_images(1e-5, 0.5, 300, 1.2) / 2)


def test_a_race_is_won_by_the_smallest_rate_that_is_about_the_best():
    assert choices.choose_raced({0.0: 1.0, 1.0: 0.9, 3.0: 0.8, 9.0: math.nan}) == 3.0
    assert choices.choose_raced({0.0: 1.0, 1.0: math.nan, 3.0: math.inf}) == 1.0
    # None of them helps: the least harm.
    assert choices.choose_raced({0.0: 0.7, 1.0: 0.71, 3.0: 0.72}) == 1.0
    # Measured on ImageNette, of two networks, and ImageWoof; by hand 1000 was chosen.
    for base, measured, best in (
        (0.7, {300.0: 0.671, 1000.0: 0.633, 3000.0: 0.620, 10000.0: 0.661}, 1000.0),
        (0.81, {520.0: 0.755, 1500.0: 0.724, 4600.0: 0.698}, 1500.0),
        (0.78, {320.0: 0.7334, 950.0: 0.7049, 2800.0: 0.7001}, 950.0),
    ):
        assert choices.choose_raced({0.0: base, **measured}) == best
