"""The protocols with a teacher: losses, schedules, AdamW and stored soft labels."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edf_jax.evaluate import crops as views
from edf_jax.evaluate import protocols, stored_labels
from edf_jax.evaluate.from_scratch import RealTestData
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.models import build_network
from edf_jax.runtime.errors import UserError
from edf_jax.training import loop as training
from edf_jax.training import losses
from edf_jax.training.trained import TrainedNetwork


def _network(name="ConvNetD1W4", image_shape=(8, 8, 3), num_classes=3):
    return build_network(name, num_classes=num_classes, image_shape=image_shape)


@pytest.fixture(scope="module")
def teacher():
    network = _network("ConvNetD1W4BN")
    theta, batch_stats = network.init(jax.random.key(5))
    return TrainedNetwork(network, 3 * theta, batch_stats, "a teacher", accuracy=50.0)


def _set(n=10):
    return jnp.asarray(np.random.default_rng(1).standard_normal((n, 8, 8, 3)), jnp.float32)


def test_the_loss_is_the_divergence_at_temperature_20_without_its_square():
    logits = jnp.asarray([[20.0, 0.0], [0.0, 40.0]])
    targets = jnp.asarray([[0.0, 20.0], [0.0, 0.0]])
    one = 1 / (1 + math.e)  # softmax of (0, 1), first entry
    two = 1 / (1 + math.e**2)
    first = one * math.log(one / (1 - one)) + (1 - one) * math.log((1 - one) / one)
    second = 0.5 * math.log(0.5 / two) + 0.5 * math.log(0.5 / (1 - two))
    found = protocols.kl_loss(logits, targets, None)
    assert float(found) == pytest.approx((first + second) / 2, rel=1e-5)
    masked = protocols.kl_loss(logits, targets, jnp.asarray([0, 1]))
    assert float(masked) == pytest.approx(second, rel=1e-5)


def test_rates_fall_along_half_a_cosine_or_a_quarter():
    whole = protocols.schedule(300, jnp.float32(1e-3), halves=1.0)
    half = protocols.schedule(300, jnp.float32(1e-3), halves=2.0)
    assert len(whole.number) == 300 and not whole.restart.any()
    for epoch, factor in ((0, 1.0), (100, 0.75), (150, 0.5), (200, 0.25)):
        assert float(whole.rate[epoch]) == pytest.approx(1e-3 * factor, rel=1e-5)
    for epoch, factor in ((0, 1.0), (150, (1 + math.sqrt(0.5)) / 2), (200, 0.75)):
        assert float(half.rate[epoch]) == pytest.approx(1e-3 * factor, rel=1e-5)
    assert float(half.rate[299]) == pytest.approx(0.5e-3, rel=1e-2)


def test_rded_settings_are_the_published_ones():
    assert [protocols.rded_batch(ipc, 10) for ipc in (1, 10, 50)] == [10, 50, 100]
    assert [protocols.rded_batch(ipc, 100) for ipc in (1, 10, 50)] == [20, 100, 200]
    tiny = [protocols.rded_batch(ipc, 200, "tiny_imagenet") for ipc in (1, 10, 50)]
    assert tiny == [100, 100, 100]
    assert [protocols.rded_batch(ipc, 100, "cifar100") for ipc in (10, 50)] == [100, 200]
    assert protocols.rded_batch(10, 100, "cifar100", cifar100_convnets=True) == 25
    assert protocols.rate_of(_network(), cifar100_convnets=True) == 2e-3
    assert protocols.rded_checks(300) == (249, 259, 269, 279, 289, 299)
    assert protocols.rded_checks(4) == (3,)
    assert protocols.rate_of(_network()) == 1e-3


@pytest.mark.parametrize("name", ["ConvNetD1W4", "ConvNetD1W4BN"])
def test_adamw_is_the_published_algorithm_and_only_kernels_decay(name):
    network = _network(name)
    theta, _ = network.init(jax.random.key(0))
    rate, decay = 0.01, 0.1
    optimiser = training.adamw(network, decay)
    state, found = optimiser.init(theta), theta
    rng = np.random.default_rng(0)
    expected, m, v = np.float64(theta), 0.0, 0.0
    ones = [
        np.full(math.prod(shape), path[-1] == "kernel")
        for path, shape in network.param_table
    ]
    kernels = np.concatenate(ones)
    assert 0 < kernels.sum() < len(kernels)
    for step in range(1, 4):
        gradient = rng.standard_normal(len(theta))
        direction, state = optimiser.update(jnp.asarray(gradient, jnp.float32), state, found)
        found = found - rate * direction
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected = expected - rate * decay * expected * kernels
        corrected = m / (1 - 0.9**step), v / (1 - 0.999**step)
        expected -= rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_teacher_labels_the_augmented_batch():
    network = _network()
    images, seen = _set(4), []

    def teach(key, inputs, targets):
        assert targets is None
        seen.append(inputs.shape)
        return inputs.mean(axis=(1, 2))

    def recipe(**options):
        return training.Recipe(
            network,
            losses.soft_cross_entropy,
            optax.identity(),
            lambda key, x: x * 2,
            lambda x: x + 1,
            4,
            **options,
        )

    state = training.initial_state(recipe(), jax.random.key(0))

    def step(how, targets):
        arguments = (None, jax.random.key(1), jnp.float32(0.1))
        return jax.jit(lambda s, x, y: training.train_step(how, s, x, y, *arguments))(
            state, images, targets
        )

    taught, loss = step(recipe(teach=teach), None)
    told, expected = step(recipe(), (2 * (images + 1)).mean(axis=(1, 2)))
    assert seen == [(4, 8, 8, 3)]
    assert float(loss) == pytest.approx(float(expected))
    np.testing.assert_allclose(taught.theta, told.theta, atol=1e-6)


def _convolved(network, theta, images):
    """The first convolution's results, by hand."""
    first = network.unravel(theta)["body"]["features.0"]
    kernel, bias = np.float64(first["kernel"]), np.float64(first["bias"])
    padded = np.pad(np.float64(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias


@pytest.mark.parametrize("observed", [None, 3.0])
def test_a_first_pass_moves_batch_norm_statistics_and_nothing_else(observed):
    network, images = _network("ConvNetD1W4BN"), _set(4)
    recipe = training.Recipe(
        network,
        losses.soft_cross_entropy,
        optax.identity(),
        lambda key, x: 2 * x,
        lambda x: x,
        4,
        observe=None if observed is None else lambda key, x: observed * x,
    )
    state = training.initial_state(recipe, jax.random.key(0))
    targets = jnp.eye(3)[jnp.asarray([0, 1, 2, 0])]
    step = jax.jit(lambda s: training.train_step(
        recipe, s, images, targets, None, jax.random.key(1), jnp.float32(0.1)
    ))
    trained, _ = step(state)
    mean, var = np.zeros(4), np.ones(4)
    for factor in (2.0,) if observed is None else (observed, 2.0):
        seen = _convolved(network, state.theta, factor * images).reshape(-1, 4)
        mean = 0.9 * mean + 0.1 * seen.mean(axis=0)
        var = 0.9 * var + 0.1 * seen.var(axis=0, ddof=1)
    found = {path[-1].key: x for path, x in
             jax.tree_util.tree_leaves_with_path(trained.batch_stats)}
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], var, rtol=1e-4)
    plain = training.train_step(
        dataclasses.replace(recipe, observe=None),
        state, images, targets, None, jax.random.key(1), jnp.float32(0.1),
    )[0]
    np.testing.assert_allclose(trained.theta, plain.theta, rtol=1e-5, atol=1e-7)


