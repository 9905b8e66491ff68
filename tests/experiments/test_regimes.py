"""The experiment on label regimes: which rows it makes, and how it goes on."""

from __future__ import annotations

import json
import pathlib

from edf_jax.config.flags import parse
from edf_jax.config.resolve import label_regimes, network_list, resolve
from edf_jax.evaluate import table
from experiments import regimes, rows


def _table(name, seed=0):
    """What `edf_jax.evaluate.table` would write of a set and the first one."""
    cells = [
        {"set": one, "labels": labels, "network": network, "accuracies": [40.0, 42.0], "seconds": 9}
        for labels in regimes.LABELS
        for network in ("ConvNet", "ResNet18 (width 16)")
        for one in dict.fromkeys((regimes.SETS[0], name))
    ]
    return {"rows": cells, "seed": seed, "hardware": {"cpu": "x"}, "versions": {"jax": "1"}}


def test_every_set_has_a_row_for_each_regime_and_network():
    made = [row for name in regimes.SETS for row in regimes.rows_of(name, _table(name), "typed")]
    assert len(made) == 8 * 3 * 2 == len({row.digest for row in made})
    assert [row.method for row in made[:3]] == [
        "datm, own labels, ConvNet",
        "datm, own labels, ResNet18 (width 16)",
        "datm, hard labels, ConvNet",
    ]
    assert {row.settings.get("made", row.settings.get("method", "edf")) for row in made} == {
        *regimes.SETS
    }


def test_it_goes_on_from_the_rows_that_are_kept(tmp_path):
    path = tmp_path / "regimes.csv"
    assert list(regimes.missing([], 0)) == list(regimes.SETS)
    for name in regimes.SETS[:3]:
        for row in regimes.rows_of(name, _table(name), "typed"):
            rows.append(path, row)
    for row in regimes.rows_of("herding", _table("herding"), "typed")[:4]:
        rows.append(path, row)
    kept = rows.read(path)
    assert list(regimes.missing(kept, 0)) == list(regimes.SETS[3:])
    assert list(regimes.missing(kept, 1)) == list(regimes.SETS)


def test_the_command_asks_for_what_the_rows_are_of(monkeypatch, capsys):
    arguments = regimes.command("ccs", pathlib.Path("images"), pathlib.Path("runs"), 3)
    assert arguments[:2] == ["-m", "edf_jax.evaluate.table"]
    values = parse(["table", *arguments[2:]], table._define_flags)
    config = resolve(values.config)
    assert list(table.parse_sets(values.sets)) == ["datm", "ccs"]
    assert network_list(values.networks) == regimes.NETWORKS and config.seed == 3
    assert label_regimes(config.evaluate.labels) == regimes.LABELS
    assert (config.data.resolution, config.distill.ipc, config.experts.num) == (32, 10, 4)


def test_a_finished_set_is_not_made_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        regimes.subprocess, "run", lambda arguments, check: asked.append(arguments)
    )
    monkeypatch.setattr(regimes, "SETS", ("datm",))
    (tmp_path / "seed_0").mkdir()
    (tmp_path / "seed_0" / "protocols.json").write_text(json.dumps(_table("datm")))
    argv = ["regimes", "--images=i", f"--workdir={tmp_path}", f"--csv={tmp_path / 'r.csv'}"]
    monkeypatch.setattr(regimes.sys, "argv", argv)
    for _ in range(2):
        assert regimes.main() == 0
        assert [row.mean for row in rows.read(tmp_path / "r.csv")] == [41.0] * 6
    assert len(asked) == 1
