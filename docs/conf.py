"""Sphinx's settings: `python -m sphinx -W docs docs/_build`, after `pip install -e '.[docs]'`."""

from __future__ import annotations

import pathlib
import tomllib

_ROOT = pathlib.Path(__file__).resolve().parents[1]

project = "edf_jax"
author = "The edf_jax contributors"
copyright = author
release = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "none"  # Docstrings say the shapes, which are more than the types.
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]

# Notebooks are shown with the outputs they were saved with; tests/test_notebooks.py runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "edf_jax"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
