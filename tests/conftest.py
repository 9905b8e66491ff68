"""What every test shares: compiled programs kept between runs, and figures without a display."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]

# Before anything imports jax: it reads these once. Small programs too, for tests have few others.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("MPLBACKEND", "Agg")

# The shapes of the pure functions' arrays are checked at every call.
from jaxtyping import install_import_hook  # noqa: E402

from tests import typecheck  # noqa: E402, F401

install_import_hook(
    ["edf_jax.methods", "edf_jax.matching.gradient", "edf_jax.training.losses"],
    "tests.typecheck.check",
)
