"""The official codes' own YAML files as configs."""

from __future__ import annotations

import logging

import pytest
import yaml

from edf_jax import main
from edf_jax.config import official
from edf_jax.config.flags import default_workdir, parse
from edf_jax.config.resolve import flatten, resolve
from edf_jax.runtime.errors import UserError
from tests.config.test_published import EDF, resolved

_IN_FILES = {"cifar-10": "CIFAR10", "cifar-100": "CIFAR100", "tinyimagenet": "Tiny"}


def _write(path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("dataset", ["cifar-10", "tinyimagenet", "imagenette", "bird_easy"])
@pytest.mark.parametrize("ipc", ["1", "10"])
def test_a_file_gives_what_the_projects_own_config_does(tmp_path, dataset, ipc):
    row = EDF[dataset][ipc]
    subset = {} if dataset in _IN_FILES else {"subset": dataset}
    row = {"dataset": _IN_FILES.get(dataset, "ImageNet"), "model": "ConvNet", **subset, **row}
    path = _write(tmp_path / f"IPC{ipc}.yaml", **row)
    found = flatten(resolve(parse(["edf", f"--cfg={path}"], lambda values: None).config))
    own = resolved(dataset, ipc, "edf")
    # What the files don't say of themselves, and the network and place that are named above.
    for name in ("published", "settings_of", "model.name", "data.path"):
        del found[name], own[name]
    assert found == own


def test_the_command_tells_our_names_and_takes_overrides(tmp_path, capsys):
    path = _write(
        tmp_path / "configs" / "Imagenette" / "IPC10.yaml",
        dataset="ImageNet", subset="imagenette", model="ConvNetD5", ipc=10, lr_lr=1e-5,
        data_path="../data", buffer_path="../buffers", res=128, beta="1.0s", zca=False,
    )  # fmt: skip
    path.write_text(path.read_text() + "lr_teacher: 1e-02\n")  # a word, by YAML's rules
    flags = ["edf", "--cfg", str(path), "--config.distill.lr_img=7", "--dry_run"]
    assert main.main(flags) == 0
    output = capsys.readouterr()
    assert "imagenette" in output.out
    lines = output.err.splitlines()
    assert "beta: cam.beta=1.0" in lines and "lr_teacher: distill.lr_teacher=0.01" in lines
    assert "buffer_path: nothing depends on it here" in lines
    values = parse(flags[:-1], lambda values: None)
    assert (values.config.distill.lr_img, values.config.data.path) == (7.0, "../data")
    assert default_workdir(values).startswith("runs/official-Imagenette-IPC10-")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr_image: 3", "lr_image is no setting of the official codes'"),
        ("texture: true", "texture: True can't be had here; False can"),
        ("- ipc", "isn't an official config"),
        ("ipc: [", "can't be read"),
        ("ipc: many", "distill.ipc='many' must be of type int"),
        ("model: ConvNot", "ConvNot"),
    ],
)
def test_what_isnt_an_official_setting_ends_in_one_line(tmp_path, capsys, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert main.main(["edf", f"--cfg={path}", "--dry_run"]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_is_not_there_ends_in_one_line(tmp_path, capsys):
    assert main.main(["edf", f"--cfg={tmp_path}/none.yaml", "--dry_run"]) == 2
    assert "none.yaml can't be read" in capsys.readouterr().err


def test_an_ipc_that_isnt_its_names_is_told(tmp_path, caplog):
    path = _write(tmp_path / "ipc1.yaml", ipc=50)
    with caplog.at_level(logging.WARNING):
        official.read(path)
    assert "add --config.distill.ipc=1" in caplog.text


def test_an_unknown_name_is_never_passed_over():
    with pytest.raises(UserError, match="momentum"):
        official.translate({"ipc": 1, "momentum": 0.5})
