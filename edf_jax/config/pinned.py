"""The keys that a run is pinned to: what they were, what they are, and whose a file is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edf_jax.config.schema import AUTO, FREE, SCHEMA
from edf_jax.runtime import storage


def differing(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """The first pinned key whose value differs, with both values; None where all agree.

    Args:
        before: a config, flat; a key that was no key then counts as its default.
        now: another, flat.
    """
    # The teacher's maps weigh gradients where cam.network says so.
    teacher_counts = now.get("cam.network") == "trained"
    for name, value in now.items():
        default = SCHEMA[name].default if name in SCHEMA else value
        was = before.get(name, value if default == AUTO else default)
        free = () if teacher_counts and name.startswith("teacher.") else FREE
        if was != value and not name.startswith(free):
            return name, was, value
    return None


def identity(flat: Mapping[str, Any]) -> str:
    """Digest of the pinned keys that aren't at their defaults: whose a run's file is."""
    own = {
        name: value
        for name, value in flat.items()
        if name in SCHEMA and value != SCHEMA[name].default and not name.startswith(FREE)
    }
    return storage.digest_of_record(own)
