"""A run's folder: one config, one process at a time, time and stages that add up over sittings."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from edf_jax.config import FREE, flatten
from edf_jax.errors import UserError
from edf_jax.storage import write_text

_HEARTBEAT = 2.0
_PACKAGES = ("edf_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Run:
    """An open run. Use as a context: it holds the folder's lock and keeps its clock.

    Attributes:
        workdir: the folder.
        config: resolved.
        command: what the user typed.
    """

    def __init__(self, workdir: pathlib.Path, config, command: str):
        self.workdir = workdir
        self.config = config
        self.command = command
        self._times: dict[str, float] = {}
        self._stage = "set-up"

    def __enter__(self) -> Run:
        if "://" in str(self.workdir):
            raise UserError(f"--workdir={self.workdir}: give a folder of this machine's file system")
        pinned = self._pinned()
        if pinned is not None:
            self._check_same(pinned)
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.workdir / ".lock", "w")
        except OSError as error:
            raise UserError(f"--workdir={self.workdir} can't be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process works on {self.workdir}: wait for it or give another --workdir"
            ) from None
        write_text(self.workdir / "config.json", self.config.to_json(indent=1, sort_keys=True))
        self._times = _read_json(self.workdir / "times.json") or {}
        self._closing = threading.Event()
        self._clock = threading.Thread(target=self._keep_time, daemon=True)
        self._clock.start()
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        self._clock.join()
        self._lock.close()

    def _pinned(self) -> dict[str, Any] | None:
        return _read_json(self.workdir / "config.json")

    def _check_same(self, pinned: dict[str, Any]) -> None:
        """Refuses a config that differs from the run's in a key that can't change."""
        before = flatten(pinned)
        for name, value in flatten(self.config).items():
            if name.startswith(FREE) or before.get(name) == value:
                continue
            raise UserError(
                f"{self.workdir} was started with {name}={before.get(name)!r}, not {value!r}: "
                "give another --workdir, or that value"
            )
        if before["distill.iterations"] > self.config.distill.iterations:
            raise UserError(
                f"{self.workdir} was started with distill.iterations="
                f"{before['distill.iterations']}: fewer ({self.config.distill.iterations}) "
                "need another --workdir"
            )

    def _keep_time(self) -> None:
        last = time.monotonic()
        while True:
            closing = self._closing.wait(_HEARTBEAT)
            now = time.monotonic()
            self._times[self._stage] = self._times.get(self._stage, 0.0) + now - last
            last = now
            with contextlib.suppress(OSError):
                write_text(self.workdir / "times.json", json.dumps(self._times))
            if closing:
                return

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time within as that stage's."""
        before, self._stage = self._stage, name
        try:
            yield
        finally:
            self._stage = before

    def provenance(self) -> dict[str, Any]:
        """Command, versions, hardware, time and memory, for `result.json`."""
        return {
            "command": self.command,
            "versions": {**_versions(), "python": platform.python_version()},
            "hardware": _hardware(),
            "stages": {name: round(value, 1) for name, value in self._times.items()},
            "seconds": round(sum(self._times.values()), 1),
            "peak_memory_mb": round(_peak_memory_mb()),
        }


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _hardware() -> dict[str, str]:
    devices = jax.devices()
    return {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _peak_memory_mb() -> float:
    """The process's largest resident size, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