def test_rdeds_unmixed_batch_is_the_mixed_one_before_cutmix():
    images = _set(6)
    for seed in range(5):
        plain, mixed = (
            np.asarray(views.rded(jax.random.key(seed), images, m)) for m in (False, True)
        )
        for own, image in zip(plain, mixed):
            sources = [(image == own) | (image == other) for other in plain]
            assert any(source.all() for source in sources)


def test_rdeds_official_statistics_move_twice_a_step(teacher):
    network, images = _network("ConvNetD1W4BN"), _set(6)
    figures = []
    for updates in (1, 2):
        evaluator = protocols.rded_evaluator(
            network, teacher, _test_data(network), epochs=1, batch=6, bn_updates=updates
        )
        targets = np.zeros(6, np.int32)
        figures.append(evaluator.train(images, targets, jnp.full(1, 1e-3), jax.random.key(0)))
    once, twice = figures
    np.testing.assert_allclose(once.theta, twice.theta, rtol=1e-5, atol=1e-7)
    kept = [np.abs(1 - jax.tree.leaves(s.batch_stats)[-1]).mean() for s in (once, twice)]
    assert not np.allclose(*kept)


def _table(teacher, images, *, epochs=3, batch=4, **options):
    return protocols.make_table(
        jax.random.key(0), images, teacher, epochs=epochs, batch=batch, **options
    )


