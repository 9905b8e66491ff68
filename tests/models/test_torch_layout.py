"""Parameters and statistics in and out of PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.models import build_network, layers, torch_layout
from edf_jax.runtime.errors import UserError


def _network(name="ConvNet", *, num_classes=3, side=8, **settings):
    if name.startswith("ConvNet"):
        settings = {"width": 4, "depth": 2} | settings
    return build_network(name, num_classes=num_classes, image_shape=(side, side, 3), **settings)


def _state(network, seed=0):
    """A state dict of random numbers, variances positive."""
    generator = np.random.default_rng(seed)
    return {
        name: np.abs(generator.normal(1, 0.3, shape)).astype(np.float32)
        for name, shape in torch_layout.torch_shapes(network).items()
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ConvNet", {}),
        ("ConvNetLN", {}),
        ("ConvNetBN", {}),
        ("ResNet18BN", {"width": 2, "side": 16}),
        ("ResNet50", {"width": 2, "side": 16}),
        ("MLP", {"width": 4}),
        ("ViT", {"width": 8, "depth": 1}),
    ],
)
def test_round_trips_are_bit_identical(name, settings):
    network = _network(name, **settings)
    state = _state(network)
    theta, batch_stats = torch_layout.from_state_dict(network, state)
    assert theta.shape == (network.num_params,) and theta.dtype == jnp.float32
    back = torch_layout.to_state_dict(network, theta, batch_stats)
    assert list(back) == list(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)

    tensors = torch_layout.to_torch(network, theta)
    np.testing.assert_array_equal(torch_layout.from_torch(network, tensors), theta)
    flat = torch_layout.to_torch_flat(network, theta)
    np.testing.assert_array_equal(flat, np.concatenate([t.ravel() for t in tensors]))
    np.testing.assert_array_equal(torch_layout.from_torch_flat(network, flat), theta)
    stats = torch_layout.stats_to_torch(network, batch_stats)
    again = torch_layout.stats_from_torch(network, stats)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, batch_stats))


def test_layouts_are_transposed_not_reshaped():
    network = _network("ConvNetLN")
    state = _state(network)
    theta, _ = torch_layout.from_state_dict(network, state)
    params = network.unravel(theta)
    np.testing.assert_array_equal(
        params["body"]["features.0"]["kernel"], state["features.0.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        params["body"]["features.1"]["scale"], state["features.1.weight"].transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(
        params["head"]["classifier"]["kernel"], state["classifier.weight"].T
    )


def test_float64_survives_and_half_precision_is_widened():
    network = _network()
    tensors = torch_layout.to_torch(network, jnp.ones(network.num_params))
    half = [tensor.astype(np.float16) for tensor in tensors]
    assert torch_layout.from_torch(network, half).dtype == jnp.float32
    with jax.enable_x64(True):
        double = [tensor.astype(np.float64) for tensor in tensors]
        assert torch_layout.from_torch(network, double).dtype == jnp.float64


def _renamed(state, old, new):
    return {name.replace(old, new): tensor for name, tensor in state.items()}


def test_data_parallel_and_torchvision_names_are_understood():
    network = _network("ResNet18BNImageNet", side=32, width=2)
    state = _state(network)
    theta, batch_stats = torch_layout.from_state_dict(network, state)
    torchvision = _renamed(_renamed(state, "shortcut", "downsample"), "classifier", "fc")
    torchvision["bn1.num_batches_tracked"] = np.array(7)
    parallel = {"module." + name: tensor for name, tensor in state.items()}
    for other in (torchvision, parallel):
        found, found_stats = torch_layout.from_state_dict(network, other)
        np.testing.assert_array_equal(found, theta)
        assert jax.tree.all(jax.tree.map(np.array_equal, found_stats, batch_stats))


def _without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: _without(s, "features.0.bias"), "lacks features.0.bias;"),
        (lambda s: _without(s, *list(s)[:5]), "lacks features.0.weight, .* and 2 more"),
        (lambda s: s | {"features.9.bias": np.zeros(4)}, "does not: features.9.bias"),
        (lambda s: s | {"features.0.weight": np.zeros((8, 3, 3, 3))}, r"\(8, 3, 3, 3\) in it and"),
        (lambda s: s | {"classifier.weight": np.zeros((3, 99))}, "classifier.weight has shape"),
        (
            lambda s: (
                s | {"classifier.weight": np.zeros((1000, 16)), "classifier.bias": np.zeros(1000)}
            ),
            "has 1000 classes, the network 3",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(change, message):
    network = _network()
    with pytest.raises(UserError, match=message) as error:
        torch_layout.from_state_dict(network, change(_state(network)), source="weights.pt")
    assert str(error.value).startswith("weights.pt") and "\n" not in str(error.value)


def test_vectors_and_lists_of_another_network_are_refused():
    network = _network()
    with pytest.raises(UserError, match="parameters"):
        torch_layout.from_torch_flat(network, np.zeros(network.num_params + 1))
    tensors = torch_layout.to_torch(network, jnp.zeros(network.num_params))
    with pytest.raises(UserError, match="tensors"):
        torch_layout.from_torch(network, tensors[1:])
    with pytest.raises(UserError, match="shape"):
        torch_layout.from_torch(network, [*tensors[:-1], np.zeros(4)])


def test_batch_norm_moves_its_statistics_as_pytorch_does():
    torch = pytest.importorskip("torch")
    images = jax.random.normal(jax.random.key(0), (5, 3, 4, 2))
    ours = layers.BatchNorm()
    variables = ours.init(jax.random.key(0), images, True)
    update = jax.jit(lambda variables, x: ours.apply(variables, x, True, mutable=["batch_stats"]))
    theirs = torch.nn.BatchNorm2d(2)
    for step in range(2):
        batch = images * (1 + step) + step
        out, updated = update(variables, batch)
        variables = variables | updated
        expected = theirs(torch.tensor(np.asarray(batch).transpose(0, 3, 1, 2)))
        expected = expected.detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], theirs.running_var.numpy(), rtol=1e-5)


def _torchvision_logits(torch, state, images, blocks, convolutions):
    """A torchvision ResNet's logits in evaluation mode, from its state dict."""
    functional = torch.nn.functional
    state = {name: torch.tensor(tensor) for name, tensor in state.items()}

    def conv_norm(x, conv, norm, stride=1):
        kernel = state[f"{conv}.weight"]
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        statistics = (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
        return functional.batch_norm(x, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"])

    x = conv_norm(torch.tensor(images), "conv1", "bn1", 2).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            out = x
            for index in range(1, convolutions + 1):
                step = stride if index == convolutions - 1 else 1
                out = conv_norm(out, f"{name}.conv{index}", f"{name}.bn{index}", step)
                out = out.relu() if index < convolutions else out
            if f"{name}.downsample.0.weight" in state:
                x = conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (out + x).relu()
    return functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"]).numpy()


@pytest.mark.parametrize(
    ("name", "blocks", "convolutions"),
    [("ResNet18BNImageNet", (2, 2, 2, 2), 2), ("ResNet50BNImageNet", (3, 4, 6, 3), 3)],
)
def test_torchvision_state_dicts_give_torchvisions_logits(name, blocks, convolutions):
    torch = pytest.importorskip("torch")
    network = _network(name, side=64, width=4)
    generator = np.random.default_rng(0)
    state = _state(network)
    for key, tensor in state.items():
        if tensor.ndim > 1:
            deviation = np.sqrt(2 / np.prod(tensor.shape[1:]))
            state[key] = generator.normal(0, deviation, tensor.shape).astype(np.float32)
    torchvision = _renamed(_renamed(state, "shortcut", "downsample"), "classifier", "fc")
    images = generator.standard_normal((2, 3, 64, 64)).astype(np.float32)
    expected = _torchvision_logits(torch, torchvision, images, blocks, convolutions)

    theta, batch_stats = torch_layout.from_state_dict(network, torchvision)
    logits = jax.jit(network.apply)(theta, images.transpose(0, 2, 3, 1), batch_stats)
    assert np.linalg.norm(logits - expected) < 1e-4 * np.linalg.norm(expected)
