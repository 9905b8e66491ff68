"""Networks: names, initialisation, dtypes, derivatives, batch norm."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.models import build_network, layers, network_names, torch_layout
from edf_jax.runtime.errors import UserError

SHAPE = (8, 8, 3)


def _small(name="ConvNet", **settings):
    defaults = {"num_classes": 3, "image_shape": SHAPE}
    if name.startswith("ConvNet"):
        defaults |= {"width": 4, "depth": 2}
    return build_network(name, **(defaults | settings))


def _images(shape=SHAPE, count=3, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), (count, *shape), dtype)


@pytest.mark.parametrize("name", network_names())
def test_every_name_builds_and_makes_logits(name):
    network = build_network(name, num_classes=7, image_shape=(256, 256, 3))
    assert network.name == name
    theta = jax.ShapeDtypeStruct((network.num_params,), jnp.float32)
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    _, batch_stats = jax.eval_shape(network.init, jax.random.key(0))
    logits = jax.eval_shape(network.apply, theta, images, batch_stats)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("side", "depth"), [(28, 3), (32, 3), (64, 4), (96, 5), (128, 5), (224, 6), (256, 6)]
)
def test_depth_follows_the_resolution(side, depth):
    network = build_network("ConvNet", num_classes=2, image_shape=(side, side, 3), width=2)
    assert network.module.body.depth == depth


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ConvNetD4", {"depth": 4}),
        ("ConvNetW64", {"width": 64}),
        ("ConvNetAS", {"activation": "sigmoid"}),
        ("ConvNetAL", {"activation": "leakyrelu"}),
        ("ConvNetASwish", {"activation": "swish"}),
        ("ConvNetASwishBN", {"activation": "swish", "norm": "batchnorm"}),
        ("ConvNetGN", {"norm": "groupnorm"}),
        ("ConvNetNN", {"norm": "none"}),
        ("ConvNetMP", {"pooling": "maxpooling"}),
        ("convnetd4w64bn", {"depth": 4, "width": 64, "norm": "batch"}),
    ],
)
def test_a_suffix_sets_what_the_keyword_sets(name, settings):
    common = {"num_classes": 3, "image_shape": (32, 32, 3)}
    assert build_network(name, **common) == build_network("ConvNet", **common, **settings)


def test_suffixes_work_with_overrides_and_contradictions_are_refused():
    network = build_network("ConvNetD2", num_classes=3, image_shape=SHAPE, width=5)
    assert (network.module.body.depth, network.module.body.width) == (2, 5)
    with pytest.raises(UserError, match="says depth 2, its depth is set to 3"):
        build_network("ConvNetD2", num_classes=3, image_shape=SHAPE, depth=3)


def test_aliases_and_case():
    common = {"num_classes": 3, "image_shape": (32, 32, 3)}
    assert build_network("vgg11_bn", **common) == build_network("VGG11BN", **common)
    assert build_network("VGG11", norm="batch", **common) == build_network("VGG11BN", **common)
    assert build_network("resnet18bnimagenet", **common).name == "ResNet18BNImageNet"
    assert build_network("ResNet18ImageNetBN", **common) == build_network(
        "ResNet18BNImageNet", **common
    )


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ConvNett", {}, "did you mean ConvNet"),
        ("ResNet81", {}, "did you mean ResNet18"),
        ("LeNet", {"depth": 3}, "has no depth"),
        ("ConvNet", {"norm": "batchh"}, "take one of instance, batch"),
        ("ConvNet", {"width": 6, "norm": "group4"}, "groups"),
        ("ConvNet", {"width": 0}, "positive"),
        ("ConvNetD4", {}, "too small"),
        ("VGG11", {}, "too small"),
    ],
)
def test_mistakes_end_in_one_clear_line(name, settings, message):
    with pytest.raises(UserError, match=message) as error:
        build_network(name, num_classes=3, image_shape=SHAPE, **settings)
    assert "\n" not in str(error.value)


def test_equal_settings_share_a_compilation():
    traces = []

    def forward(network, theta, images):
        traces.append(network)
        return network.apply(theta, images)

    jitted = jax.jit(forward, static_argnums=0)
    first, second = _small(), _small("ConvNetD2", depth=None)
    assert first == second and hash(first) == hash(second)
    assert first != _small(width=5) and first != _small(num_classes=4)
    theta, _ = first.init(jax.random.key(0))
    jitted(first, theta, _images())
    jitted(second, theta, _images())
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["ConvNet", "ConvNetLN", "ResNet18BN"])
def test_initialisation_is_pytorchs(name):
    network = _small(name, width=8, image_shape=(16, 16, 3))
    theta, batch_stats = network.init(jax.random.key(1))
    assert theta.shape == (network.num_params,) and theta.dtype == jnp.float32
    paths = {path for path, _ in network.param_table}
    start, fan_in = 0, 0
    for path, shape in network.param_table:
        torch_name = torch_layout.torch_name(path)
        torch_shape = torch_layout.torch_shape(path, shape)
        leaf = np.asarray(theta[start : start + math.prod(shape)])
        start += math.prod(shape)
        if path[-1] == "kernel":
            fan_in = math.prod(torch_shape[1:])
        if (*path[:-1], "scale") in paths:
            assert np.all(leaf == (1 if path[-1] == "scale" else 0)), torch_name
            continue
        bound = 1 / math.sqrt(fan_in)
        assert np.all(np.abs(leaf) <= bound), torch_name
        # Uniform: deviation bound/sqrt(3), mean 0, to five standard errors.
        spread = 5 / math.sqrt(leaf.size)
        assert abs(leaf.mean()) < bound * spread, torch_name
        if leaf.size > 100:
            assert abs(leaf.std() * math.sqrt(3) / bound - 1) < spread, torch_name
            assert np.abs(leaf).max() > bound * (1 - spread), torch_name
    flat = jax.tree.leaves_with_path(batch_stats)
    assert bool(flat) == network.has_batch_stats
    assert all(np.all(leaf == (1 if "var" in str(path) else 0)) for path, leaf in flat)


def test_init_maps_over_keys():
    network = _small()
    keys = jax.random.split(jax.random.key(0), 3)
    thetas, batch_stats = jax.vmap(network.init)(keys)
    assert thetas.shape == (3, network.num_params) and batch_stats == {}
    np.testing.assert_array_equal(thetas[1], network.init(keys[1])[0])
    assert not np.array_equal(thetas[0], thetas[1])


def test_ravel_undoes_unravel():
    network = _small("ConvNetLN")
    theta = jnp.arange(network.num_params, dtype=jnp.float32)
    np.testing.assert_array_equal(network.ravel(network.unravel(theta)), theta)
    with pytest.raises(ValueError, match="parameters"):
        network.unravel(theta[1:])


@pytest.mark.parametrize(
    ("name", "side", "sizes"),
    [
        ("ConvNetD3W8", 16, [8, 4, 2]),
        ("ConvNetD2W8BN", 16, [8, 4]),
        ("ConvNetD2W8NP", 8, [8, 8]),
        ("ResNet18", 16, [16, 8, 4, 2]),
        ("ResNet18BN_AP", 16, [16, 8, 4, 2]),
        ("ResNet18BNImageNet", 64, [16, 8, 4, 2]),
        ("LeNet", 32, [5]),
    ],
)
def test_stages_in_a_row_are_the_features(name, side, sizes):
    network = build_network(name, num_classes=3, image_shape=(side, side, 3))
    images = jax.random.normal(jax.random.key(1), (2, side, side, 3))

    @jax.jit
    def both(key):
        theta, batch_stats = network.init(key)
        maps, found = images, []
        for number in range(network.num_stages):
            maps = network.stage(number, theta, maps, batch_stats)
            found.append(maps)
        return found, network.features(theta, images, batch_stats)

    found, features = both(jax.random.key(2))
    assert [maps.shape[1] for maps in found] == sizes
    np.testing.assert_allclose(found[-1], features, atol=1e-5)



@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("ConvNet", (10, 14, 1), {}),
        ("ResNet18_AP", (16, 24, 3), {"width": 4}),
        ("ViT", (16, 24, 3), {"width": 8, "depth": 2}),
        ("LeNet", (28, 36, 1), {}),
        ("MLP", (5, 7, 3), {"width": 6}),
    ],
)
def test_apply_is_classify_of_features(name, shape, settings):
    network = _small(name, image_shape=shape, **settings)
    images = _images(shape)

    @jax.jit
    def both(key):
        theta, batch_stats = network.init(key)
        features = network.features(theta, images, batch_stats)
        logits = network.apply(theta, images, batch_stats)
        return features, logits, network.classify(theta, features, batch_stats)

    features, logits, classified = both(jax.random.key(2))
    assert features.shape == (3, *network.feature_shape) and logits.shape == (3, 3)
    np.testing.assert_allclose(logits, classified, rtol=1e-5, atol=1e-6)
    assert np.ptp(np.asarray(logits), axis=0).min() > 0


def _dtypes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.dtype for variable in equation.outvars)
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _dtypes(inner)


@pytest.mark.parametrize("name", ["ConvNet", "ConvNetLN", "ConvNetBN", "ResNet18_AP", "ViT"])
def test_float64_is_float64_throughout(name):
    network = _small(name, **({"width": 4, "image_shape": (16, 16, 3)} if name[0] != "C" else {}))
    theta, _ = network.init(jax.random.key(0))
    with jax.enable_x64(True):
        images = jnp.asarray(_images(network.image_shape), jnp.float64)
        jaxpr = jax.make_jaxpr(lambda t, x: network.apply(t, x, train=True))(
            jnp.asarray(theta, jnp.float64), images
        )
    floating = {dtype for dtype in _dtypes(jaxpr.jaxpr) if jnp.issubdtype(dtype, jnp.floating)}
    assert floating == {np.dtype("float64")}


def test_bfloat16_computes_narrow_and_returns_the_parameters_dtype():
    seen = []

    def convolution(images, kernel, *args, **kwargs):
        seen.append((images.dtype, kernel.dtype))
        return jax.lax.conv_general_dilated(images, kernel, *args, **kwargs)

    narrow = _small(dtype="bfloat16", convolution=convolution)
    theta, _ = narrow.init(jax.random.key(0))
    seen.clear()
    logits = jax.jit(narrow.apply)(theta, _images())
    assert seen == [(jnp.bfloat16, jnp.bfloat16)] * 2
    assert theta.dtype == logits.dtype == jnp.float32
    exact = jax.jit(_small().apply)(theta, _images())
    np.testing.assert_allclose(logits, exact, atol=0.03)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm": "layer"},
        {"norm": "group2"},
        {"norm": "batch"},
        {"norm": "none", "activation": "swish"},
        {"pooling": "max", "activation": "leaky_relu"},
    ],
    ids=str,
)
def test_second_derivatives_agree_in_either_order(settings):
    network = _small(depth=1, **settings)
    theta, _ = network.init(jax.random.key(0))
    with jax.enable_x64(True):
        theta = jnp.asarray(theta, jnp.float64)
        images = jnp.asarray(_images(), jnp.float64)
        direction = jax.random.normal(jax.random.key(1), theta.shape, jnp.float64)

        def loss(theta):
            return jnp.sum(nn.log_softmax(network.apply(theta, images, train=True))[:, 0])

        @jax.jit
        def products(theta):
            reverse = jax.grad(lambda t: jax.jvp(loss, (t,), (direction,))[1])(theta)
            forward = jax.jvp(jax.grad(loss), (theta,), (direction,))[1]
            return reverse, forward

        reverse, forward = products(theta)
        np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-10)
        assert np.linalg.norm(reverse) > 0


@pytest.mark.parametrize("shape", [(6, 8, 2), (7, 5, 2)])
def test_pooling_is_reduce_windows(shape):
    images = _images(shape)
    np.testing.assert_allclose(
        layers.average_pool(images), nn.avg_pool(images, (2, 2), (2, 2)), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(layers.max_pool(images), nn.max_pool(images, (2, 2), (2, 2)))


def test_training_mode_uses_the_batch_and_apply_drops_the_update():
    network = _small("ConvNetBN")
    theta, batch_stats = network.init(jax.random.key(0))
    logits, moved = jax.jit(network.apply_and_update)(theta, _images(), batch_stats)
    trained = jax.jit(lambda t, x: network.apply(t, x, train=True))(theta, _images())
    np.testing.assert_allclose(logits, trained, rtol=1e-6)
    assert jax.tree.structure(moved) == jax.tree.structure(batch_stats)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), moved, batch_stats)
    assert all(jax.tree.leaves(changed))
    with pytest.raises(ValueError, match="statistics"):
        network.apply(theta, _images())


def test_networks_without_statistics_pass_them_through():
    network = _small()
    theta, batch_stats = network.init(jax.random.key(0))
    logits, moved = jax.jit(network.apply_and_update)(theta, _images(), batch_stats)
    assert batch_stats == moved == {} and not network.has_batch_stats
    np.testing.assert_allclose(logits, jax.jit(network.apply)(theta, _images()), rtol=1e-6)
