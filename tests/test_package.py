"""What is built and installed works away from the checkout."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import pytest

import edf_jax
from tests.report.test_report import make_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
_PARTS = ("edf_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
_SDIST = "import setuptools.build_meta as m; print(m.build_sdist('dist'))"


def _run(*command, cwd: pathlib.Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
    """A source archive, and the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in _PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    sdist = folder / "dist" / _run(sys.executable, "-c", _SDIST, cwd=folder).split()[-1]
    wheel = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", sdist.parent, sdist]
    _run(sys.executable, "-m", "pip", *wheel, cwd=folder)
    return sdist.parent


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> pathlib.Path:
    """The `bin` of a new environment with the wheel alone; what it needs is found where it is."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    _run(sys.executable, "-m", "venv", folder, cwd=built)
    (wheel,) = built.glob("*.whl")
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    _run(folder / "bin" / "python", *pip, cwd=built)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.mark.slow
def test_the_source_archive_holds_what_a_wheel_is_made_of(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (*_PARTS[2:], "configs/imagenette.py", "edf_jax/report/page.html"):
        assert wanted in names
    assert {f"edf_jax/zoo/sets/{path.name}" for path in edf_jax.distilled_set.ZOO.iterdir()} < names


@pytest.mark.slow
def test_an_installed_package_works_away_from_its_checkout(installed, tmp_path):
    edf = installed / "edf"
    where = "import edf_jax, pathlib; print(pathlib.Path(edf_jax.__file__).parents[4])"
    assert _run(installed / "python", "-c", where, cwd=tmp_path).strip() == str(installed.parent)
    assert _run(edf, "--version", cwd=tmp_path).strip() == f"edf_jax {edf_jax.__version__}"
    assert "imagenette32-ipc10-edf" in _run(edf, "zoo", cwd=tmp_path)
    assert "classes" in _run(edf, "zoo", "imagenette32-ipc10-edf", cwd=tmp_path)
    planned = _run(edf, "run", "--config=configs/imagenette.py:ipc10", "--dry_run", cwd=tmp_path)
    assert "imagenette" in planned and not (tmp_path / "runs").exists()
    run = make_run(tmp_path / "run", iterations=8)
    assert _run(edf, "report", run, cwd=tmp_path).strip() == str(run / "report.html")
