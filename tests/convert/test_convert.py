"""Files of the official PyTorch codes, in their own layout, in and out."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from edf_jax import distilled_set
from edf_jax.convert import __main__
from edf_jax.convert import experts as official_experts
from edf_jax.data.normalisation import CIFAR, IMAGENET, Normalisation
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.find import check_imported
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models import build_network, torch_files, torch_layout
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

torch = pytest.importorskip("torch")

# A ConvNet of depth 1 and width 4 on 8x6 images, and how the command names it.
CLASSES, SHAPE = 3, (8, 6, 3)
NETWORK = build_network("ConvNetD1", num_classes=CLASSES, image_shape=SHAPE, width=4)
NETWORK_FLAGS = ("--network=ConvNetD1", "--width=4", "--size=8x6", f"--classes={CLASSES}")
TORCH_SHAPES = [(4, 3, 3, 3), (4,), (4,), (4,), (3, 48), (3,)]


def _trajectory(generator, snapshots=3, shapes=TORCH_SHAPES):
    """An expert as the official script has it: a list of snapshots, each a list of tensors."""
    return [
        [torch.tensor(generator.standard_normal(shape), dtype=torch.float32) for shape in shapes]
        for _ in range(snapshots)
    ]


def _buffer(path, count=2, seed=0, **options):
    generator = np.random.default_rng(seed)
    experts = [_trajectory(generator, **options) for _ in range(count)]
    torch.save(experts, path)
    return experts


def _convert(capsys, *arguments) -> tuple[int, str, str]:
    status = __main__.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, "".join(line for line in err.splitlines(True) if "edf_jax" in line)


def _refused(capsys, *arguments) -> str:
    """The one line that a command ends in; it leaves nothing where it would have written."""
    (to,) = [argument.partition("=")[2] for argument in map(str, arguments) if "--to=" in argument]
    before = sorted(os.listdir(os.path.dirname(to)))
    status, out, line = _convert(capsys, *arguments)
    assert status == 2 and out == ""
    assert line.startswith("edf_jax.convert: ") and line.count("\n") == 1
    assert sorted(os.listdir(os.path.dirname(to))) == before
    return line


def test_official_experts_become_a_store(tmp_path, capsys):
    first = _buffer(tmp_path / "replay_buffer_0.pt", count=2, seed=0)
    second = _buffer(tmp_path / "replay_buffer_1.pt", count=1, seed=1)
    to = tmp_path / "experts"
    status, out, _ = _convert(capsys, "import-experts", tmp_path, f"--to={to}", *NETWORK_FLAGS)
    assert status == 0 and "3 experts of 2 epochs" in out
    store = TrajectoryStore(to)
    info = store.info()
    assert info["num_experts"] == 3
    assert info["settings"]["imported"] is True
    assert info["settings"]["num_params"] == NETWORK.num_params
    assert info["settings"]["experts.epochs"] == 2
    for expert, snapshots in enumerate(first + second):
        for epoch, tensors in enumerate(snapshots):
            theta = store.snapshot(expert, epoch)
            assert theta.dtype == np.float32
            for ours, theirs in zip(torch_layout.to_torch(NETWORK, theta), tensors, strict=True):
                np.testing.assert_array_equal(ours, theirs.numpy(), strict=True)
    check_imported(store, NETWORK, 3, {0, 1, 2})
    pair = store.pair(2, 0, 2)
    np.testing.assert_array_equal(pair.target, store.snapshot(2, 2))


def test_experts_go_to_official_files_and_back_bit_for_bit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(official_experts, "_GROUP", 2)
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, (3, 4, NETWORK.num_params), np.uint32)
    thetas = np.where(np.isfinite(bits.view(np.float32)), bits.view(np.float32), -0.0)
    store = TrajectoryStore(tmp_path / "ours")
    store.create(
        {"settings": {"num_params": NETWORK.num_params}, "num_experts": 3, "group_size": 2}
    )
    for group, members in enumerate((thetas[:2], thetas[2:])):
        for epoch in range(4):
            store.write(group, epoch, members[:, epoch], {}, {})
    there, back = tmp_path / "official", tmp_path / "back"
    command = "export-experts", tmp_path / "ours", f"--to={there}", *NETWORK_FLAGS
    status, out, _ = _convert(capsys, *command)
    assert status == 0 and "replay_buffer_0.pt to replay_buffer_1.pt" in out
    official = torch.load(there / "replay_buffer_0.pt", weights_only=True)
    assert [len(official), len(official[0]), len(official[0][0])] == [2, 4, 6]
    assert [tuple(tensor.shape) for tensor in official[1][3]] == TORCH_SHAPES

    assert _convert(capsys, "import-experts", there, f"--to={back}", *NETWORK_FLAGS)[0] == 0
    again = TrajectoryStore(back)
    for expert in range(3):
        for epoch in range(4):
            assert again.snapshot(expert, epoch).tobytes() == thetas[expert, epoch].tobytes()
    # An imported store says which network it is of.
    status, _, line = _convert(capsys, "export-experts", back, f"--to={tmp_path / 'twice'}")
    assert status == 0, line
    assert len(list((tmp_path / "twice").iterdir())) == 2


def _aliased(path):
    torch.save([_trajectory(np.random.default_rng(0), snapshots=1) * 3], path)


def _truncated(path, **options):
    _buffer(path, **options)
    path.write_bytes(path.read_bytes()[:-50])


def _truncated_legacy(path):
    generator = np.random.default_rng(0)
    torch.save([_trajectory(generator)], path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-50])


def _uneven(path):
    generator = np.random.default_rng(0)
    torch.save([_trajectory(generator), _trajectory(generator, snapshots=4)], path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_truncated, "is damaged, truncated or no file of PyTorch's"),
        (_truncated_legacy, "is damaged, truncated or no file of PyTorch's"),
        (lambda path: path.write_text("hello"), "is damaged, truncated or no file of PyTorch's"),
        (lambda path: path.write_bytes(b""), "is damaged, truncated or no file of PyTorch's"),
        (lambda path: None, "there is no file"),
        (lambda path: torch.save(torch.ones(3), path), "isn't a list of experts"),
        (lambda path: torch.save([torch.ones(3, 4)], path), "isn't a list of experts"),
        (lambda path: torch.save([], path), "isn't a list of experts"),
        (lambda path: torch.save([[[1.0] * 6] * 2], path), "is a float, not a tensor"),
        (
            lambda path: _buffer(path, shapes=[*TORCH_SHAPES[:4], (5, 48), (5,)]),
            "has 5 classes, not 3",
        ),
        (
            lambda path: _buffer(path, shapes=[*TORCH_SHAPES[:4], (3, 64), (3,)]),
            "of another network",
        ),
        (lambda path: _buffer(path, shapes=TORCH_SHAPES[:5]), "of another network: 5 parameter"),
        (lambda path: _buffer(path, snapshots=1), "has 1 snapshot"),
        (_uneven, "expert 1, has 4 snapshots, the first expert 3"),
        (_aliased, "ends where it starts"),
    ],
)
def test_unusable_experts_are_refused_in_one_line(tmp_path, capsys, make, message):
    path = tmp_path / "replay_buffer_0.pt"
    make(path)
    line = _refused(capsys, "import-experts", path, f"--to={tmp_path / 'to'}", *NETWORK_FLAGS)
    assert message in line and "replay_buffer_0.pt" in line


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, capsys, legacy):
    marker, path = tmp_path / "marker", tmp_path / "replay_buffer_0.pt"
    hostile = type("Hostile", (), {"__reduce__": lambda self: (os.mkdir, (str(marker),))})()
    torch.save([hostile], path, _use_new_zipfile_serialization=not legacy)
    line = _refused(capsys, "import-experts", path, f"--to={tmp_path / 'to'}", *NETWORK_FLAGS)
    assert "holds more than tensors (posix.mkdir)" in line
    assert not marker.exists()


def test_a_missing_file_between_others_is_named(tmp_path, capsys):
    for number in (0, 2):
        _buffer(tmp_path / f"replay_buffer_{number}.pt")
    to = tmp_path / "to"
    assert "lacks replay_buffer_1.pt" in _refused(
        capsys, "import-experts", tmp_path, f"--to={to}", *NETWORK_FLAGS
    )


def test_a_store_is_not_overwritten_nor_exported_in_part(tmp_path, capsys):
    _buffer(tmp_path / "replay_buffer_0.pt", count=1)
    to = tmp_path / "to"
    command = "import-experts", tmp_path, f"--to={to}", *NETWORK_FLAGS
    assert _convert(capsys, *command)[0] == 0
    assert "is there already" in _refused(capsys, *command)
    out = f"--to={tmp_path / 'out'}"
    assert "has 5 classes" not in (line := _refused(capsys, "export-experts", to, out, "--width=5"))
    assert f"have {NETWORK.num_params} parameters" in line
    storage.remove(TrajectoryStore(to).path(0, 1))
    assert "lacks epoch 1 of group 0" in _refused(capsys, "export-experts", to, out)
    assert "can't be read" in _refused(capsys, "export-experts", tmp_path, out, *NETWORK_FLAGS)


def test_an_unfinished_import_leaves_nothing(tmp_path, monkeypatch):
    _buffer(tmp_path / "replay_buffer_0.pt")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrajectoryStore, "create", fail)
    settings = {"model.name": "ConvNetD1", "model.width": 4, "num_classes": 3, "image_shape": SHAPE}
    with pytest.raises(KeyboardInterrupt):
        official_experts.import_experts(
            [tmp_path / "replay_buffer_0.pt"], tmp_path / "to", settings
        )
    assert os.listdir(tmp_path) == ["replay_buffer_0.pt"]


def _set(normalisation=IMAGENET, config=None):
    generator = np.random.default_rng(0)
    images = generator.standard_normal((6, *SHAPE)).astype(np.float32)
    labels = generator.standard_normal((6, CLASSES)).astype(np.float32)
    names = ("tench", "a b", "Käfer")
    return DistilledSet(
        images, labels, float(np.float32(0.0123)), names, normalisation, 7, config=config or {}
    )


def _assert_same(ours: DistilledSet, other: DistilledSet) -> None:
    assert ours.images.tobytes() == other.images.tobytes()
    assert ours.labels.tobytes() == other.labels.tobytes()
    assert ours.images.shape == other.images.shape and ours.alpha == other.alpha
    assert ours.class_names == other.class_names
    assert ours.normalisation == other.normalisation


def test_a_distilled_set_goes_to_official_files_and_back_bit_for_bit(tmp_path, capsys):
    distilled = _set(config={"distill.ipc": 2})
    distilled.save(tmp_path / "set.safetensors")
    there, back = tmp_path / "official", tmp_path / "back.safetensors"
    command = "export-set", tmp_path / "set.safetensors", f"--to={there}"
    assert _convert(capsys, *command)[0] == 0
    images, labels, rate = (
        torch.load(there / f"{name}_best.pt", weights_only=True)
        for name in ("images", "labels", "lr")
    )
    np.testing.assert_array_equal(images.numpy().transpose(0, 2, 3, 1), distilled.images)
    assert tuple(labels.shape) == (6, CLASSES) and rate.ndim == 0
    status, out, line = _convert(capsys, "import-set", there, f"--to={back}")
    assert status == 0 and "6 images of 3 classes" in out, line
    again = distilled_set.load(back)
    _assert_same(again, distilled)
    assert again.step == 7 and again.config == {"distill.ipc": 2}


def _triple(folder, images=(20, 3, 4, 5), labels=None, rate=0.02):
    """The three files as the official code saves them; some values to be changed."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(1)
    values = {
        "images": torch.tensor(generator.standard_normal(images), dtype=torch.float32),
        "labels": torch.randn(20, 10) if labels is None else labels,
        "lr": torch.tensor(rate),
    }
    for name, value in values.items():
        torch.save(value, folder / f"{name}_best.pt")
    return values


