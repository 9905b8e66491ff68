"""Every published setting, field by field, in the config that claims it.

`fixtures/published` has the settings under the names of the official codes; `config.official` says
what each name is here.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from edf_jax import main
from edf_jax.config import official
from edf_jax.config.files import load
from edf_jax.config.flags import parse
from edf_jax.config.resolve import METHODS, flatten, resolve
from edf_jax.data import describe_dataset
from edf_jax.data.subsets import comp_dd_categories
from edf_jax.plan import plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
_FIXTURES = ROOT / "tests" / "fixtures" / "published"


def _rows(name: str) -> dict[str, Any]:
    return json.loads((_FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


# EDF's official configs, by dataset and images per class.
EDF = {k: v for k, v in _rows("hyperparameters").items() if not k.startswith("_")}
# The same by method first. The rows of MTT, FTD and TESLA also have what their codes have
# everywhere.
FAMILY = {k: v for k, v in _rows("family").items() if not k.startswith("_")}
COMMANDS = {k: v for k, v in _rows("commands").items() if not k.startswith("_")}

NUM_CLASSES = {"cifar-10": 10, "cifar-100": 100, "tinyimagenet": 200}


def translated(row: dict[str, Any], model: str) -> dict[str, Any]:
    """A row's settings as keys and values of ours."""
    row = {name: value for name, value in row.items() if name not in ("dataset", "ema_decay")}
    found = official.translate({**row, "model": model})
    return {key: value for values in found.values() for key, value in values.items()}


def config_of(dataset: str, ipc: str) -> tuple[str, str]:
    """The config file and variant of a row."""
    if dataset.partition("_")[0] in comp_dd_categories():
        return "comp_dd", f"{dataset}_ipc{ipc}"
    return dataset.replace("-", ""), f"ipc{ipc}"


def resolved(dataset: str, ipc: str, method: str) -> dict[str, Any]:
    file, variant = config_of(dataset, ipc)
    return flatten(resolve(load(file, f"{variant},method={method}")))


def cases(rows: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (method, dataset, ipc)
        for method, datasets in rows.items()
        for dataset, by_ipc in datasets.items()
        if dataset != "everywhere"
        for ipc in by_ipc
    ]


@pytest.mark.parametrize(("_", "dataset", "ipc"), cases({"edf": EDF}))
def test_edfs_settings_are_the_official_configs(_, dataset, ipc):
    row = {"loss_threshold": 0.0, "num_eval": 1, "Sequential_Generation": True, **EDF[dataset][ipc]}
    found = resolved(dataset, ipc, "edf")
    expected = translated(row, row.get("model", "ConvNet"))
    assert {name: found[name] for name in expected} == expected
    assert (found["published"], found["settings_of"]) == (True, f"{dataset} ipc{ipc}")


@pytest.mark.parametrize(("method", "dataset", "ipc"), cases(FAMILY))
def test_datms_and_pads_settings_are_the_official_files(method, dataset, ipc):
    row = {"Sequential_Generation": True, **FAMILY[method][dataset][ipc]}
    found = resolved(dataset, ipc, method)
    expected = translated(row, "ConvNetD4" if dataset == "tinyimagenet" else "ConvNetD3")
    assert {name: found[name] for name in expected} == expected
    assert found["published"] and found["augment.crop_ratio"] == 0.125
    # Neither script evaluates an average.
    assert found["distill.average"] == 0


@pytest.mark.parametrize(("method", "dataset", "ipc"), cases(COMMANDS))
def test_the_older_methods_settings_are_their_codes_commands(method, dataset, ipc):
    row = {**COMMANDS[method]["everywhere"], **COMMANDS[method][dataset][ipc]}
    # Where the command names none, a batch has all images.
    row.setdefault("batch_syn", NUM_CLASSES[dataset] * int(ipc))
    found = resolved(dataset, ipc, method)
    expected = translated(row, "ConvNetD4" if dataset == "tinyimagenet" else "ConvNetD3")
    expected["distill.average"] = row.get("ema_decay", 0.0)
    assert {name: found[name] for name in expected} == expected
    assert found["published"] and found["augment.crop_ratio"] == 0.125


