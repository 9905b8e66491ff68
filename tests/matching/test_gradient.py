"""The matching gradient is exact, its memory constant, and its parts are what the papers say."""

from __future__ import annotations

import collections
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.config import resolve as config
from edf_jax.matching import gradient as matching
from edf_jax.matching import iteration
from edf_jax.methods import dsa
from edf_jax.methods.cpd import common_pattern_dropout, deep_layers
from edf_jax.models import build_network, convolution
from edf_jax.runtime.errors import UserError
from edf_jax.training import losses, microbatch

_IMAGES, _CLASSES, _SIDE = 7, 3, 8


def _problem(dtype=jnp.float64, steps=5, batch=3, width=4):
    """A student of two blocks, two snapshots of it, and seven images in chunks of three."""
    network = build_network(
        "ConvNet",
        num_classes=_CLASSES,
        image_shape=(_SIDE, _SIDE, 3),
        width=width,
        depth=2,
        convolution=convolution.choose_convolution("matmul"),
    )
    keys = jax.random.split(jax.random.key(1), 5)
    start = network.init(keys[0])[0].astype(dtype)
    target = start + 0.02 * jax.random.normal(keys[1], start.shape, dtype)
    images = jax.random.normal(keys[2], (_IMAGES, _SIDE, _SIDE, 3), dtype)
    labels = jax.random.normal(keys[3], (_IMAGES, _CLASSES), dtype)
    batches = matching.student_batches(keys[4], _IMAGES, batch, steps)

    def loss(theta, images, labels, mask):
        return losses.soft_cross_entropy(network.apply(theta, images, train=True), labels, mask)

    def transform(key, images):
        return dsa.dsa(key, images, crop_ratio=0.25)

    return loss, transform, start, target, images, labels, jnp.asarray(0.1, dtype), batches


def _through_the_unrolled_steps(problem, select):
    """The same gradients by reverse mode through a plain Python loop over the steps."""
    loss, transform, start, target, images, labels, alpha, batches = problem

    def matched(images, labels, alpha):
        theta = start
        for step in range(len(batches.keys)):
            indices = batches.indices[step]
            mask = None if batches.mask is None else batches.mask[step]
            seen = transform(batches.keys[step], images[indices])
            theta = theta - alpha * jax.grad(loss)(theta, seen, labels[indices], mask)
        return matching.matching_loss(theta, start, target, select)

    return jax.jit(jax.value_and_grad(matched, (0, 1, 2)))(images, labels, alpha)


def test_gradient_equals_reverse_mode_through_the_unrolled_steps():
    with jax.enable_x64(True):
        problem = _problem(steps=4)
        select = common_pattern_dropout(0.3)
        value, expected = _through_the_unrolled_steps(problem, select)
        result = jax.jit(
            lambda *arrays: matching.matching_gradient(*problem[:2], *arrays, select=select)
        )(*problem[2:])
        assert float(result.loss) == pytest.approx(float(value), rel=1e-10)
        for actual, reference in zip(result[1:4], expected):
            error = jnp.linalg.norm(actual - reference) / jnp.linalg.norm(reference)
            print(f"relative error: {float(error):.1e}")
            assert error < 1e-9


@pytest.mark.parametrize(
    "how",
    [
        {"microbatches": 2},
        {"remat": "products"},
        {"remat": "everything", "through_steps": False},
        {"remat": "everything", "microbatches": 3},
    ],
    ids=str,
)
def test_what_is_cut_or_stored_changes_no_gradient(how):
    with jax.enable_x64(True):
        problem = _problem(steps=3)
        whole = {"through_steps": how.get("through_steps", True)}
        plain = jax.jit(lambda *a: matching.matching_gradient(*problem[:2], *a, **whole))
        expected = plain(*problem[2:])
        if "microbatches" in how:
            loss, batches = problem[0], problem[7]
            weights = microbatch.weights_of(batches.mask, 3, jnp.float64)
            problem = (
                lambda *a: microbatch.share_of_mean(lambda m: loss(*a[:3], m), a[3]),
                *problem[1:7],
                batches._replace(mask=weights),
            )
        result = jax.jit(lambda *a: matching.matching_gradient(*problem[:2], *a, **how))(
            *problem[2:]
        )
        for actual, reference in zip(result, expected):
            assert jnp.linalg.norm(actual - reference) < 1e-9 * jnp.linalg.norm(reference)


def _plain_gradient(problem):
    """Without augmentation, whose draws are other numbers in another dtype."""
    return jax.jit(
        lambda *arrays: matching.matching_gradient(problem[0], lambda _, x: x, *arrays)
    )(*problem[2:])