def test_an_official_set_is_read(tmp_path, capsys):
    values, to = _triple(tmp_path / "logged"), tmp_path / "set.safetensors"
    command = "import-set", tmp_path / "logged", f"--to={to}", "--dataset=CIFAR-10"
    assert _convert(capsys, *command)[0] == 0
    distilled = distilled_set.load(to)
    np.testing.assert_array_equal(
        distilled.images, values["images"].numpy().transpose(0, 2, 3, 1), strict=True
    )
    np.testing.assert_array_equal(distilled.labels, values["labels"].numpy(), strict=True)
    assert distilled.alpha == float(values["lr"])
    assert distilled.class_names[:2] == ("airplane", "automobile")
    assert distilled.normalisation == CIFAR
    assert "is there already" in _refused(capsys, *command)


def test_hard_labels_become_logits(tmp_path, capsys):
    classes, to = torch.arange(20) % 10, tmp_path / "set.safetensors"
    _triple(tmp_path / "logged", labels=classes)
    command = "import-set", tmp_path / "logged", f"--to={to}", "--dataset=imagenette"
    assert _convert(capsys, *command)[0] == 0
    distilled = distilled_set.load(to)
    np.testing.assert_array_equal(distilled.classes, classes.numpy())
    assert distilled.normalisation == IMAGENET and "tench" in distilled.class_names[0]


