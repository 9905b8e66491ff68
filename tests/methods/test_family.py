"""Each method's defining difference, as published (MTT, TESLA, FTD, DATM, PAD, EDF)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax import distilled_set
from edf_jax.config.flags import parse
from edf_jax.config.resolve import METHODS, default_config, parse_variant, resolve
from edf_jax.data.coresets import choose_near_centres
from edf_jax.distill import pairs
from edf_jax.experts import difficulty
from edf_jax.matching import gradient as matching
from edf_jax.matching.iteration import Learnable, initial_state, make_iteration
from edf_jax.methods import curriculum, dsa, family
from edf_jax.methods.soft_labels import hard_labels, smoothed_labels, snapshot_labels
from edf_jax.training import loop as training
from edf_jax.training import losses
from tests import tiny

# What a method is.

_PUBLISHED = {
    # optimiser, schedule, labels, starts, loss mask, pixel weight, gradient
    "mtt": ("sgd", "all", "hard", "fixed", "none", "none", "exact"),
    "tesla": ("sgd", "all", "soft_target", "fixed", "none", "none", "tesla"),
    "ftd": ("gsam", "all", "hard", "fixed", "none", "none", "exact"),
    "datm": ("gsam", "all", "soft_learned", "sequential", "none", "none", "exact"),
    "pad": ("gsam", "pad", "soft_learned", "sequential", "deep_layers", "none", "exact"),
    "edf": ("gsam", "all", "soft_learned", "sequential", "cpd", "dae", "exact"),
}


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_the_published_ones(method):
    config = tiny.config(method)
    assert _PUBLISHED[method] == (
        config.experts.optimizer,
        config.experts.schedule,
        config.distill.labels,
        config.distill.start_schedule,
        config.distill.loss_mask,
        config.distill.pixel_weight,
        config.distill.gradient,
    )


@pytest.mark.parametrize("method", ["mtt", "tesla", "ftd"])
def test_the_older_methods_have_no_gate_and_start_from_epoch_0(method):
    config = resolve(default_config(method=method))
    assert config.distill.threshold == 0
    assert config.distill.min_start_epoch == 0
    assert config.evaluate.batch == (128 if method == "ftd" else 256)


def test_edf_alone_crops_by_a_quarter():
    ratios = {m: resolve(default_config(method=m)).augment.crop_ratio for m in METHODS}
    assert ratios == {**dict.fromkeys(METHODS, 0.125), "edf": 0.25}


_VARIANTS = {"ipc1": {"distill.threshold": 1.2, "distill.min_start_epoch": 2, "evaluate.batch": 64}}


def test_a_methods_numbers_replace_a_variants():
    config = resolve(parse_variant("ipc1,method=mtt", _VARIANTS, "made_up"))
    assert (config.distill.threshold, config.distill.min_start_epoch) == (0, 0)
    assert config.evaluate.batch == 256
    own = resolve(parse_variant("ipc1", _VARIANTS, "made_up"))
    assert (own.distill.threshold, own.evaluate.batch) == (1.2, 64)


def test_the_users_numbers_replace_a_methods():
    text = "ipc1,distill.threshold=2.5,method=mtt,evaluate.batch=32"
    config = resolve(parse_variant(text, _VARIANTS, "made_up"))
    assert (config.distill.threshold, config.evaluate.batch) == (2.5, 32)
    assert config.distill.min_start_epoch == 0
    assert resolve(config) == config
    given = resolve(default_config(**{"distill.threshold": 2.5, "method": "mtt"}))
    assert given.distill.threshold == 2.5


@pytest.mark.parametrize("flags", [[], ["--config.distill.threshold=2.5"]])
def test_a_method_given_as_a_flag_brings_its_numbers(flags):
    argv = ["main", "--config=configs/cluttered_digits.py:demo", "--config.method=mtt", *flags]
    config = resolve(parse(argv, lambda values: None).config)
    assert config.distill.labels == "hard"
    assert config.distill.threshold == (2.5 if flags else 0)
    assert config.evaluate.batch == 256


# TESLA.


def _matching_problem():
    """A student of one block on seven images, in float64, with augmentation."""
    network = tiny.network()
    keys = jax.random.split(jax.random.key(3), 5)
    start = network.init(keys[0])[0].astype(jnp.float64)
    target = start + 0.05 * jax.random.normal(keys[1], start.shape, jnp.float64)
    images = jax.random.normal(keys[2], (7, tiny.SIDE, tiny.SIDE, 3), jnp.float64)
    labels = jax.random.normal(keys[3], (7, tiny.CLASSES), jnp.float64)
    batches = matching.student_batches(keys[4], 7, 3, 5)

    def loss(theta, images, labels, mask):
        return losses.soft_cross_entropy(network.apply(theta, images, train=True), labels, mask)

    def transform(key, images):
        return dsa.dsa(key, images)

    return loss, transform, start, target, images, labels, jnp.float64(0.1), batches


def _student_end(problem, images, labels, alpha, *, through_steps, alpha_sees_sum=True):
    """The student's end by a plain loop; without `through_steps` each step's start is constant."""
    loss, transform, start, _, _, _, _, batches = problem
    theta = start
    for i in range(len(batches.keys)):
        indices = batches.indices[i]
        mask = None if batches.mask is None else batches.mask[i]
        at = theta if through_steps else jax.lax.stop_gradient(theta)
        seen = transform(batches.keys[i], images[indices])
        gradient = jax.grad(loss)(at, seen, labels[indices], mask)
        theta = theta - alpha * (gradient if alpha_sees_sum else jax.lax.stop_gradient(gradient))
    return theta


def test_teslas_gradient_ignores_precisely_how_steps_depend_on_steps():
    with jax.enable_x64(True):
        problem = _matching_problem()
        _, _, start, target, images, labels, alpha, _ = problem

        def matched(images, labels, alpha, **how):
            end = _student_end(problem, images, labels, alpha, **how)
            return matching.matching_loss(end, start, target)

        def ignoring(images, labels, alpha):
            return matched(images, labels, alpha, through_steps=False)

        def constant_sum(alpha):
            return matched(images, labels, alpha, through_steps=False, alpha_sees_sum=False)

        expected = (
            *jax.jit(jax.grad(ignoring, (0, 1)))(images, labels, alpha),
            jax.jit(jax.grad(constant_sum))(alpha),
        )
        run = jax.jit(
            matching.matching_gradient, static_argnums=(0, 1), static_argnames="through_steps"
        )
        tesla = run(*problem, through_steps=False)
        exact = run(*problem, through_steps=True)
        assert tesla.loss == exact.loss
        for name, ours, theirs in zip(
            ("images", "labels", "alpha"), (tesla.images, tesla.labels, tesla.alpha), expected,
            strict=True,
        ):
            error = float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))
            assert error < 1e-10, name
        # And that is not nothing.
        gap = jnp.linalg.norm(exact.images - tesla.images) / jnp.linalg.norm(exact.images)
        assert gap > 1e-3


def _start(config, initial):
    values = Learnable(
        jnp.asarray(initial.images), jnp.asarray(initial.labels), jnp.float32(initial.alpha)
    )
    return initial_state(config.distill, values)


def _iterate(config, initial, store, iterations):
    """The states after each iteration, the first before any."""
    network = tiny.network()
    iteration = make_iteration(config, network, len(initial.images))
    weight = jnp.ones((*initial.images.shape[:3], 1))
    states = [_start(config, initial)]
    targets = []
    for it in range(iterations):
        used = [store.pair(*choice, 2) for choice in pairs.choices(config, it)]
        state, _ = iteration(
            states[-1],
            np.stack([pair.start for pair in used]),
            np.stack([pair.target for pair in used]),
            weight,
            jax.random.key(it),
        )
        states.append(state)
        targets.append([pair.target for pair in used])
    return states, targets


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.made_up_experts(tmp_path_factory.mktemp("experts"))


def test_teslas_labels_are_what_the_target_says_of_the_images(store):
    config = tiny.config("tesla", **{"distill.trajectories": 2})
    states, targets = _iterate(config, tiny.initial_set(), store, 2)
    network = tiny.network()
    for before, after, those in zip(states, states[1:], targets, strict=False):
        logits = [network.apply(theta, before.values.images, train=True) for theta in those]
        np.testing.assert_allclose(
            after.values.labels, np.mean(logits, axis=0), rtol=1e-4, atol=1e-5
        )
        assert not np.array_equal(after.values.images, before.values.images)


def test_a_snapshots_labels_come_in_batches_of_any_number():
    network = tiny.network()
    theta, _ = network.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (300, tiny.SIDE, tiny.SIDE, 3))
    ours = jax.jit(lambda x: snapshot_labels(network, theta, x))(images)
    np.testing.assert_allclose(ours, network.apply(theta, images), rtol=1e-4, atol=1e-5)


# MTT and FTD.


@pytest.mark.parametrize("method", ["mtt", "ftd"])
def test_hard_labels_never_move(store, method):
    initial = tiny.with_hard_labels(tiny.initial_set())
    states, _ = _iterate(tiny.config(method), initial, store, 3)
    for before, after in zip(states, states[1:], strict=False):
        np.testing.assert_array_equal(after.values.labels, initial.labels)
        assert not np.array_equal(after.values.images, before.values.images)
        assert after.values.alpha != before.values.alpha


def test_learned_labels_move(store):
    states, _ = _iterate(tiny.config("datm"), tiny.initial_set(), store, 1)
    assert not np.array_equal(states[1].values.labels, states[0].values.labels)


def test_one_hot_logits_make_the_soft_loss_the_hard_one():
    logits = jax.random.normal(jax.random.key(0), (9, tiny.CLASSES)) * 5
    classes = np.arange(9) % tiny.CLASSES
    targets = hard_labels(classes, tiny.CLASSES)
    np.testing.assert_array_equal(jax.nn.softmax(targets), np.eye(tiny.CLASSES)[classes])
    soft = jax.value_and_grad(losses.soft_cross_entropy)(logits, targets)
    hard = jax.value_and_grad(losses.hard_cross_entropy)(logits, classes)
    for ours, theirs in zip(soft, hard, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_ftds_average_follows_the_images(store):
    config = tiny.config("ftd", **{"distill.average": 0.75})
    assert METHODS["ftd"]["distill.average"] == 0.9995
    states, _ = _iterate(config, tiny.initial_set(), store, 3)
    expected = np.asarray(states[0].values.images)
    for state in states[1:]:
        expected = 0.75 * expected + 0.25 * np.asarray(state.values.images)
        np.testing.assert_allclose(state.average, expected, rtol=1e-5, atol=1e-6)
    assert _start(tiny.config("mtt"), tiny.initial_set()).average is None


def test_ftd_evaluates_the_average_beside_the_images(store, tmp_path):
    tiny.run_distillation(tiny.config("ftd"), tmp_path, store)
    rows = tiny.rows(tmp_path, "evaluate")
    average = distilled_set.load(tmp_path / "distilled" / "average.safetensors")
    last = distilled_set.load(tmp_path / "distilled" / "last.safetensors")
    assert rows[-1]["average_accuracy_mean"] == tiny.evaluate(average, 6).mean
    assert rows[-1]["accuracy_mean"] == tiny.evaluate(last, 6).mean
    assert rows[0]["average_accuracy_mean"] == rows[0]["accuracy_mean"]
    assert rows[-1]["average_accuracy_mean"] != rows[-1]["accuracy_mean"]


# PAD.


def test_pads_schedule_goes_from_easy_to_hard():
    shares = {epoch: curriculum.pad_share(epoch) for epoch in (0, 10, 20, 21, 40, 41, 60, 61, 99)}
    assert shares == {
        0: (0, 0.75), 10: (0, 0.875), 20: (0, 1), 21: (0, 1), 40: (0, 1),
        41: (0.1, 1), 60: (0.1, 1), 61: (0.2, 1), 99: (0.2, 1),
    }


@pytest.mark.parametrize("epoch", [0, 7, 20, 30, 50, 70])
def test_pads_schedule_selects_per_class(epoch):
    rng = np.random.default_rng(epoch)
    labels = rng.permutation(np.repeat(np.arange(3), [8, 20, 41]))
    scores = rng.permutation(len(labels)).astype(np.float32)
    share = curriculum.pad_share(epoch)
    chosen = curriculum.chosen_by(share, scores, labels)
    for label, count in ((0, 8), (1, 20), (2, 41)):
        members = np.flatnonzero(labels == label)
        by_difficulty = members[np.argsort(scores[members])]
        expected = by_difficulty[int(share.first * count) : int(share.last * count)]
        assert set(chosen[labels[chosen] == label]) == set(expected)
    assert list(chosen) == sorted(set(chosen))


@pytest.mark.parametrize("pads", [True, False])
def test_an_epoch_shows_each_chosen_image_once_and_no_other(pads):
    chosen = np.array([1, 4, 5, 8, 9, 11], np.int32)
    shown = difficulty.shown(chosen, 12, pads=pads)
    orders = []
    for seed in range(3):
        order, num = difficulty.shuffled(jax.random.key(seed), shown)
        orders.append(np.asarray(order)[: len(chosen) if num is None else int(num)])
    assert all(sorted(order) == list(chosen) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("count", [5, 8, 12])
def test_what_an_epoch_leaves_out_does_not_matter_to_it(count):
    data = tiny.dataset(train=12)
    recipe = training.Recipe(
        tiny.network(),
        losses.hard_cross_entropy,
        training.sgd(),
        lambda key, x: x,
        data.info.normalisation.apply,
        4,
    )
    state = training.initial_state(recipe, jax.random.key(0))
    order = jax.random.permutation(jax.random.key(1), 12)

    @jax.jit
    def train(images, count):
        return training.train_epoch(
            recipe, state, images, jnp.asarray(data.train.labels), order, jax.random.key(2), 0.1,
            count=count,
        )

    images = jnp.asarray(data.train.images)
    trained, loss = train(images, count)
    other, _ = train(images.at[order[count:]].set(0), count)
    np.testing.assert_array_equal(trained.theta, other.theta)
    # As an epoch over those images alone.
    alone, alone_loss = training.train_epoch(
        recipe, state, images, jnp.asarray(data.train.labels), order[:count], jax.random.key(2), 0.1
    )
    if count == 12:  # The same number of keys, so the same randomness.
        np.testing.assert_allclose(trained.theta, alone.theta, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(loss, alone_loss, rtol=1e-5)


def test_el2n_is_the_length_of_the_error():
    logits = np.array([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    labels = np.array([0, 2])
    expected = []
    for row, label in zip(logits, labels, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        p[label] -= 1
        expected.append(np.sqrt((p**2).sum()))
    np.testing.assert_allclose(difficulty.el2n(jnp.asarray(logits), labels), expected, rtol=1e-6)


def test_grand_is_the_length_of_each_images_gradient():
    network = tiny.network()
    theta, _ = network.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, tiny.SIDE, tiny.SIDE, 3))
    labels = jnp.array([0, 1, 2, 1])

    def each(theta):
        logits = jax.nn.log_softmax(network.apply(theta, images))
        return -logits[jnp.arange(4), labels]

    expected = np.linalg.norm(jax.jacrev(each)(theta), axis=1)
    ours = difficulty.grand(network, theta, {}, images, labels)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize("how", ["grand", "el2n"])
def test_scores_are_higher_for_mislabelled_images(how):
    data = tiny.dataset(train=36)
    labels = data.train.labels.copy()
    wrong = np.array([3, 10, 20])
    labels[wrong] = (labels[wrong] + 1) % tiny.CLASSES
    recipe = training.Recipe(
        tiny.network(),
        losses.hard_cross_entropy,
        training.sgd(),
        lambda key, x: x,
        data.info.normalisation.apply,
        12,
    )
    scores = difficulty.mean_scores(
        recipe,
        jnp.asarray(data.train.images),
        jnp.asarray(labels),
        how=how,
        networks=2,
        epochs=20,
        rate=0.3,
        key=jax.random.key(0),
    )
    assert scores.shape == (36,)
    assert scores[wrong].mean() > 1.5 * np.delete(scores, wrong).mean()


def test_pads_loss_leaves_out_the_first_parameters():
    options = tiny.config("pad", **{"distill.depth_ratio": 0.3}).distill
    rng = np.random.default_rng(0)
    theta, start, target = (jnp.asarray(rng.standard_normal(17), jnp.float32) for _ in range(3))
    ours = matching.matching_loss(theta, start, target, family.LOSS_MASKS["deep_layers"](options))
    kept = slice(int(0.3 * 17), None)
    expected = ((theta - target)[kept] ** 2).sum() / ((start - target)[kept] ** 2).sum()
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


# EDF.


def test_edf_without_its_parts_is_datm_bit_for_bit(store, tmp_path):
    edf = tiny.config("edf", **{"distill.drop": 0.0, "distill.pixel_weight": "none"})
    ours = tiny.run_distillation(edf, tmp_path / "edf", store)
    datm = tiny.config("datm", **{"augment.crop_ratio": edf.augment.crop_ratio})
    theirs = tiny.run_distillation(datm, tmp_path / "datm", store)
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert ours.alpha == theirs.alpha
    assert tiny.rows(tmp_path / "edf") == tiny.rows(tmp_path / "datm")


def test_edf_with_its_parts_is_not_datm(store):
    edf, _ = _iterate(tiny.config("edf"), tiny.initial_set(), store, 1)
    datm, _ = _iterate(tiny.config("datm"), tiny.initial_set(), store, 1)
    assert not np.array_equal(edf[1].values.images, datm[1].values.images)


# First images.


def test_images_nearest_to_centres_stand_for_each_cluster():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [30, 30], [40, 30], [30, 40]], float)
    labels = np.repeat([0, 1], [30, 30])
    cluster = np.repeat(np.arange(6), 10)
    features = centres[cluster] + rng.normal(0, 0.5, (60, 2))
    shuffle = rng.permutation(60)
    features, labels, cluster = features[shuffle], labels[shuffle], cluster[shuffle]
    chosen = choose_near_centres(rng, features, labels, 3)
    assert list(labels[chosen]) == [0, 0, 0, 1, 1, 1]
    assert sorted(cluster[chosen]) == list(range(6))
    for position in chosen:
        members = np.flatnonzero(cluster == cluster[position])
        middle = features[members].mean(axis=0)
        distances = np.linalg.norm(features[members] - middle, axis=1)
        assert members[np.argmin(distances)] == position


def test_noise_starts_with_labels_of_nine_tenths():
    targets = smoothed_labels(np.array([1, 2, 0]), 3)
    np.testing.assert_allclose(
        jax.nn.softmax(targets),
        [[0.05, 0.9, 0.05], [0.05, 0.05, 0.9], [0.9, 0.05, 0.05]],
        rtol=1e-6,
    )
