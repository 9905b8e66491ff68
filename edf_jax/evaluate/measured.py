"""Figures kept on disk one by one, each with what decides it and what made it."""

from __future__ import annotations

import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from edf_jax.runtime import processes, storage


class Measured:
    """Figures by identity, so that none is measured twice and none is mistaken for another.

    Args:
        path: a JSON file; made when the first figure is kept.
        provenance: command, seed, versions and hardware, kept beside every new figure.
    """

    def __init__(self, path: pathlib.Path, provenance: Mapping[str, Any]):
        self._path = path
        self._provenance = dict(provenance)
        self._entries: dict[str, Any] = processes.from_first_process("known figures", self._read)

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            return dict(storage.read_record(self._path)["entries"])
        except (storage.DamagedFile, KeyError, TypeError):
            logging.warning("%s can't be read: its figures are measured again", self._path)
            return {}

    def find(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The figures of an identity, with their provenance; None where they aren't known."""
        return self._entries.get(storage.digest_of_record(dict(identity)))

    def need(
        self, identity: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The figures of an identity, made unless they are known.

        Args:
            identity: everything that decides them, as JSON holds it.
            make: makes them.

        Returns:
            The figures, the `seconds` that making them took, and their `provenance`.
        """
        found = self.find(identity)
        if found is None:
            began = time.monotonic()
            figures = make()
            seconds = round(time.monotonic() - began, 1)
            found = {**figures, "seconds": seconds, "provenance": self._provenance}
            self._entries[storage.digest_of_record(dict(identity))] = found
            if processes.is_first():
                self._path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_record(self._path, {"entries": self._entries})
        return found