def test_another_set_says_what_an_official_one_was_whitened_with(tmp_path, capsys):
    real = np.random.default_rng(0).integers(0, 256, (60, 4, 5, 3)).astype(np.uint8)
    cache = str(tmp_path / "cache")
    whitened = Normalisation.fit_zca(real, cache)
    like = DistilledSet(
        np.asarray(whitened.apply(real[:10])),
        np.eye(10, dtype=np.float32),
        0.01,
        tuple("abcdefghij"),
        whitened,
        3,
        config={"data.cache_dir": cache, "distill.ipc": 1},
    )
    like.save(tmp_path / "like.safetensors")
    _triple(tmp_path / "logged")
    to = tmp_path / "set.safetensors"
    command = "import-set", tmp_path / "logged", f"--to={to}", f"--like={tmp_path}/like.safetensors"
    assert _convert(capsys, *command)[0] == 0
    distilled = distilled_set.load(to)
    assert distilled.normalisation == whitened and distilled.class_names == like.class_names
    assert distilled.step == 0 and distilled.config == {"data.cache_dir": cache}
    assert distilled.pixels.shape == (20, 4, 5, 3)


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, (), "give --dataset, or --like"),
        ({}, ("--dataset=imagenets",), "--dataset=imagenets is unknown"),
        ({}, ("--dataset=cifar100",), "labels_best.pt has 10 classes, the data 100"),
        ({}, ("--dataset=mnist",), "images_best.pt has 3 channels"),
        ({"images": (20, 4, 5, 3)}, ("--dataset=cifar10",), "has 4 channels (shape (20, 4, 5, 3))"),
        ({"images": (20, 60)}, ("--dataset=cifar10",), "has shape (20, 60), not [n, C, H, W]"),
        ({"images": (19, 3, 4, 5)}, ("--dataset=cifar10",), "has shape (20, 10) for 19 images"),
        ({"labels": torch.full((20,), 10)}, ("--dataset=cifar10",), "does not fit its 10 classes"),
        ({"labels": torch.ones(20)}, ("--dataset=cifar10",), "float32 [20]; expected are integers"),
        ({"labels": torch.ones(1, 1).expand(20, 10)}, ("--dataset=cifar10",), "repeats a smaller"),
        ({"labels": {"a": 1}}, ("--dataset=cifar10",), "is a dict, not a tensor"),
        ({"rate": float("nan")}, ("--dataset=cifar10",), "has the rate nan: no learning rate"),
        ({"rate": -0.1}, ("--dataset=cifar10",), "no learning rate"),
        ({"rate": [0.1, 0.2]}, ("--dataset=cifar10",), "lr_best.pt has shape (2,), not one number"),
    ],
)
def test_unusable_sets_are_refused_in_one_line(tmp_path, capsys, changes, flags, message):
    _triple(tmp_path / "logged", **changes)
    to = f"--to={tmp_path / 'set.safetensors'}"
    assert message in _refused(capsys, "import-set", tmp_path / "logged", to, *flags)


