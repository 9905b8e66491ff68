"""Dataset distillation by trajectory matching, in JAX.

`edf_jax.load(path)` reads a distilled set. Importing the package alone imports nothing else; its
modules are there when they are asked for (`edf_jax.matching.matching_gradient`).
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edf_jax.distilled_set import DistilledSet as DistilledSet
    from edf_jax.distilled_set import load as load

_FROM_SYNTHETIC = ("DistilledSet", "load")


def __getattr__(name: str) -> Any:
    if name in _FROM_SYNTHETIC:
        from edf_jax import distilled_set as synthetic

        return getattr(synthetic, name)
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'edf_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM_SYNTHETIC])
