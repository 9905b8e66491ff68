"""The config files that come with the project."""

from __future__ import annotations

import pathlib
import runpy

from edf_jax.runtime.errors import UserError


def find(name: str) -> pathlib.Path | None:
    """Where `configs/<name>.py` is, from wherever the project runs; None if there is none."""
    package = pathlib.Path(__file__).parents[1]
    # Installed they are the package `edf_jax._configs`; in a checkout they lie beside it.
    for folder in (package / "_configs", package.parent / "configs"):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    return None


def load(name: str, variant: str):
    """The config of `configs/<name>.py:<variant>`, not resolved.

    Args:
        name: the file's, without `.py`.
        variant: `<variant>[,key=value...]`.

    Raises:
        UserError: there is no such file, variant or key.
    """
    path = find(name)
    if path is None:
        raise UserError(f"there is no config file configs/{name}.py")
    return runpy.run_path(str(path))["get_config"](variant)


def load_settings(label: str):
    """The config whose settings a `settings_of` label names, not resolved; None if there is none.

    Args:
        label: a dataset as the official code calls it and the images per class, such as
            'cifar-10 ipc1' (configs/cifar10.py:ipc1) or 'bird_easy ipc10', a subset of Comp-DD.
    """
    dataset, _, variant = label.partition(" ")
    name = dataset.replace("-", "")
    if find(name) is None:
        name, variant = "comp_dd", f"{dataset}_{variant}"
    try:
        return load(name, variant)
    except UserError:
        return None