def test_missing_and_truncated_files_of_a_set_are_named(tmp_path, capsys):
    _triple(tmp_path / "logged")
    to, flag = f"--to={tmp_path / 'set.safetensors'}", "--dataset=cifar10"
    path = tmp_path / "logged" / "labels_best.pt"
    path.write_bytes(path.read_bytes()[:200])
    line = _refused(capsys, "import-set", tmp_path / "logged", to, flag)
    assert "labels_best.pt is damaged, truncated" in line
    path.unlink()
    assert "no file" in _refused(capsys, "import-set", tmp_path / "logged", to, flag)
    (tmp_path / "logged" / "distilled_set.json").write_text('{"mean": 3}')
    assert "distilled_set.json is damaged" in _refused(
        capsys, "import-set", tmp_path / "logged", to
    )
    assert "is no folder with images_best.pt" in _refused(capsys, "import-set", path, to)


def test_a_missing_pytorch_is_named_with_its_remedy(tmp_path, capsys, monkeypatch):
    _buffer(tmp_path / "replay_buffer_0.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    line = _refused(capsys, "import-experts", tmp_path, f"--to={tmp_path / 'to'}", *NETWORK_FLAGS)
    assert "pip install -e .[interop]" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "arguments are required: COMMAND"),
        (("import-everything",), "invalid choice"),
        (("import-experts", "x", "--to=y"), "--network, --classes, --size"),
        (("import-experts", "x", "--to=y", *NETWORK_FLAGS, "--size=0x3"), "is no size"),
        (("import-experts", "x", "--to=y", *NETWORK_FLAGS, "--network=Conv"), "unknown network"),
        (("import-set", "x", "--to=y"), "ends in .safetensors"),
        (("import-weights", "x", "--to=y"), "ends in .safetensors"),
    ],
)
def test_wrong_commands_end_in_one_line(capsys, arguments, message):
    status, out, line = _convert(capsys, *arguments)
    assert status == 2 and out == "" and message in line and line.count("\n") == 1


def test_the_command_runs_and_explains_itself(tmp_path):
    command = [sys.executable, "-m", "edf_jax.convert"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and "import-experts" in helped.stdout
    refused = subprocess.run(
        [*command, "import-set", str(tmp_path), "--to=x.safetensors", "--dataset=cifar10"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 and "images_best.pt" in refused.stderr


def test_failed_writes_are_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="can't be written"):
        with torch_files.appearing(tmp_path / "to") as temporary:
            torch_files.write(temporary / "in" / "no.pt", [np.ones(3)])
    assert os.listdir(tmp_path) == []