def test_stored_labels_read_back_give_bit_identical_batches(teacher, tmp_path):
    images = _set()
    table = _table(teacher, images)
    details = {"teacher": "a teacher", "epochs": 3, "batch": 4}
    stored_labels.save(tmp_path / "labels.safetensors", table, details)
    again, told = stored_labels.load(tmp_path / "labels.safetensors")
    assert told == details
    show = jax.jit(stored_labels.show)
    for epoch in range(3):
        for found, expected in zip(show(images, again, epoch), show(images, table, epoch)):
            np.testing.assert_array_equal(found, expected)
    assert table.labels.dtype == np.float16


def test_stored_labels_are_the_teacher_on_what_students_see(teacher):
    images = _set()
    table = _table(teacher, images)
    for epoch in range(3):
        shown, labels = stored_labels.show(images, table, jnp.int32(epoch))
        expected = teacher.logits(teacher.arrays, shown)
        np.testing.assert_allclose(labels, expected, rtol=2e-3, atol=2e-3)


def test_a_table_is_what_its_notes_say(teacher):
    images = _set()
    table = _table(teacher, images)
    assert sorted(table.order[1]) == list(range(10)) and int(table.batch) == 4
    assert table.mix_boxes.shape == (3, 3, 4)  # batches of 4, 4, 2
    mixed = 0
    for epoch in range(3):
        crops = views.resized_crop(images[table.order[epoch]], jnp.asarray(table.crops[epoch]))
        crops = np.array(crops)
        for i in range(10):
            if table.flips[epoch, i]:
                crops[i] = crops[i, :, ::-1]
        expected = crops.copy()
        for i in range(10):
            partner = table.partners[epoch, i]
            assert partner // 4 == i // 4  # within the batch
            top, left, bottom, right = table.mix_boxes[epoch, i // 4]
            expected[i, top:bottom, left:right] = crops[partner, top:bottom, left:right]
            mixed += (expected[i] != crops[i]).any()
        shown, _ = stored_labels.show(images, table, jnp.int32(epoch))
        np.testing.assert_allclose(shown, expected, atol=1e-6)
    assert mixed > 3


def test_without_augmentation_a_table_shows_the_images_themselves(teacher):
    images = _set()
    table = _table(teacher, images, augmented=False)
    shown, _ = stored_labels.show(images, table, jnp.int32(2))
    np.testing.assert_allclose(shown, images[table.order[2]], atol=1e-6)


def _coloured(n=9):
    """Images of one colour, which is their class: how much of each is seen can be read off."""
    labels = np.arange(n) % 3
    return jnp.ones((n, 8, 8, 1)) * jnp.eye(3)[labels][:, None, None], hard_labels(labels, 3)


@pytest.mark.parametrize("augmented", [True, False])
def test_own_labels_are_mixed_as_the_images_of_a_table_are(augmented):
    images, labels = _coloured()
    table = _table(None, images, epochs=4, augmented=augmented, labels=labels)
    several = 0
    for epoch in range(4):
        shown, told = stored_labels.show(images, table, jnp.int32(epoch))
        found = np.asarray(jax.nn.softmax(told))
        np.testing.assert_allclose(found, shown.mean(axis=(1, 2)), atol=2e-3)
        several += (found.max(axis=1) < 0.99).sum()
    assert (several > 0) == augmented


def test_own_labels_are_mixed_as_rdeds_images_are():
    images, labels = _coloured()
    several = 0
    for seed in range(4):
        key = jax.random.key(seed)
        mix = views.rded_mix(key, len(images), (8, 8))
        mixed = views.mix_labels(labels, labels[mix.partners], mix.box, (8, 8))
        found = np.asarray(jax.nn.softmax(mixed))
        np.testing.assert_allclose(found, views.rded(key, images).mean(axis=(1, 2)), atol=1e-5)
        several += (found.max(axis=1) < 0.99).sum()
    assert several > 0


def test_without_a_teacher_rded_is_learned_from_the_images_labels():
    network = _network("ConvNetD1W4BN")
    images, labels = _coloured()
    test = RealTestData(images, jnp.argmax(labels, axis=1), lambda x: x)
    evaluator = protocols.rded_evaluator(network, None, test, epochs=60, batch=9)
    found = evaluator(images, labels, jnp.float32(0.01), jax.random.key(0), num=1)
    assert found.values == (100.0,)


def test_a_file_that_holds_no_soft_labels_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors"):
        stored_labels.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="there are no stored soft labels"):
        stored_labels.load(tmp_path / "none.safetensors")


