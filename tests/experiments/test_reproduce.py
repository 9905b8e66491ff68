"""EDF's table, cell by cell, from a fake folder of ImageNet."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from edf_jax.data.subsets import find_subset
from experiments import table1
from tests import data_layouts

_TINY = [
    "--config.data.resolution=16",
    "--config.model.name=ConvNetD1",
    "--config.model.width=4",
    "--config.experts.num=1",
    "--config.experts.epochs=2",
    "--config.distill.iterations=2",
    "--config.distill.syn_steps=2",
    "--config.distill.expert_epochs=1",
    "--config.distill.max_start_epoch=1",
    "--config.distill.current_max_start_epoch=1",
    "--config.distill.eval_every=2",
    "--config.evaluate.num=1",
    "--config.evaluate.epochs=1",
    "--config.evaluate.kd_epochs=5",
    "--config.evaluate.baseline_rates=0.01",
    "--config.teacher.epochs=1",
    "--config.log.tensorboard=false",
]


@pytest.fixture
def imagenet(tmp_path):
    root = tmp_path / "imagenet"
    data_layouts.write_folder(root, find_subset("imagenette").wnids, train=3, test=1)
    return root


def _cells(*flags: str) -> list[table1.Cell]:
    return list(table1.cells(*table1.parse(["/data/imagenet", *flags])))


def test_there_is_a_cell_for_each_published_figure_of_ours():
    found = {(cell.subset, cell.ipc, cell.method) for cell in _cells()}
    columns = {"edf", "datm", "ftd", "mtt", "edf_kd"}
    assert found == {
        (subset, ipc, column)
        for subset, ipcs in table1.published().items()
        for ipc, row in ipcs.items()
        for column in columns & row.keys()
    }
    # Six subsets of 5, 5 and 3 figures, and ImageNet100 of 3 each.
    assert len(found) == 6 * 13 + 9
    folders = [cell.folder for cell in _cells()]
    assert len(set(folders)) == len(folders)


def test_published_figures_are_those_of_the_configs():
    for subset, ipcs in table1.published().items():
        path = pathlib.Path(table1.__file__).parents[1] / "configs" / f"{subset}.py"
        text = path.read_text(encoding="utf-8")
        for row in ipcs.values():
            assert f"{row['edf']}" in text and f"{row['datm']}" in text


def test_a_dry_run_tells_every_cell_and_the_experts_once(capsys, tmp_path):
    flags = ["--subsets=imagenette,imagenet100", "--ipc=10", "--methods=edf,mtt,edf_kd"]
    assert table1.main(["/no/imagenet", *flags, f"--workdir={tmp_path / 'w'}", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "imagenette ipc10 edf: to do; published 71.0; 100 images, 10000 iterations" in printed
    assert "imagenet100 ipc10 edf_kd: to do; published 32.0; 1000 images" in printed
    assert "imagenet100 ipc10 mtt" not in printed
    assert printed.count("no data") == 1
    assert printed.count("experts of imagenette, gsam: ") == 1
    assert "experts of imagenette, sgd: " in printed and "5 cells; no data there yet" in printed
    assert not (tmp_path / "w").exists()


def test_finished_cells_are_skipped_and_the_published_figure_stands_beside(
    monkeypatch, capsys, tmp_path
):
    made = []

    def run_cell(cell):
        if len(made) == 2:
            return 75
        made.append(cell.name)
        cell.folder.mkdir(parents=True)
        result = {"distilled_mean": 70.0, "distilled_std": 0.5, "best_on_test_mean": 70.5}
        result["paper_statistic_mean"] = 71.5
        result |= {"random_mean": 44.0, "random_std": 1.0, "full_mean": 87.0}
        (cell.folder / "result.json").write_text(json.dumps(result))
        table1.storage.write_record(cell.folder / "cell.json", {"flags": list(cell.flags)})
        return 0

    monkeypatch.setattr(table1, "run_cell", run_cell)
    command = ["/data/imagenet", "--subsets=imagenette", "--ipc=10", f"--workdir={tmp_path}"]
    assert table1.main(command) == 75
    assert made == ["imagenette ipc10 edf", "imagenette ipc10 datm"]
    printed = capsys.readouterr().out
    counted = "best on test 70.5, as the paper counts 71.5"
    assert f"imagenette ipc10 edf: 70.0 ± 0.5, {counted}; published 71.0" in printed
    assert "imagenette ipc10 random: 44.0 ± 1.0; published 44.8" in printed
    table = (tmp_path / "table.md").read_text()
    for entry in ("70.0 ± 0.5, 71.5 (68.9)", "– (63.0)", "87.0 ± 0.0 (87.8)"):
        assert entry in table
    made.clear()
    assert table1.main([*command, "--methods=edf,datm,ftd"]) == 0
    assert made == ["imagenette ipc10 ftd"]
    # Another value is another run.
    made.clear()
    shutil.rmtree(tmp_path / "imagenette_ipc10_edf")
    assert table1.main([*command, "--methods=edf", "--config.distill.lr_img=1"]) == 0
    assert made == ["imagenette ipc10 edf"]


def test_no_published_figure_stands_beside_another_split_of_the_images(
    monkeypatch, capsys, tmp_path
):
    def run_cell(cell):
        cell.folder.mkdir(parents=True)
        result = {"dataset": "imagenette_fastai", "distilled_mean": 70.0, "random_mean": 44.0}
        (cell.folder / "result.json").write_text(json.dumps(result))
        return 0

    monkeypatch.setattr(table1, "run_cell", run_cell)
    flags = ["--subsets=imagenette", "--ipc=10", "--methods=edf"]
    assert table1.main([str(tmp_path / "in"), *flags, f"--workdir={tmp_path / 'w'}"]) == 0
    assert "edf: 70.0 ± 0.0; published –\n" in capsys.readouterr().out
    table = (tmp_path / "w" / "table.md").read_text()
    assert "70.0 ± 0.0 (–)" in table and "71.0" not in table and "as fast.ai does" in table
    # And none is promised before.
    wnids = find_subset("imagenette").wnids
    data_layouts.write_folder(tmp_path / "in", wnids, train=10, test=1)
    for image in (tmp_path / "in" / "train" / wnids[0]).iterdir():
        image.rename(image.with_name(f"ILSVRC2012_val_{image.name}"))
    plan = [str(tmp_path / "in"), *flags, f"--workdir={tmp_path / 'v'}", "--dry_run"]
    assert table1.main(plan) == 0
    assert "to do; none published for imagenette_fastai" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--subsets=imagenete"], "'imagenete' is none of"),
        (["--ipc=2"], "'2' is none of"),
        (["--workdr=x"], "no flag --workdr=x"),
    ],
)
def test_a_wrong_flag_is_told_in_a_line(flags, told, capsys):
    assert table1.main(["/data/imagenet", *flags]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_cells_run_from_images_to_accuracies(imagenet, capfd, tmp_path):
    command = [str(imagenet), "--subsets=imagenette", "--ipc=1", "--methods=edf,edf_kd"]
    command += [f"--workdir={tmp_path / 'w'}", f"--config.data.cache_dir={tmp_path / 'c'}", *_TINY]
    assert table1.main(command) == 0
    printed = capfd.readouterr().out
    assert "imagenette ipc1 edf_kd: " in printed and "published 25.7" in printed
    assert "imagenette ipc1 full: " in printed
    assert table1.main(command) == 0
    assert "of 2" not in capfd.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_takes_a_folder_relative_to_where_it_is_called(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    script = pathlib.Path(table1.__file__).parents[1] / "launch" / "reproduce_table1.sh"
    for folder, found in (("images", str(tmp_path / "images")), ("--help", "--help")):
        done = subprocess.run(
            ["bash", script, folder, "--ipc=1"],
            cwd=tmp_path,
            env={**os.environ, "EDF_PYTHON": str(python)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["-m", "experiments.table1", found, "--ipc=1"]
