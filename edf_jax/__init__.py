"""Dataset distillation by trajectory matching, in JAX.

`edf_jax.load(path)` reads a distilled set, and `edf_jax.torch.TensorSet` hands it to PyTorch.
Importing the package alone imports nothing else; its modules are there when they are asked for
(`edf_jax.matching.matching_gradient`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edf_jax import compare as compare
    from edf_jax import data as data
    from edf_jax import evaluate as evaluate
    from edf_jax import export as export
    from edf_jax import extending as extending
    from edf_jax import matching as matching
    from edf_jax import methods as methods
    from edf_jax import models as models
    from edf_jax import runs as runs
    from edf_jax import training as training
    from edf_jax import zoo as zoo
    from edf_jax.convert.exported import load as load
    from edf_jax.distilled_set import DistilledSet as DistilledSet
    from edf_jax.export import torch as torch

    __version__: str
else:
    # Names of the package that live in its rooms.
    _ELSEWHERE = {
        "DistilledSet": "edf_jax.distilled_set:DistilledSet",
        "load": "edf_jax.convert.exported:load",
        "torch": "edf_jax.export.torch",
    }

    def __getattr__(name: str) -> Any:
        if name in _ELSEWHERE:
            return pkgutil.resolve_name(_ELSEWHERE[name])
        if name == "__version__":
            return importlib.metadata.version("edf_jax")
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module 'edf_jax' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted([*globals(), *_ELSEWHERE, "__version__"])
