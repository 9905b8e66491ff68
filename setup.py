"""Packages of the project: those found under edf_jax, and configs/ as edf_jax._configs.

pyproject.toml can either discover packages or map one to another folder, not both. The mapping
is what lets `--config=configs/...` work after `pip install`, without a second copy of the configs.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["edf_jax", "edf_jax.*"]), "edf_jax._configs"],
    package_dir={"edf_jax._configs": "configs"},
)
