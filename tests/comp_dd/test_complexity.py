"""Complexity by class activation maps, and subsets made by it."""

from __future__ import annotations

import csv
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from edf_jax.comp_dd import complexity, selection
from edf_jax.comp_dd.images import open_images
from edf_jax.comp_dd.judges import choose_judge
from edf_jax.config.resolve import default_config, resolve
from edf_jax.data import load_dataset
from edf_jax.data.subsets import imagenet_classes
from edf_jax.methods import gradcam
from edf_jax.models import build_network, torch_layout
from edf_jax.models.pretrained import CAM_NETWORK
from edf_jax.runtime.errors import UserError
from edf_jax.training.trained import TrainedNetwork
from tests.data_layouts import data_config, photograph, write_folder
from tests.tiny import dataset

_FLAGS = (
    "--config.data.resolution=16",
    "--config.model.width=4",
    "--config.teacher.epochs=1",
    "--config.distill.ipc=1",
)


def _judge(seed: int = 0) -> TrainedNetwork:
    network = build_network("ConvNet", num_classes=3, image_shape=(8, 8, 3), width=4, depth=1)
    theta, batch_stats = network.init(jax.random.key(seed))
    return TrainedNetwork(network, theta, batch_stats, "a network of random weights")


def test_complexity_is_the_share_of_the_map_below_a_half():
    maps = np.array([[[1.0, 0.5, 0.49], [0.0, 0.2, 0.6]], np.zeros((2, 3)), np.ones((2, 3))])
    np.testing.assert_allclose(complexity.complexity(maps), [1 - 3 / 6, 1.0, 0.0])


@pytest.mark.parametrize("method", ["grad_cam", "smooth_grad_cam_pp"])
def test_an_image_is_measured_by_its_own_map_for_the_networks_top_class(method):
    judge, key = _judge(), jax.random.key(5)
    prepare = dataset().info.normalisation.apply
    pixels = dataset().train.images[:3]
    positions = np.array([7, 2, 11])
    actual = complexity.make_measure(judge, prepare, method)(pixels, positions, key)
    network, theta = judge.network, judge.theta
    inputs = prepare(pixels)
    top = np.argmax(network.apply(theta, inputs), axis=1)
    for i, position in enumerate(positions):
        one = (inputs[i : i + 1], top[i : i + 1])
        arguments = (
            lambda x: network.features(theta, x),
            lambda maps: network.classify(theta, maps),
            *one,
        )
        if method == "grad_cam":
            found = gradcam.grad_cam(*arguments)
        else:
            draws = jax.random.normal(jax.random.fold_in(key, position), (4, 1, 8, 8, 3))
            found = gradcam.smooth_grad_cam_pp(*arguments, 0.3 * draws)
        assert found.shape == (1, 4, 4)
        assert actual[i] == pytest.approx(1 - np.mean(np.asarray(found) >= 0.5))
    alone = complexity.make_measure(judge, prepare, method)(pixels[1:2], positions[1:2], key)
    assert alone[0] == pytest.approx(float(actual[1]))


def test_subsets_are_the_least_and_the_most_complex_classes():
    means = [0.4, 0.9, 0.1, 0.6, 0.2, 0.8, 0.3]
    assert selection.select(means, 2) == {"easy": [2, 4], "hard": [1, 5]}
    with pytest.raises(UserError, match="--select=4 needs 8 classes .* there are 7"):
        selection.select(means, 4)


def _run(capsys, *flags):
    status = complexity.main(["complexity", *flags])
    output = capsys.readouterr()
    assert status == 0, output.err
    return json.loads(output.out.splitlines()[-1].removeprefix("RESULT "))


def test_digits_that_are_small_on_busy_ground_beside_large_ones(tmp_path, capsys):
    found = {}
    for name, difficulty in (("easy", 0.0), ("hard", 1.0)):
        found[name] = _run(
            capsys,
            "--config=configs/cluttered_digits.py:demo",
            f"--config.data.difficulty={difficulty}",
            f"--config.data.cache_dir={tmp_path / 'cache'}",
            f"--workdir={tmp_path / name}",
            "--per_class=4",
            "--select=3",
            *_FLAGS,
        )
        assert found[name]["images"] == 40
    easy, hard = (found[name]["complexity"] for name in ("easy", "hard"))
    with capsys.disabled():
        print(f"\ncomplexity of digits: easy {easy}, hard {hard}, difference {hard - easy:+.4f}")
    folder = tmp_path / "hard" / "complexity"
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    by_class = {row["class"]: float(row["complexity"]) for row in rows}
    order = sorted(by_class, key=by_class.__getitem__)
    assert set(found["hard"]["easy"]) <= {c for c in order if by_class[c] <= by_class[order[2]]}
    assert set(found["hard"]["hard"]) <= {c for c in order if by_class[c] >= by_class[order[-3]]}
    images = list(csv.DictReader((folder / "images.csv").open()))
    assert len(images) == 40
    own = [float(row["complexity"]) for row in images if row["class"] == "three"]
    assert by_class["three"] == pytest.approx(np.mean(own), abs=1e-5)
    assert (folder / "complexity.png").read_bytes().startswith(b"\x89PNG")
    # The digits are no files: the subset is a folder of them, as large as they were.
    made = load_dataset(data_config(path=folder / "hard", cache_dir=str(tmp_path / "cache")))
    assert set(made.info.class_names) == set(found["hard"]["hard"])
    assert made.train.images.shape[1:] == (16, 16, 3)


