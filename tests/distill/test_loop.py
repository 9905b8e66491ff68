"""The outer loop: what it draws, when it moves, what it warns of, how it continues."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edf_jax import distilled_set
from edf_jax.distill import pairs
from edf_jax.distill.loop import distill
from edf_jax.distill.watch import NotLearning, Watch
from edf_jax.matching.iteration import Learnable, initial_state, outer_optimiser, outer_step
from edf_jax.methods import curriculum
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.training.trained import TrainedNetwork
from tests import tiny


@pytest.fixture
def store(tmp_path):
    return tiny.made_up_experts(tmp_path / "experts")


def _cam(store):
    network = tiny.network()
    theta = jnp.asarray(store.snapshot(0, 4))
    return TrainedNetwork(network, theta, {}, "the first expert")


# Start epochs and experts.


def test_the_bound_grows_in_whole_steps_and_stays():
    bounds = [curriculum.start_epoch_bound(it, 2, 8, 100) for it in (0, 16, 17, 50, 99, 100, 500)]
    assert bounds == [2, 2, 3, 5, 7, 8, 8]


def test_a_fixed_bound_is_the_last_one_from_the_start():
    assert pairs.start_bound(tiny.config("mtt"), 0) == 3
    assert [pairs.start_bound(tiny.config("datm"), it) for it in (0, 2, 4)] == [1, 2, 3]


def test_choices_follow_from_seed_and_iteration_alone():
    config = tiny.config("mtt", **{"distill.trajectories": 2})
    forwards = [pairs.choices(config, it) for it in range(12)]
    backwards = [pairs.choices(config, it) for it in reversed(range(12))]
    assert forwards == backwards[::-1]
    other = tiny.config("mtt", **{"distill.trajectories": 2, "seed": 1})
    assert forwards != [pairs.choices(other, it) for it in range(12)]


@pytest.mark.parametrize("trajectories", [1, 2])
def test_experts_come_without_replacement(trajectories):
    config = tiny.config("mtt", **{"distill.trajectories": trajectories})
    experts = [expert for it in range(12) for expert, _ in pairs.choices(config, it)]
    turns = [experts[i : i + 3] for i in range(0, len(experts), 3)]
    assert all(sorted(turn) == [0, 1, 2] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_start_epochs_are_all_those_allowed():
    drawn = {start for it in range(60) for _, start in pairs.choices(tiny.config("mtt"), it)}
    assert drawn == {0, 1, 2}
    values = {"distill.min_start_epoch": 1, "distill.current_max_start_epoch": 2}
    late = tiny.config("datm", **values)
    assert {start for it in range(60) for _, start in pairs.choices(late, it)} == {1, 2}


# One step.


def _state(options):
    initial = tiny.initial_set()
    values = Learnable(
        jnp.asarray(initial.images), jnp.asarray(initial.labels), jnp.float32(initial.alpha)
    )
    return initial_state(options, values)


def _gradients(state, seed=0):
    rng = np.random.default_rng(seed)
    return Learnable(
        *(jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for x in state.values)
    )


def _step(options, state, loss, gradients, threshold):
    weight = jnp.ones((*state.values.images.shape[:3], 1))
    optimiser = outer_optimiser(options)
    return outer_step(
        optimiser, state, jnp.float32(loss), gradients, weight, threshold, decay=options.average
    )


def _assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_over_the_gate_nothing_moves_not_even_momentum():
    options = tiny.config("edf", **{"distill.average": 0.5}).distill
    state, _ = _step(options, _state(options), 0.5, _gradients(_state(options)), 1.0)
    after, skipped = _step(options, state, 1.01, _gradients(state, 1), 1.0)
    assert skipped
    _assert_same(after, state)
    on_it, skipped = _step(options, state, 1.0, _gradients(state, 1), 1.0)
    assert not skipped
    assert not np.array_equal(on_it.values.images, state.values.images)


def test_without_a_gate_every_finite_loss_moves():
    options = tiny.config("mtt").distill
    _, skipped = _step(options, _state(options), 100.0, _gradients(_state(options)), 0.0)
    assert not skipped


@pytest.mark.parametrize("where", ["loss", "images", "labels", "alpha"])
def test_what_is_not_finite_moves_nothing(where):
    options = tiny.config("edf").distill
    state = _state(options)
    gradients, loss = _gradients(state), 0.5
    if where == "loss":
        loss = np.nan
    else:
        gradients = gradients._replace(**{where: getattr(gradients, where) * jnp.inf})
    after, skipped = _step(options, state, loss, gradients, 1.0)
    assert skipped
    _assert_same(after, state)


def test_the_weight_multiplies_the_pixels_gradient_before_momentum():
    options = tiny.config("edf").distill
    state = _state(options)
    gradients = _gradients(state)
    weight = jnp.asarray(np.random.default_rng(2).uniform(1, 2, (6, 8, 8, 1)), jnp.float32)
    optimiser = outer_optimiser(options)
    after = state
    for _ in range(2):
        after, _ = outer_step(optimiser, after, jnp.float32(0), gradients, weight, 1.0)
    expected = state.values.images - options.lr_img * (2 + options.momentum_img) * (
        weight * gradients.images
    )
    np.testing.assert_allclose(after.values.images, expected, rtol=2e-5, atol=1e-4)


# The loop.


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("method", ["edf", "ftd", "tesla"])
def test_a_killed_run_continues_bit_identically(tmp_path, store, method):
    config = tiny.config(method)
    cam = _cam(store) if method == "edf" else None
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = tiny.run_distillation(config, whole, store, cam=cam)

    def kill_at_3(distilled, iteration):
        if iteration == 3:
            raise _Killed
        return tiny.evaluate(distilled, iteration)

    with pytest.raises(_Killed):
        tiny.run_distillation(config, killed, store, cam=cam, on=kill_at_3)
    assert not (killed / "distilled" / "last.safetensors").exists()
    found = tiny.run_distillation(config, killed, store, cam=cam)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.alpha == expected.alpha
    assert tiny.rows(killed) == tiny.rows(whole)
    for path in sorted((whole / "distilled").glob("*.safetensors")):
        same = distilled_set.load(killed / "distilled" / path.name)
        np.testing.assert_array_equal(same.images, distilled_set.load(path).images)


def test_rows_say_what_was_matched_and_the_bound(tmp_path, store):
    config = tiny.config("datm")
    tiny.run_distillation(config, tmp_path, store)
    rows = tiny.rows(tmp_path, "distill")
    assert [row["step"] for row in rows] == list(range(6))
    assert [row["max_start_epoch"] for row in rows] == [1, 1, 2, 2, 3, 3]
    for row in rows:
        assert [(row["expert"], row["start_epoch"])] == pairs.choices(config, row["step"])
    assert [row["step"] for row in tiny.rows(tmp_path, "evaluate")] == [0, 3, 6]


def test_warns_where_most_iterations_are_skipped(tmp_path, store, caplog):
    tiny.run_distillation(tiny.config("datm", **{"distill.threshold": 1e-6}), tmp_path, store)
    told = [line for line in tiny.messages(caplog) if "skipped" in line]
    assert len(told) == 1
    losses = [row["loss"] for row in tiny.rows(tmp_path, "distill")]
    assert "6 of the last 6" in told[0]
    assert f"median loss {np.median(losses):.3f}" in told[0]
    assert "distill.threshold 0.000" in told[0]


def test_warns_once_where_alpha_is_not_positive(tmp_path, store, caplog):
    tiny.run_distillation(tiny.config("datm", **{"distill.lr_lr": 10.0}), tmp_path, store)
    rows = tiny.rows(tmp_path, "distill")
    assert sum(row["alpha"] <= 0 for row in rows) > 1
    told = [line for line in tiny.messages(caplog) if "alpha" in line]
    turns = sum(
        row["alpha"] <= 0 < before["alpha"] for before, row in zip(rows, rows[1:], strict=False)
    )
    assert len(told) == turns + (rows[0]["alpha"] <= 0)
    assert "not positive" in told[0]


def test_a_quiet_run_warns_of_nothing(tmp_path, store, caplog):
    tiny.run_distillation(tiny.config("datm"), tmp_path, store)
    assert tiny.messages(caplog) == []


def test_best_on_test_is_the_best_of_the_evaluations(tmp_path, store):
    worth = {0: 3.0, 3: 5.0, 6: 4.0}

    def evaluate(distilled, iteration):
        return tiny.Accuracy(worth[iteration])

    tiny.run_distillation(tiny.config("datm"), tmp_path, store, on=evaluate)
    assert distilled_set.load(tmp_path / "distilled" / "best_on_test.safetensors").step == 3
    assert distilled_set.load(tmp_path / "distilled" / "last.safetensors").step == 6


def test_evaluations_by_fresh_networks_tell_their_largest_accuracy_so_far(tmp_path, store):
    worth = {0: 9.0, 3: 3.0, 6: 5.0, 9: 4.0}

    def told(**values):
        tiny.run_distillation(
            tiny.config("datm", **values),
            tmp_path,
            store,
            on=lambda distilled, it: tiny.Accuracy(worth[it]),
        )
        rows = tiny.rows(tmp_path, "evaluate")
        return [(row.get("paper_statistic"), row.get("paper_statistic_of")) for row in rows]

    assert told() == [(None, None)] * 3
    # Those by networks that all evaluations shared aren't counted.
    more = {"distill.iterations": 9, "evaluate.during_fresh": True}
    assert told(**more) == [(None, None), (None, None), (5.0, 1), (5.0, 2)]


def test_another_evaluation_half_way_starts_a_new_best(tmp_path, store, caplog):
    worth = {0: 9.0, 3: 5.0, 6: 4.0, 9: 3.0}

    def best_after(**values):
        config = tiny.config("datm", **values)
        tiny.run_distillation(
            config, tmp_path, store, on=lambda distilled, it: tiny.Accuracy(worth[it])
        )
        return distilled_set.load(tmp_path / "distilled" / "best_on_test.safetensors").step

    assert best_after() == 0
    assert best_after(**{"distill.iterations": 9, "evaluate.width": 8}) == 0
    worth[12] = 2.0
    # More epochs: what is 9.0 by the old evaluation says nothing about the new one's 3.0.
    assert best_after(**{"distill.iterations": 12, "evaluate.epochs": 5}) == 9
    assert "the best set so far is sought anew" in tiny.messages(caplog)[-1]


def test_tensorboard_gets_images_maps_and_distributions(tmp_path, store, monkeypatch):
    shown = []
    images, histogram = MetricsWriter.images, MetricsWriter.histogram

    def spy_images(self, step, stage, name, pixels):
        shown.append((step, name, np.shape(pixels)))
        images(self, step, stage, name, pixels)

    def spy_histogram(self, step, stage, name, values):
        shown.append((step, name, None))
        histogram(self, step, stage, name, values)

    monkeypatch.setattr(MetricsWriter, "images", spy_images)
    monkeypatch.setattr(MetricsWriter, "histogram", spy_histogram)
    config = tiny.config("edf", **{"log.tensorboard": True})
    tiny.run_distillation(config, tmp_path, store, cam=_cam(store))
    assert {step for step, _, _ in shown} == {0, 3, 6}
    # Three classes of two images, eight pixels a side, two between.
    grid = (3 * 10 - 2, 2 * 10 - 2, 3)
    assert {(name, shape) for _, name, shape in shown} == {
        ("distilled", grid),
        ("activation_maps", grid),
        ("pixels", None),
        ("label_probabilities", None),
    }
    assert list((tmp_path / "tensorboard" / "evaluate").glob("events*"))


# alpha's logarithm.


def test_alpha_stays_positive_where_its_logarithm_is_learned():
    options = tiny.config("edf", **{"distill.alpha_step": "log", "distill.lr_lr": 10.0}).distill
    optimiser, values = outer_optimiser(options), _state(options).values
    momentum = optimiser.init(values)
    gradient = jax.tree.map(jnp.zeros_like, values)._replace(alpha=jnp.float32(1e6))
    seen = []
    for _ in range(20):
        updates, momentum = optimiser.update(gradient, momentum, values)
        values = optax.apply_updates(values, updates)
        seen.append(float(values.alpha))
    # However large a gradient, an iteration changes it by a tenth.
    np.testing.assert_allclose(np.array(seen[1:]) / seen[:-1], 1 / 1.1, rtol=1e-5)


def test_a_step_of_the_logarithm_is_sgd_on_it():
    """Against plain SGD with momentum on log alpha, written out."""
    options = tiny.config("edf", **{"distill.alpha_step": "log", "distill.lr_lr": 0.02}).distill
    optimiser, values = outer_optimiser(options), _state(options).values
    momentum = optimiser.init(values)
    log_alpha, trace = float(np.log(values.alpha)), 0.0
    for slope in (3.0, -1.0, 2.0):
        gradient = jax.tree.map(jnp.zeros_like, values)._replace(alpha=jnp.float32(slope))
        updates, momentum = optimiser.update(gradient, momentum, values)
        values = optax.apply_updates(values, updates)
        trace = slope * np.exp(log_alpha) + options.momentum_lr * trace
        log_alpha -= 0.02 * trace
    assert float(values.alpha) == pytest.approx(np.exp(log_alpha), rel=1e-5)


# The look at a young run.


def test_a_run_that_does_not_learn_is_noticed_in_its_first_tenth(tmp_path, store, caplog):
    config = tiny.config(
        "edf", **{"distill.iterations": 100, "distill.eval_every": 1000, "distill.threshold": 1e-9}
    )
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        watch = Watch(config, metrics, tiny.evaluate, lambda finding: bool(finding.key))
        with pytest.raises(NotLearning, match="10 of 10|9 of 9|11 of 11|changed nothing"):
            distill(
                config, tiny.network(), tiny.initial_set(), store, None, tiny.evaluate, metrics,
                tmp_path, watch,
            )  # fmt: skip
        assert len(metrics.rows("distill")) <= 12