def test_float32_gradient_is_close_to_the_float64_one():
    with jax.enable_x64(True):
        problem = _problem(steps=4)
        exact = _plain_gradient(problem)
        cast = [jnp.asarray(x, jnp.float32) for x in problem[2:7]]
        rough = _plain_gradient((*problem[:2], *cast, problem[7]))
        for actual, reference in zip(rough[1:4], exact[1:4]):
            assert actual.dtype == jnp.float32
            error = jnp.linalg.norm(actual - reference) / jnp.linalg.norm(reference)
            assert error < 1e-3


def _temporary_bytes(steps: int) -> tuple[int, int]:
    problem = _problem(jnp.float32, steps=steps, batch=_IMAGES, width=16)
    compiled = (
        jax.jit(lambda *arrays: matching.matching_gradient(*problem[:2], *arrays))
        .lower(*problem[2:])
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes, 4 * problem[2].size


def test_memory_does_not_grow_with_the_steps():
    few, vector = _temporary_bytes(5)
    many, _ = _temporary_bytes(40)
    # The parameters before each step are kept: N vectors.
    assert many - 40 * vector <= 1.1 * (few - 5 * vector)


def test_batches_are_chunks_used_last_first_and_reshuffled():
    batches = matching.student_batches(jax.random.key(0), 7, 3, 8)
    counts = [] if batches.mask is None else [int(row.sum()) for row in batches.mask]
    assert counts == [1, 3, 3, 1, 3, 3, 1, 3]
    seen = [
        [int(i) for i, used in zip(row, mask) if used]
        for row, mask in zip(batches.indices, batches.mask)
    ]
    for passes in (seen[:3], seen[3:6]):
        assert collections.Counter(sum(passes, [])) == collections.Counter(range(7))
    assert seen[:3] != seen[3:6]


def test_a_batch_larger_than_the_set_is_the_set():
    batches = matching.student_batches(jax.random.key(0), 4, 1000, 3)
    assert batches.indices.shape == (3, 4) and batches.mask is None
    assert all(sorted(row) == [0, 1, 2, 3] for row in batches.indices.tolist())


def test_common_pattern_dropout_drops_the_smallest():
    distances = jnp.asarray([4.0, 1.0, 3.0, 2.0, 5.0])
    kept = common_pattern_dropout(0.5)(distances)
    assert kept.tolist() == [True, False, True, False, True]
    assert common_pattern_dropout(0.0) is None


def test_deep_layers_leave_out_the_first_parameters():
    assert deep_layers(0.5)(jnp.zeros(5)).tolist() == [False, False, True, True, True]
    assert deep_layers(0.0) is None


def test_loss_is_one_where_the_student_did_not_move():
    start, target = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 1.0])
    assert float(matching.matching_loss(start, start, target)) == 1.0
    assert float(matching.matching_loss(target, start, target)) == 0.0


def test_selection_is_a_constant_for_differentiation():
    with jax.enable_x64(True):
        theta, start, target = (
            jnp.asarray(np.random.default_rng(0).standard_normal((3, 11))[i]) for i in range(3)
        )
        select = common_pattern_dropout(0.4)
        kept = select((theta - target) ** 2)
        gradient = jax.grad(matching.matching_loss)(theta, start, target, select)
        expected = 2 * (theta - target) * kept / jnp.sum(kept * (start - target) ** 2)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_a_student_with_batch_norm_and_a_remainder_is_refused():
    network = build_network("ConvNetBN", num_classes=3, image_shape=(8, 8, 3), width=4, depth=2)
    options = config.resolve(config.default_config(**{"distill.batch_syn": 3}))
    with pytest.raises(UserError, match="distill.batch_syn that divides the 7 synthetic images"):
        iteration.make_iteration(options, network, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros((_IMAGES,), np.int32)}, "labels has to be of floats and 2-dim"),
        ({"labels": np.zeros((_IMAGES, _CLASSES), np.int32)}, r"not int32\[7, 3\]"),
        ({"start": {"kernel": np.zeros(3)}}, "start has to be an array, not a dict"),
        ({"remat": "all"}, "one of nothing, products, everything"),
        ({"remat": "everything", "axis": "data"}, "without axis"),
    ],
)
def test_an_argument_of_another_kind_is_told(changes, message):
    names = ("loss", "augment", "start", "target", "images", "labels", "alpha", "batches")
    with pytest.raises(ValueError, match=message):
        # As users call it, without the checks of types that tests have.
        function = inspect.unwrap(matching.matching_gradient)
        function(**dict(zip(names, _problem(jnp.float32))) | changes)


def test_images_may_be_numpy_arrays():
    loss, transform, start, target, images, *rest = _problem(jnp.float32, steps=1)
    ours = matching.matching_gradient(loss, transform, start, target, images, *rest)
    numpy = matching.matching_gradient(
        loss, transform, *map(np.asarray, (start, target, images)), *rest
    )
    np.testing.assert_array_equal(ours.images, numpy.images)