def test_imagenets_classes_become_lists_that_a_config_takes(tmp_path, capsys):
    wnids = [imagenet_classes()[i].wnid for i in (3, 30, 300, 99)]
    write_folder(tmp_path / "in", wnids, train=3, test=1)
    (tmp_path / "in" / "train" / wnids[0] / "bad.jpg").write_bytes(b"no image")
    result = _run(
        capsys,
        "--config=configs/folder.py:laptop",
        f"--config.data.path={tmp_path / 'in'}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.cam.network=trained",
        "--config.cam.method=grad_cam",
        f"--workdir={tmp_path / 'run'}",
        "--select=1",
        *_FLAGS,
    )
    assert result["maps"].startswith("grad_cam of ConvNet trained")
    folder = tmp_path / "run" / "complexity"
    subset = load_dataset(
        data_config(
            path=tmp_path / "in",
            class_list=str(folder / "hard.txt"),
            cache_dir=str(tmp_path / "cache"),
        )
    )
    assert list(subset.info.class_names) == result["hard"]
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert sum(int(row["images"]) for row in rows) == 12
    images = list(csv.DictReader((folder / "images.csv").open()))
    assert [row["complexity"] for row in images if row["image"].endswith("bad.jpg")] == ["nan"]


def test_images_in_files_become_a_folder_of_links(tmp_path):
    write_folder(tmp_path / "in", ["a b", "c", "d"], train=2, test=1)
    collection = open_images(data_config(path=tmp_path / "in"), 0)
    flags = selection.write_subset(tmp_path, "easy", [2, 0], [0.0] * 3, collection)
    assert flags == f"--config.data.source=folder --config.data.path={tmp_path / 'easy'}"
    links = sorted((tmp_path / "easy" / "train" / "a b").iterdir())
    assert len(links) == 2 and all(link.is_symlink() for link in links)
    made = load_dataset(data_config(path=tmp_path / "easy", cache_dir=str(tmp_path / "cache")))
    assert made.info.class_names == ("a b", "d")
    assert (len(made.train), len(made.test)) == (4, 2)


def test_an_imagenet_network_sees_224_pixels_and_maps_7(tmp_path):
    network = build_network(CAM_NETWORK, num_classes=1000, image_shape=(224, 224, 3))
    state = torch_layout.to_state_dict(network, *jax.jit(network.init)(jax.random.key(0)))
    weights = tmp_path / "resnet18.safetensors"
    save_file({name: np.asarray(tensor, order="C") for name, tensor in state.items()}, weights)
    values = {"data.source": "folder", "data.path": str(tmp_path), "cam.weights": str(weights)}
    judge, _, resolution = choose_judge(resolve(default_config(**values)), tmp_path)
    like = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    features = jax.eval_shape(
        lambda x: judge.network.features(judge.theta, x, judge.batch_stats), like
    )
    assert features.shape == (1, 7, 7, 512)
    np.savez(
        tmp_path / "grey.npz",
        x_train=photograph(0, 28, 28)[None, :, :, 0].repeat(4, 0),
        y_train=np.arange(4) % 2,
        x_test=photograph(1, 28, 28)[None, :, :, 0].repeat(2, 0),
        y_test=np.arange(2),
    )
    grey = data_config(source="npz", path=tmp_path / "grey.npz")
    collection = open_images(grey, resolution, colour=judge.network.image_shape[2] == 3)
    assert collection.train.read(0).shape == (224, 224, 3)


def test_mistakes_end_in_one_line(tmp_path, capsys):
    config = "--config=configs/cluttered_digits.py:demo"
    workdir = f"--workdir={tmp_path / 'run'}"
    for flags, told in (
        ((config, "--config.cam.network=expert"), "no experts of this config"),
        ((config, "--config.cam.weights=nowhere.pth"), "no file nowhere.pth"),
        ((config, "--select=6"), "--select=6 needs 12 classes"),
        ((config, "--config.data.source=npz", "--config.data.path=x"), "data.path=x is not a file"),
        ((config, "--selec=3"), "did you mean --select"),
        ((), "give --config="),
    ):
        assert complexity.main(["complexity", workdir, *flags, *(_FLAGS if flags else ())]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "edf_jax" in line]
        assert len(lines) == 1 and told in lines[0], lines