def test_no_other_settings_are_said_to_be_published():
    known = {(m, *config_of(d, i)) for m, d, i in cases({"edf": EDF, **FAMILY, **COMMANDS})}
    for file in {config_of(dataset, "1")[0] for dataset in EDF} | {"mnist", "folder"}:
        for method in METHODS:
            for ipc in ("1", "10", "50", "100", "500", "1000"):
                prefix = "bird_easy_" if file == "comp_dd" else ""
                variant = f"{prefix}ipc{ipc}"
                try:
                    config = resolve(load(file, f"{variant},method={method}"))
                except Exception as error:
                    assert "has no variant" in str(error)
                    continue
                assert config.published == ((method, file, variant) in known)


@pytest.mark.parametrize("file", ["fashion_mnist", "mnist", "svhn", "imagenet100", "folder"])
def test_a_dataset_without_settings_of_its_own_has_those_that_it_names(file):
    for ipc in (1, 10, 50):
        config = resolve(load(file, f"ipc{ipc}"))
        settings = load(*config_of(*config.settings_of.split(" ipc")))
        there, found = flatten(resolve(settings)), flatten(config)
        said = settings.variant.of_methods["edf"]
        names = [n for n in said if n.startswith(("distill.", "cam.", "evaluate."))]
        assert len(names) > 10
        assert {n: found[n] for n in names} == {n: there[n] for n in names}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cifar10:ipc10", "edf, IPC 10; settings published for EDF (cifar-10 ipc10)"),
        ("cifar10:ipc10,method=datm", "settings published for DATM (cifar-10 ipc10)"),
        ("cifar100:ipc100,method=pad", "settings published for PAD (cifar-100 ipc100)"),
        ("tinyimagenet:ipc50,method=mtt", "settings published for MTT (tinyimagenet ipc50)"),
        (
            "imagenette:ipc10,method=pad",
            "settings of EDF's config (imagenette ipc10), not published for PAD",
        ),
        ("mnist:ipc1", "unpublished: settings of cifar-10 ipc1"),
        ("mnist:ipc1,method=datm", "settings of EDF's config (cifar-10 ipc1), not published for"),
        (
            "cifar10:ipc10,method=datm,distill.lr_img=1000",
            "settings published for DATM (cifar-10 ipc10), changed in distill.lr_img",
        ),
    ],
)
def test_the_plan_says_whose_settings_they_are(text, told):
    config = resolve(load(*text.split(":")))
    said = plan.to_text(plan.make_plan(config, describe_dataset(config.data)))
    assert told in said
    assert ("changed in" in said) == ("changed in" in told)


@pytest.mark.parametrize(("method", "dataset", "ipc"), cases({**FAMILY, **COMMANDS}))
def test_a_dry_run_of_each_passes(method, dataset, ipc, capsys):
    file, variant = config_of(dataset, ipc)
    flags = [f"--config={ROOT}/configs/{file}.py:{variant},method={method}", "--dry_run"]
    assert main.main(["edf_jax", *flags]) == 0
    assert f"settings published for {method.upper()}" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", [[], ["distill.lr_img=1000.0", "data.zca=true"]])
def test_a_method_behind_the_variant_is_the_flag(method, more):
    file = f"--config={ROOT}/configs/cifar10.py"

    def given(*flags):
        return flatten(resolve(parse(["edf_jax", *flags], lambda values: None).config))

    behind = given(f"{file}:{','.join(['ipc10', f'method={method}', *more])}")
    flags = given(f"{file}:ipc10", f"--config.method={method}", *(f"--config.{m}" for m in more))
    assert behind == flags
    if more:
        assert (flags["distill.lr_img"], flags["data.zca"]) == (1000.0, True)
