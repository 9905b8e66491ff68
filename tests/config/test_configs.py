"""Every config file: it loads, every variant resolves and has a plan, and the values are right."""

from __future__ import annotations

import pathlib
import runpy
import warnings
from typing import Any

import numpy as np
import pytest

from edf_jax import main
from edf_jax.config import files
from edf_jax.config.resolve import flatten, reckoned, resolve
from edf_jax.data import describe_dataset
from edf_jax.plan import plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


def load(name: str) -> dict[str, Any]:
    """What a config file defines."""
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))


def planned(config) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "music_hard")
        return plan.to_text(plan.make_plan(config, describe_dataset(config.data)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    """Three classes of photographs that are no squares."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    for split, count in (("train", 60), ("val", 2)):
        for name in ("bicycles", "boats", "bridges"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.roll(pixels, number)).save(folder / f"{number}.jpg")
    return root


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_of_a_file_resolves_and_has_a_plan(path, photos):
    module = load(path.stem)
    assert f"configs/{path.name}" in module["__doc__"]
    for name in module["VARIANTS"]:
        config = module["get_config"](name)
        if path.stem == "folder":
            config.data.path = str(photos)
        config = reckoned(resolve(config))
        text = planned(config)
        assert f"IPC {config.distill.ipc};" in text
        assert ("published for EDF" in text) == config.published
        if not name.startswith(("gpu_", "cpu_")):
            assert "changed in" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_default_variant_is_one_of_the_file(path):
    assert flatten(load(path.stem)["get_config"]())["distill.ipc"] >= 1


@pytest.mark.parametrize(
    ("file", "variant", "expected"),
    [
        (
            "imagenette",
            "ipc10",
            {
                "data.resolution": 128,
                "data.subset": "imagenette",
                "data.zca": False,
                "model.name": "ConvNetD5",
                "experts.num": 100,
                "experts.epochs": 100,
                "experts.batch": 256,
                "distill.syn_steps": 40,
                "distill.batch_syn": 200,
                "distill.expert_epochs": 2,
                "distill.lr_img": 1000.0,
                "distill.lr_y": 2.0,
                "distill.lr_lr": 1e-5,
                "distill.lr_teacher": 0.01,
                "distill.threshold": 1.5,
                "distill.drop": 0.25,
                "distill.iterations": 10000,
                "distill.eval_every": 500,
                "distill.min_start_epoch": 0,
                "distill.current_max_start_epoch": 10,
                "distill.max_start_epoch": 20,
                "distill.expansion_end": 1000,
                "distill.start_schedule": "sequential",
                "distill.init": "predicted_correctly",
                "cam.every": 100,
                "cam.beta": 1.0,
                "evaluate.batch": 128,
                "evaluate.epochs": 1000,
                "evaluate.num": 5,
            },
        ),
        ("imagenette", "ipc50", {"cam.every": 200, "distill.drop": 0.375, "distill.lr_y": 5.0}),
        ("imagewoof", "ipc10", {"cam.beta": 2.0, "distill.lr_lr": 1e-6}),
        ("imagesquawk", "ipc50", {"distill.lr_teacher": 0.005, "distill.drop": 0.5}),
        ("imagefruit", "ipc1", {"distill.ipc": 1, "distill.drop": 0.375, "cam.beta": 1.0}),
        ("comp_dd", "dog_hard_ipc1", {"distill.threshold": 2.5, "data.subset": "dog_hard"}),
        ("comp_dd", "music_easy_ipc50", {"distill.batch_syn": 200, "published": False}),
        (
            "cifar10",
            "ipc1",
            {
                "model.name": "ConvNetD5",
                "distill.lr_lr": 1e-7,
                "distill.start_schedule": "fixed",
                "distill.max_start_epoch": 4,
                "distill.drop": 0.0,
                "data.zca": True,
            },
        ),
        ("cifar10", "ipc1_d3", {"model.name": "ConvNetD3", "distill.lr_lr": 1e-7}),
        ("cifar10", "ipc10", {"distill.expansion_end": 1000, "cam.every": 100}),
        (
            "cifar10",
            "ipc1000",
            {"cam.threshold": 0.5, "cam.network": "expert", "model.name": "ConvNet"},
        ),
        ("cifar100", "ipc1", {"distill.expert_epochs": 3}),
        ("cifar100", "ipc50", {"distill.init": "real", "distill.drop": 0.0}),
        ("tinyimagenet", "ipc100", {"distill.batch_syn": 600, "distill.min_start_epoch": 30}),
        ("fashion_mnist", "ipc10", {"data.zca": False, "data.resolution": 28, "published": False}),
        ("mnist", "ipc1", {"augment.strategy": "color_crop_cutout_scale_rotate"}),
        ("imagenet100", "ipc10", {"published": False, "settings_of": "imagenette ipc10"}),
    ],
)
def test_a_variant_has_the_published_values(file, variant, expected):
    flat = flatten(resolve(files.load(file, variant)))
    assert {key: flat[key] for key in expected} == expected


def test_grey_images_get_three_blocks_of_128():
    config = resolve(files.load("fashion_mnist", "ipc1"))
    made = plan.make_plan(config, describe_dataset(config.data))
    body = made.network.module.body
    assert (made.network.image_shape, body.depth, body.width) == ((28, 28, 1), 3, 128)


@pytest.mark.parametrize(("side", "depth"), [(32, 3), (48, 4), (64, 4), (128, 5)])
def test_the_resolution_of_a_folder_picks_the_depth(photos, side, depth):
    config = files.load("folder", "ipc1")
    config.data.path, config.data.resolution = str(photos), side
    config = resolve(config)
    made = plan.make_plan(config, describe_dataset(config.data))
    assert made.data.num_classes == 3
    assert made.network.module.body.depth == depth


def test_another_method_takes_a_published_config():
    config = resolve(files.load("imagenette", "ipc10,method=mtt"))
    assert (config.distill.start_schedule, config.distill.init) == ("fixed", "real")


@pytest.mark.parametrize(("ipc", "share"), [(1, 0.0), (10, 0.5), (50, 0.25)])
def test_pad_leaves_out_what_it_published(ipc, share):
    config = resolve(files.load("cifar10", f"ipc{ipc}_d3,method=pad"))
    assert (config.distill.loss_mask, config.distill.depth_ratio) == ("deep_layers", share)


def test_the_command_plans_a_folder_of_photos(photos, capsys):
    flags = [f"--config={ROOT}/configs/folder.py:laptop", f"--config.data.path={photos}"]
    assert main.main(["edf_jax", *flags, "--dry_run"]) == 0
    assert "3 classes of 32x32x3" in capsys.readouterr().out


def test_a_folder_that_is_not_there_ends_in_one_line(tmp_path, capsys):
    flags = [f"--config={ROOT}/configs/folder.py:laptop", f"--config.data.path={tmp_path}/none"]
    assert main.main(["edf_jax", *flags, "--dry_run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "data.path" in said
