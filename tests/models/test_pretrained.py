"""ResNet-18 weights of torchvision's, as the network of activation maps."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from edf_jax.convert import __main__
from edf_jax.models import pretrained
from edf_jax.runtime.errors import UserError

torch = pytest.importorskip("torch")


class TorchBlock(torch.nn.Module):
    """torchvision's BasicBlock, by its names."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != width:
            projection = torch.nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(projection, torch.nn.BatchNorm2d(width))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + identity)


class TorchResNet18(torch.nn.Module):
    """torchvision's ResNet-18, by its names."""

    def __init__(self, classes):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(64)
        self.maxpool = torch.nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            blocks = (
                TorchBlock(channels, width, 1 if stage == 1 else 2),
                TorchBlock(width, width, 1),
            )
            self.add_module(f"layer{stage}", torch.nn.Sequential(*blocks))
            channels = width
        self.fc = torch.nn.Linear(512, classes)

    def features(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


@pytest.fixture(scope="module")
def resnet():
    """A ResNet-18 of random weights and running statistics."""
    torch.manual_seed(0)
    network = TorchResNet18(1000)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return network.eval()


def test_torchvision_weights_give_torchvision_logits_and_maps(tmp_path, resnet):
    source, to = tmp_path / "resnet18.pth", tmp_path / "resnet18.safetensors"
    torch.save(resnet.state_dict(), source)
    assert __main__.main(["import-weights", str(source), f"--to={to}"]) == 0
    network, theta, batch_stats = pretrained.load_cam_network(to, image_shape=(48, 64, 3))
    assert network.num_classes == 1000
    images = np.random.default_rng(0).standard_normal((2, 3, 48, 64)).astype(np.float32)
    with torch.no_grad():
        expected = resnet.features(torch.tensor(images)), resnet(torch.tensor(images))

    @jax.jit
    def run(images):
        features = network.features(theta, images, batch_stats)
        return features, network.classify(theta, features, batch_stats)

    with jax.default_matmul_precision("highest"):
        features, logits = run(images.transpose(0, 2, 3, 1))
    for ours, theirs in ((features.transpose(0, 3, 1, 2), expected[0]), (logits, expected[1])):
        error = np.linalg.norm(ours - theirs.numpy()) / np.linalg.norm(theirs.numpy())
        assert error < 1e-4

    checkpoint = {
        "epoch": 90,
        "state_dict": {f"module.{k}": v for k, v in resnet.state_dict().items()},
    }
    torch.save(checkpoint, source)
    _, again, stats = pretrained.load_cam_network(source, image_shape=(48, 64, 3))
    np.testing.assert_array_equal(again, theta)
    assert jax.tree.all(jax.tree.map(np.array_equal, stats, batch_stats))


def _weights(**changes):
    state = {"conv1.weight": torch.ones(64, 3, 7, 7), "fc.bias": torch.ones(1000)}
    return {**state, **changes}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (_weights(**{"fc.bias": torch.ones(10)}), "has 10 classes, not 1000"),
        (_weights(**{"conv1.weight": torch.ones(64, 1, 7, 7)}), "takes images of 1 channels"),
        (_weights(), "does not fit ResNet18BNImageNet: it lacks bn1.weight"),
        ([torch.ones(3)], "is no state dict"),
        ({}, "is no state dict"),
        ({"a": 3}, "a in .* is a int, not a tensor"),
    ],
)
def test_unusable_weights_are_refused(tmp_path, state, message):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=message):
        pretrained.load_cam_network(path, image_shape=(32, 32, 3))


def test_a_subset_s_own_class_count_may_be_allowed(tmp_path):
    torch.save(_weights(**{"fc.bias": torch.ones(10)}), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="it lacks"):
        pretrained.load_cam_network(
            tmp_path / "weights.pth", image_shape=(32, 32, 3), num_classes=(1000, 10)
        )


def test_truncated_weights_are_refused(tmp_path, capsys):
    from safetensors.torch import save_file

    save_file(_weights(), tmp_path / "weights.safetensors")
    torch.save(_weights(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
        to = tmp_path / "to.safetensors"
        assert __main__.main(["import-weights", str(path), f"--to={to}"]) == 2
        assert f"{name} is damaged, truncated" in capsys.readouterr().err
        assert not to.exists()


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    hostile = type("Hostile", (), {"__reduce__": lambda self: (os.mkdir, (str(marker),))})()
    torch.save({"fc.bias": hostile}, path)
    with pytest.raises(UserError, match="holds more than tensors"):
        pretrained.read_state_dict(path)
    assert not marker.exists()


def test_half_precision_is_widened(tmp_path, monkeypatch):
    tensors = {"a": torch.ones(2, dtype=torch.bfloat16) / 3, "b": torch.ones(2).half() / 3}
    torch.save(tensors, tmp_path / "weights.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    state, metadata = pretrained.read_state_dict("~/weights.pth")
    assert metadata == {}
    assert {name: array.dtype for name, array in state.items()} == dict.fromkeys("ab", np.float32)
    np.testing.assert_allclose(state["a"], 1 / 3, rtol=1e-2)
