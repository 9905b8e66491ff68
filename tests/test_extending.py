"""The worked examples of docs/extending.md are whole config files that run."""

from __future__ import annotations

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax import extending, main
from edf_jax.config.flags import parse
from edf_jax.config.resolve import METHODS, SCHEMA, default_config, resolve
from edf_jax.data import describe_dataset, load
from edf_jax.distilled_set import load as load_set
from edf_jax.methods import family
from edf_jax.models import network_names, registry
from edf_jax.plan import plan
from edf_jax.runs.grid import make_grid, names_of

_PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "extending.md"
_SMALL = {
    "data.resolution": 16,
    "model.width": 4,
    "experts.num": 2,
    "experts.epochs": 2,
    "distill.iterations": 2,
    "distill.syn_steps": 2,
    "distill.expert_epochs": 1,
    "distill.current_max_start_epoch": 1,
    "distill.max_start_epoch": 2,
    "distill.expansion_end": 2,
    "evaluate.epochs": 1,
    "log.tensorboard": False,
}


@pytest.fixture(autouse=True)
def _as_before():
    """What an example adds is taken away again."""
    tables = [METHODS, SCHEMA, load.OPENERS, family.LOSS_MASKS]
    copies = [dict(table) for table in tables]
    families, names = list(registry._FAMILIES), list(registry._NAMES)
    yield
    for table, copy in zip(tables, copies, strict=True):
        table.clear()
        table.update(copy)
    registry._FAMILIES[:], registry._NAMES[:] = families, names


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Writes the example whose file the page calls `name`; returns the flags that choose it."""
    monkeypatch.chdir(tmp_path)

    def write(name: str) -> list[str]:
        found = re.search(rf"`{name}`:\n\n```python\n(.*?)^```", _PAGE.read_text(), re.S | re.M)
        assert found is not None
        pathlib.Path(name).write_text(found[1])
        return [
            "main",
            f"--config={name}:ipc1",
            f"--workdir={tmp_path / 'run'}",
            *(f"--config.{key}={value}" for key, value in _SMALL.items()),
        ]

    return write


def test_the_page_has_three_examples_and_all_are_run_here():
    assert re.findall(r"`(\w+\.py)`:\n\n```python", _PAGE.read_text()) == [
        "band.py",
        "allconv.py",
        "stripes.py",
    ]


def _parsed(argv):
    return parse(argv, main._define_flags).config


@pytest.mark.parametrize("name", ["band.py", "allconv.py", "stripes.py"])
def test_an_example_as_it_stands_is_a_small_run_without_a_warning(example, name):
    config = resolve(_parsed(example(name)[:2]))
    planned = plan.make_plan(config, describe_dataset(config.data))
    assert planned.warnings == ()
    assert config.experts.num * config.experts.epochs <= 64 and config.distill.iterations <= 80


def test_a_method_is_a_function_and_a_name(example, tmp_path):
    argv = example("band.py")
    assert main.main([*argv, "--stage=distill"]) == 0
    distilled = load_set(tmp_path / "run")
    assert distilled.step == 2 and distilled.config["method"] == "band"
    assert distilled.config["distill.loss_mask"] == "middle_band"
    assert distilled.config["distill.pixel_weight"] == "dae"
    # The part does what it says.
    select = family.LOSS_MASKS["middle_band"](resolve(_parsed(argv)).distill)
    kept = np.asarray(select(jnp.arange(1000.0)))
    assert kept[:249].sum() == 0 and kept[251:988].all() and kept[991:].sum() == 0


def test_a_comparison_knows_the_method_and_shares_the_experts(example, tmp_path):
    config = _parsed(example("band.py"))
    table = make_grid(config, names_of("datm,edf,band", ""), 1, tmp_path)
    assert [cell.kind for cell in table.runs.values()].count("experts") == 1
    (band,) = table.rows["band"]
    assert table.runs[band].config.distill.loss_mask == "middle_band"


def test_a_network_is_a_body_and_a_head(example, tmp_path):
    argv = example("allconv.py")
    assert main.main([*argv, "--stage=distill"]) == 0
    assert load_set(tmp_path / "run").config["model.name"] == "AllConv"
    assert "AllConv" in network_names()


def test_a_network_can_be_evaluated_alone(example):
    config = _parsed([*example("allconv.py"), "--config.model.name=ConvNet"])
    config.evaluate.networks = "ConvNet,AllConv"
    assert resolve(config).evaluate.networks == "ConvNet,AllConv"


def test_a_dataset_is_a_listing(example, tmp_path, capsys):
    argv = [*example("stripes.py"), f"--config.data.cache_dir={tmp_path / 'cache'}"]
    assert main.main([*argv, "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert "stripes" in told and "400" in told
    assert main.main([*argv, "--stage=distill"]) == 0
    distilled = load_set(tmp_path / "run")
    assert distilled.class_names == ("upright", "level", "rising", "falling")
    assert distilled.images.shape == (4, 16, 16, 3)


# What can't be added.


def test_a_part_without_a_table_is_refused():
    with pytest.raises(ValueError, match="distill.lr_img is none of distill.loss_mask"):
        extending.add_part("distill.lr_img", "large", 1e4)


@pytest.mark.parametrize(
    "like, changes, told",
    [
        ("edff", {}, "no method 'edff'"),
        ("edf", {"distill.los_mask": "none"}, "is no key"),
        ("edf", {"distill.loss_mask": "middle"}, "must be one of"),
        ("edf", {"distill.loss_mask": "auto"}, "leaves the method open"),
    ],
)
def test_an_impossible_method_is_refused(like, changes, told):
    with pytest.raises(ValueError, match=told):
        extending.add_method("mine", like=like, **changes)
    assert "mine" not in METHODS


def test_a_methods_numbers_come_with_it():
    extending.add_method("mine", like="mtt", **{"distill.threshold": 3.0})
    config = resolve(default_config(method="mine"))
    assert config.distill.threshold == 3.0 and config.evaluate.batch == 256
    assert resolve(default_config(method="mtt")).distill.threshold == 0