def _test_data(network, n=20):
    rng = np.random.default_rng(2)
    images = jnp.asarray(rng.standard_normal((n, *network.image_shape)), jnp.float32)
    return RealTestData(images, jnp.asarray(rng.integers(0, 3, n)), lambda x: x)


def test_rded_reports_the_best_check_and_the_last_epoch(teacher):
    network = _network("ConvNetD1W4BN")
    evaluator = protocols.rded_evaluator(
        network, teacher, _test_data(network), epochs=21, batch=4
    )
    rate = jnp.float32(0.01)
    found = evaluator(_set(), np.zeros(10, np.int32), rate, jax.random.key(0), num=2)
    states = []
    evaluator.train(
        _set(), np.zeros(10, np.int32), jnp.full(2, rate), jax.random.key(0),
        after=lambda epoch, state: states.append((epoch, state)),
    )
    assert [epoch for epoch, _ in states] == [19, 20]
    checked = np.asarray([evaluator.test(state).values for _, state in states])
    np.testing.assert_allclose(found.values, checked.max(axis=0))
    np.testing.assert_allclose(found.after_last_epoch, checked[-1])
    assert found.num_images == 20


def test_all_students_of_the_sre2l_protocol_see_the_table(teacher):
    """One epoch equals steps by hand on the table's batches."""
    network = _network()
    images = _set()
    table = _table(teacher, images, epochs=1)
    evaluator = protocols.sre2l_evaluator(network, _test_data(network), epochs=1, batch=4)
    states = evaluator.train(images, table, jnp.full(2, 0.01), jax.random.key(0))
    recipe = training.Recipe(
        network, protocols.kl_loss, training.adamw(network, 0.01), lambda key, x: x, lambda x: x, 4
    )
    state = training.initial_state(recipe, jax.random.fold_in(jax.random.key(0), 1))
    shown, labels = stored_labels.show(images, table, jnp.int32(0))

    @jax.jit
    def step(state, images, labels):
        arguments = (None, jax.random.key(9), jnp.float32(0.01))
        return training.train_step(recipe, state, images, labels, *arguments)[0]

    for batch in (slice(0, 4), slice(4, 8), slice(8, 10)):
        state = step(state, shown[batch], labels[batch])
    # Adam makes large steps of gradients that are only rounding.
    differences = np.abs(np.asarray(states.theta[1] - state.theta))
    assert np.median(differences) < 1e-6 and differences.max() < 1e-3
