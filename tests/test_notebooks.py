"""Notebooks run from top to bottom, and are kept with pictures.

`python -m tests.test_notebooks quickstart` runs one at its full settings and keeps what it shows.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import types

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def _cells(name: str) -> list[dict]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))["cells"]


def _pictures(cells) -> list[bytes]:
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    found = [kinds["image/png"] for kinds in data if "image/png" in kinds]
    return [base64.b64decode("".join(picture)) for picture in found]


def test_there_are_three():
    assert NAMES == ["compare_methods", "quickstart", "your_own_images"]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_kept_as_run_from_top_to_bottom(name):
    cells = [cell for cell in _cells(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = json.dumps(cells)
    assert '"output_type": "error"' not in text
    # Nothing of the machine that they were run on.
    assert not re.search(r"/tmp/|/home/|/root/|/Users/|file:///\w", text)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_show_pictures_with_something_on_them(name):
    from PIL import Image

    pictures = _pictures(_cells(name))
    assert pictures
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_all_together_stay_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS.glob("*.ipynb")) < 1_000_000


def _install_cell(name: str) -> str:
    return next("".join(c["source"]) for c in _cells(name) if "pip_install" in "".join(c["source"]))


def _installs(folder: pathlib.Path, monkeypatch, there: dict[str, str]) -> list[list[str]]:
    """What the install cell asks of pip in a folder, where these packages are installed."""
    asked: list[list[str]] = []
    found = [types.SimpleNamespace(name=name, version=version) for name, version in there.items()]
    needed = ["jax<0.13,>=0.10", "flax>=0.12", "ml_collections>=1.0", "torch>=2.4; extra == 'x'"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needed)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command[5:]))
    exec(_install_cell("quickstart"), {})
    return asked


def test_the_install_cell_is_the_same_everywhere_and_does_nothing_where_there_is_nothing_to_do():
    cells = {_install_cell(name) for name in NAMES}
    assert len(cells) == 1
    exec(cells.pop(), {"subprocess": None})


def test_the_install_cell_takes_a_wheel_then_a_checkout_then_the_index(tmp_path, monkeypatch):
    (tmp_path / "edf_jax").mkdir()
    (tmp_path / "notebooks").mkdir()
    there = {"jax": "0.7.2", "ml-collections": "1.1"}
    wheel = "edf_jax-0.1.0-py3-none-any.whl"
    for file, source in (
        ("README.md", "edf_jax"),
        ("edf_jax/main.py", str(tmp_path)),
        (f"notebooks/{wheel}", wheel),
    ):
        (tmp_path / file).touch()
        package, others = _installs(tmp_path / "notebooks", monkeypatch, there)
        assert package == ["--no-deps", source]
        # Colab's own JAX stays, whatever the package asks for.
        assert others == ["flax>=0.12", "jax==0.7.2"]
    assert _installs(tmp_path, monkeypatch, {})[1][-1] == "jax"


def _run(name: str, folder: str, *, small: bool):
    """The notebook after running it in `folder`."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    # As an installed edf_jax brings them.
    pathlib.Path(folder, "configs").symlink_to(ROOT / "configs")
    client = nbclient.NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": folder}},
    )
    settings = {
        "PYTHONPATH": str(ROOT),
        "EDF_JAX_NOTEBOOKS": "small" if small else "",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    with _environment(settings):
        client.execute()
    return notebook


@contextlib.contextmanager
def _environment(values):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run_on_small_settings(name, tmp_path):
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason="needs pip install 'edf_jax[docs]'")
    notebook = _run(name, str(tmp_path), small=True)
    assert _pictures(notebook.cells)


def main(names: list[str]) -> None:
    """Runs notebooks at their full settings, in an empty folder, and keeps what they show."""
    import nbformat

    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            notebook = _run(name, folder, small=False)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    _shrink(output["data"])
        nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")


def _shrink(data: dict) -> None:
    """A picture in 256 colours, without the text that says where the figure lay in memory."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256).save(buffer, "PNG", optimize=True)
    data.update({"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": ""})


if __name__ == "__main__":
    main(sys.argv[1:])
