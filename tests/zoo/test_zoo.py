"""Sets that come with the package: whole, told of by their cards, and as good as those say."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import edf_jax
from edf_jax import distilled_set, main
from edf_jax.config.flags import parse
from edf_jax.config.resolve import autos, flatten, resolve
from edf_jax.export import export_run
from edf_jax.runtime.errors import UserError
from edf_jax.tune import budget
from edf_jax.zoo import __main__ as command
from edf_jax.zoo import catalogue
from edf_jax.zoo.add import add
from tests.evaluation_data import make_dataset, make_distilled

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
DIGITS = "cluttered_digits24-ipc5-edf"
NETTE = "imagenette32-ipc10-edf"


@pytest.mark.parametrize("name", catalogue.names())
def test_a_card_is_of_its_set(name):
    about, result = catalogue.read_card(name)
    found = edf_jax.load(f"zoo:{name}")
    assert about["digest"] == found.digest and about["images"] == len(found.images)
    assert about["bytes"] == (distilled_set.ZOO / f"{name}.safetensors").stat().st_size
    assert about["data"]["digest"] == found.origin["digest"]
    assert re.fullmatch(r"[a-z_]+(\d+)-ipc(\d+)-[a-z0-9_]+", name)
    assert result["distilled_num_eval"] >= 3 and about["licence"].endswith(".")


def test_the_zoo_stays_small_and_knows_no_machine():
    files = list(distilled_set.ZOO.iterdir())
    assert sum(file.stat().st_size for file in files) < catalogue.MOST_BYTES
    for file in files:
        assert not re.search(rb'[" =](/[a-z]|~/)', file.read_bytes()[:20_000]), file


def test_the_command_lists_sets_tells_of_one_and_shows_it(tmp_path, capsys):
    assert command.main([]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == catalogue.names()
    assert command.main([NETTE]) == 0
    told = capsys.readouterr().out
    assert "50.5 ± 0.6" in told and "--config.data.path=imagenette-128" in told
    assert command.main([NETTE, f"--pictures={tmp_path / 'nette.png'}"]) == 0
    with Image.open(tmp_path / "nette.png") as picture:
        assert picture.size == (10 * 66 - 2, 10 * 66 - 2)


def test_what_a_user_gets_wrong_is_told_in_a_line(capsys):
    for arguments, told in {
        ("imagenet",): "the zoo has no 'imagenet'; it has",
        ("--pictures=a.png",): "goes with the name of a set",
        (NETTE, "--pictures=a.jpg"): "ends in .png",
        ("--add=runs/x",): "goes with --name and --licence",
    }.items():
        assert command.main(arguments) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1


def _finished_run(folder: pathlib.Path, **result) -> pathlib.Path:
    dataset = make_dataset()
    made = make_distilled(dataset)
    config = {"method": "edf", "seed": 3, "model.width": 4, "data.path": "/home/a/photos"}
    origin = {**dataset.info.identity, "name": "halves"}
    made = distilled_set.DistilledSet(
        made.images, made.labels, made.alpha, made.class_names, made.normalisation, 7,
        config=config, origin=origin,
    )  # fmt: skip
    made.save(folder / "distilled" / "last.safetensors")
    figures = {
        "distilled_mean": 60.0, "distilled_std": 1.0, "distilled_num_eval": 3, "distilled_step": 7,
        "network": "ConvNet", "num_test_images": 30, "workdir": str(folder), "seconds": 1.0,
        "command": f"python -m edf_jax.main --config.data.path=/home/a/photos --workdir={folder}",
        "versions": {"jax": "0.10.2"}, "hardware": {"device": "cpu", "cpu": "a processor"},
        "rows": [{"kind": "distilled", "network": "ConvNet", "mean": 60.0, "seconds": 9.0}],
        **result,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(figures))
    return folder


def test_a_run_is_added_without_its_machine(tmp_path, monkeypatch):
    run, zoo = _finished_run(tmp_path / "run"), tmp_path / "zoo"
    zoo.mkdir()
    path = add(run, "halves8-ipc2-edf", "Free.", zoo)
    monkeypatch.setattr(distilled_set, "ZOO", zoo)
    found = edf_jax.load("zoo:halves8-ipc2-edf")
    np.testing.assert_array_equal(found.images, edf_jax.load(run).images)
    assert found.config["data.path"] == "photos"
    about, result = catalogue.read_card("halves8-ipc2-edf")
    assert about["made"]["command"] == "python -m edf_jax.main --config.data.path=photos"
    assert result["rows"] == [{"kind": "distilled", "network": "ConvNet", "mean": 60.0}]
    card = path.with_suffix(".json").read_text()
    assert str(tmp_path) not in card and "/home" not in card


@pytest.mark.parametrize(
    ("name", "result", "told"),
    [
        ("halves8-ipc2-edf", {"distilled_step": 6}, "isn't finished"),
        ("halves16-ipc2-edf", {}, "of the form DATA8-ipc2-METHOD"),
        ("halves8-ipc20-edf", {}, "of the form DATA8-ipc2-METHOD"),
        ("../halves8-ipc2-edf", {}, "of the form DATA8-ipc2-METHOD"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(tmp_path, name, result, told):
    run = _finished_run(tmp_path / "run", **result)
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    with pytest.raises(UserError, match=told):
        add(run, name, "Free.", zoo)
    assert not list(zoo.iterdir())


def test_what_a_run_found_is_pinned_where_its_set_is_scored():
    assert not catalogue.read_card(DIGITS).about["made"]["found"]
    command = catalogue.score_command(NETTE)
    flags = [word for word in command[3:] if not word.startswith("--config.data.path")]
    config = resolve(parse(["main", *flags], main._define_flags).config)
    own = edf_jax.load(f"zoo:{NETTE}").config
    sizes = (*budget.KEYS, "evaluate.epochs", "augment.crop_ratio")
    # Versions since may leave further numbers of the distillation to be found.
    open_still = autos(flatten(config))
    assert not [key for key in open_still if key in budget.KEYS or key.startswith("experts.")]
    assert {key: flatten(config)[key] for key in sizes} == {key: own[key] for key in sizes}


def test_an_export_tells_the_accuracy_of_the_card(tmp_path):
    out = export_run(f"zoo:{NETTE}", "images", tmp_path / "nette")
    record = json.loads((out / "distilled_set.json").read_text())
    assert record["accuracy"]["mean"] == pytest.approx(
        catalogue.read_card(NETTE).result["distilled_mean"]
    )
    with pytest.raises(UserError, match="give --out"):
        export_run(f"zoo:{NETTE}", "images")


def _score(name: str, tmp_path: pathlib.Path, *flags: str) -> dict:
    """The result of the command by which a card says that its set is scored."""
    command = catalogue.score_command(name)
    command += [*flags, "--config.evaluate.baselines=", f"--workdir={tmp_path / 'run'}"]
    assert main.main(command[2:]) == 0
    return json.loads((tmp_path / "run" / "result.json").read_text())


def _lands_in_its_interval(name: str, result: dict) -> None:
    about, told = catalogue.read_card(name)
    low, high = told["distilled_interval"]
    assert low <= result["distilled_mean"] <= high
    assert result["dataset"] == about["data"]["name"]


def test_a_set_is_as_good_as_its_card_says(tmp_path):
    _lands_in_its_interval(DIGITS, _score(DIGITS, tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="wants fast.ai's sets in ../shared/data")
def test_imagenettes_is_as_good_as_its_card_says(tmp_path):
    flag = f"--config.data.path={SHARED / 'imagenette-128'}"
    _lands_in_its_interval(NETTE, _score(NETTE, tmp_path, flag))
