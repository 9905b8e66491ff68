"""Anyone's distilled images on Comp-DD, by one command."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from edf_jax.comp_dd import evaluate, find_comp_dd
from edf_jax.data.normalisation import IMAGENET
from edf_jax.data.subsets import find_subset
from edf_jax.distilled_set import DistilledSet
from edf_jax.evaluate import __main__ as evaluation
from edf_jax.evaluate import foreign
from edf_jax.evaluate.foreign import with_model
from edf_jax.methods.soft_labels import hard_labels
from tests.data_layouts import marked, write_folder

_SIDE = 8
_OWN_NETWORK = {"model.name": "ConvNet", "model.width": 4, "model.depth": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    write_folder(folder, find_comp_dd("bird", "easy").wnids, train=1, test=2)
    return folder


def _distilled(config=None) -> DistilledSet:
    """An image of each class, brighter from class to class as the test images are."""
    pixels = np.stack([marked(label, seed=label)[:_SIDE, :_SIDE] for label in range(10)])
    images = np.asarray(IMAGENET.apply(pixels), np.float32)
    names = find_comp_dd("bird", "easy").class_names
    return DistilledSet(
        images, hard_labels(np.arange(10), 10), 0.02, names, IMAGENET, 5, config=config or {}
    )


def _flags(data, tmp_path, distilled, **more):
    usual = {
        "data_path": data,
        "distilled": distilled,
        "category": "birds",
        "subset": "easy",
        "im_size": _SIDE,
        "num": 2,
        "epochs": 2,
        "batch": 8,
        "cache_dir": tmp_path / "cache",
    }
    return [f"--{name}={value}" for name, value in (usual | more).items()]


def test_a_set_of_ours_is_scored_with_its_own_network_and_rate(data, tmp_path, capsys):
    _distilled(_OWN_NETWORK).save(tmp_path / "set.safetensors")
    out = tmp_path / "figures.json"
    flags = _flags(data, tmp_path, tmp_path / "set.safetensors", out=out)
    assert evaluate.main(flags) == 0
    output = capsys.readouterr().out
    assert "trained on" in output and "Distilled" in output
    line = json.loads(output.splitlines()[-1].removeprefix("RESULT "))
    assert line["rate"] == pytest.approx(0.02) and line["rate_from"] == "learned"
    assert (line["category"], line["subset"], line["num_eval"]) == ("birds", "easy", 2)
    figures = json.loads(out.read_text())
    assert figures["distilled_mean"] == line["mean"] and figures["num_test_images"] == 20


def test_the_official_triple_is_scored_with_the_network_that_is_named(data, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    distilled = _distilled()
    folder = tmp_path / "logged"
    folder.mkdir()
    images = torch.from_numpy(np.ascontiguousarray(distilled.images.transpose(0, 3, 1, 2)))
    torch.save(images, folder / "images_best.pt")
    torch.save(torch.from_numpy(distilled.labels), folder / "labels_best.pt")
    torch.save(torch.tensor(0.03), folder / "lr_best.pt")
    assert evaluate.main(_flags(data, tmp_path, folder, model="MLP")) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("RESULT "))
    assert line["network"] == "MLP"
    assert line["rate"] == pytest.approx(0.03) and line["rate_from"] == "learned"


def _three_files(folder):
    """A set as the official code's files, under names of one's own; their flags."""
    torch = pytest.importorskip("torch")
    distilled = _distilled()
    images = np.ascontiguousarray(distilled.images.transpose(0, 3, 1, 2))
    held = {"data": torch.from_numpy(images), "label": torch.from_numpy(distilled.labels)}
    held["lr"] = torch.tensor(0.03)
    for number, (name, tensor) in enumerate(held.items()):
        (folder / str(number)).mkdir()
        torch.save(tensor, folder / str(number) / f"my_{name}.pt")
    return {f"{name}_dir": folder / str(i) / f"my_{name}.pt" for i, name in enumerate(held)}


def test_the_official_command_line_of_comp_dd(data, tmp_path, capsys, monkeypatch):
    """As EDF's README has it, with the script's name changed."""
    made = []
    measure = foreign.evaluate_run
    monkeypatch.setattr(
        foreign, "evaluate_run", lambda config, *rest: made.append(config) or measure(config, *rest)
    )
    files = _three_files(tmp_path)
    line = f"--data_path {data} --category bird --subset easy --model MLP --lr_net 1e-2 --dsa False"
    flags = [*line.split(), *(f"--{name}={path}" for name, path in files.items())]
    small = ["--im_size=8", "--num=1", "--epochs=2", "--batch=8", f"--cache_dir={tmp_path / 'c'}"]
    assert evaluate.main([*flags, *small]) == 0
    output = capsys.readouterr()
    assert "--lr_net=1e-2 isn't used" in output.err
    told = json.loads(output.out.splitlines()[-1].removeprefix("RESULT "))
    assert told["network"] == "MLP"
    assert told["rate"] == pytest.approx(0.03) and told["rate_from"] == "learned"
    assert made[0].evaluate.augment == "none" and made[0].augment.strategy != "none"


def test_the_official_evaluation_command(tmp_path, capsys):
    """`python evaluation.py --lr_dir=... --data_dir=... --label_dir=...` as `edf_jax.evaluate`."""
    write_folder(tmp_path, find_subset("imagenette").wnids, train=1, test=2)
    flags = [f"--{name}={path}" for name, path in _three_files(tmp_path).items()]
    of = [f"--data_path={tmp_path}", "--dataset=ImageNet", "--res=8", f"--cache_dir={tmp_path}/c"]
    small = ["--num=2", "--epoch_eval_train=2", "--batch_train=8", "--model=MLP"]
    assert evaluation.main([*flags, *of, *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1].removeprefix("RESULT "))
    assert (told["network"], told["num_eval"], told["labels"]) == ("MLP", 2, "own")
    assert told["rate"] == pytest.approx(0.03) and lines[-2].startswith("test accuracy of MLP, %:")
    for wrong, said in (
        ([*flags[1:], *of], "give the set once: --data_dir, --label_dir and --lr_dir"),
        ([*flags, *of, f"--data_dir={tmp_path}/none.pt"], "there is no file"),
        ([*flags, *of, "--res=16"], "set --res to fit"),
        ([*flags, *of, "--subset=nothing"], "nothing"),
        ([*flags, *of, "--lr=1"], "unrecognized arguments: --lr=1"),
    ):
        assert evaluation.main(wrong) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def _config(model, own):
    options = argparse.Namespace(
        data_path="x",
        distilled="y",
        category="bird",
        subset="hard",
        im_size=128,
        num=5,
        epochs=1000,
        batch=128,
        protocol="plain",
        labels="auto",
        baselines="",
        seed=0,
        cache_dir="",
        dsa="True",
        **dict.fromkeys(("data_dir", "label_dir", "lr_dir", "lr_net"), ""),
    )
    info = argparse.Namespace(num_classes=10, image_shape=(128, 128, 3))
    return with_model(evaluate.make_config(options), own, model, info)


def test_the_network_of_the_set_by_another_name_is_still_its_own():
    """A learned rate is for that network alone."""
    own = {"model.name": "ConvNet", "model.depth": 0, "model.width": 0}
    for model in (None, "ConvNetD5"):
        config = _config(model, own)
        assert config.model.name == "ConvNet" and config.evaluate.networks == ""
    assert _config("ConvNetD4", own).evaluate.networks == "ConvNetD4"
    assert _config("ConvNetD4", {}).model.name == "ConvNetD4"
    config = _config(None, {})
    assert (config.data.subset, config.evaluate.epochs) == ("bird_hard", 1000)


def test_mistakes_end_in_one_line_about_this_commands_flags(data, tmp_path, capsys):
    _distilled(_OWN_NETWORK).save(tmp_path / "set.safetensors")
    cases: tuple[tuple[dict, str], ...] = (
        ({"category": "cat"}, "no category 'cat'"),
        ({"subset": "medium"}, "'easy' or 'hard'"),
        ({"distilled": "nowhere"}, "--distilled=nowhere: there is nothing there"),
        ({"im_size": 16}, "set --im_size to fit"),
        ({"data_path": "nowhere"}, "--data_path=nowhere is not a folder"),
        ({"model": "ConvNot"}, "ConvNot"),
        ({"num": 0}, "--num=0"),
        ({"unknown": 1}, "unrecognized arguments: --unknown=1"),
    )
    for changes, told in cases:
        flags = _flags(data, tmp_path, **{"distilled": tmp_path / "set.safetensors", **changes})
        assert evaluate.main(flags) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len([line for line in lines if line.startswith("edf_jax.comp_dd")]) == 1
        assert told in lines[-1], lines[-1]
        assert "evaluate." not in lines[-1] and "config key" not in lines[-1]
