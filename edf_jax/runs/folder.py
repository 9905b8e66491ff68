"""A run's folder: one config, one process at a time, time and stages that add up over sittings."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import pathlib
import platform
import resource
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from edf_jax.config.pinned import differing, identity
from edf_jax.config.resolve import flatten
from edf_jax.runtime import devices, locks, processes, storage
from edf_jax.runtime.errors import UserError

_HEARTBEAT = 2.0
_PACKAGES = ("edf_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# What a run that came to nothing leaves, and takes away again.
_BOOKKEEPING = {
    ".lock", "config.json", "environment.json", "times.json", "metrics.jsonl", "experts/.lock"
}  # fmt: skip
_ENVIRONMENT = "environment.json"
_FOLDERS = ("", "distilled", "checkpoints", "figures", "fkd")
# Of these something is in a run's folder whose config.json is lost.
_OWN = (
    "experts/store.json", "experts/group_*", "checkpoints/iteration_*", "distilled/*.safetensors",
)  # fmt: skip
# The same of the folder of a comparison or a table of protocols.
OF_A_GRID = (
    "cells/*/.lock", "cells/*/config.json", "cells/*/seed_*",
    "comparison.json", "protocols.json", "evaluation.json", "teacher/digests.json",
)  # fmt: skip
_log = logging.getLogger(__name__)


def check_same(what: Any, before: Mapping[str, Any], config) -> None:
    """Refuses a config that differs in a pinned key from the one that something was made with.

    Args:
        what: that thing, for the message.
        before: its config, flat; a key that was no key then counts as its default.
        config: resolved, of now.

    Raises:
        UserError: names the key and both values.
    """
    now = flatten(config)
    difference = differing(before, now)
    if difference is not None:
        name, was, value = difference
        raise UserError(
            f"{what} was started with {name}={was!r}, not {value!r}: "
            "give another --workdir, or that value"
        )
    iterations = before.get("distill.iterations")
    if isinstance(iterations, int) and iterations > now["distill.iterations"]:
        raise UserError(
            f"{what} was started with distill.iterations={iterations}: fewer "
            f"({now['distill.iterations']}) need another --workdir"
        )


def _check_environment(workdir: pathlib.Path) -> None:
    """Refuses other settings of JAX's than a run was started with, for they change its numbers."""
    path = workdir / _ENVIRONMENT
    if not path.exists():
        return
    try:
        before = storage.read_record(path)
    except storage.DamagedFile as error:
        _log.warning("%s: JAX's settings are taken from now", error)
        return
    for name, value in devices.numerics().items():
        if before.get(name, value) != value:
            raise UserError(
                f"{workdir} was started with {name}={before[name]}, not {value}, which JAX takes "
                f"from {name.upper()}: set that as it was, or give another --workdir"
            )


def refuse_foreign(workdir: pathlib.Path, own: Iterable[str]) -> None:
    """Refuses a folder with files of somebody else's; nothing in it is touched.

    Args:
        workdir: the folder; empty or missing is good.
        own: patterns of which something is in a folder of ours.

    Raises:
        UserError: names one of the files.
    """
    if not workdir.is_dir() or any(True for pattern in own for _ in workdir.glob(pattern)):
        return
    found = sorted(p.name for p in workdir.iterdir() if not storage.is_passing(p))
    found = [name for name in found if name != ".lock"]
    if found:
        raise UserError(
            f"--workdir={workdir} holds other files ({found[0]}): give a new or an empty folder"
        )


def locked(workdir: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from a folder of ours."""
    return locks.locked(
        workdir, f"another process works on {workdir}: wait for it or give another --workdir"
    )


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
        self._identity = identity(flatten(config))
        self._times: dict[str, float] = {}
        self._stage = "set-up"
        self._last_tick = time.monotonic()
        self._ticking = threading.Lock()
        self._open = contextlib.ExitStack()

    def check(self) -> None:
        """Refuses a folder that can't be this run's; writes nothing.

        Raises:
            UserError: it is no path, belongs to another config, or holds somebody's files.
        """
        # pathlib makes gs:/bucket of gs://bucket.
        if self.workdir.parts[:1] and self.workdir.parts[0].endswith(":"):
            raise UserError(f"--workdir={self.workdir}: give a folder on this machine")
        if self.workdir.exists() and not self.workdir.is_dir():
            raise UserError(f"--workdir={self.workdir} is a file: give a folder")
        pinned = self._pinned()
        if pinned:
            check_same(self.workdir, pinned, self.config)
        else:
            refuse_foreign(self.workdir, _OWN)
        _check_environment(self.workdir)

    def __enter__(self) -> Run:
        processes.from_first_process("the run's folder", self._enter)
        return self

    def _enter(self) -> None:
        self.check()
        self._new_folders = [p for p in (self.workdir, *self.workdir.parents) if not p.exists()]
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.workdir))
            self._continued = (self.workdir / "config.json").exists()
            stack.push(self._tidy)
            self._begin()
            stack.callback(self._stop_clock)
            self._open = stack.pop_all()

    def __exit__(self, *error) -> None:
        self._open.__exit__(*error)

    def _begin(self) -> None:
        self.check()
        path = self.workdir / "config.json"
        made = any((self.workdir / name).exists() for name in ("experts", "distilled"))
        if not self._pinned() and (self._continued or made):
            _log.warning("%s is missing or damaged: written again from this command", path)
        for name in _FOLDERS:
            storage.remove_leftovers(self.workdir / name)
        storage.write_record(path, json.loads(self.config.to_json(sort_keys=True)))
        storage.write_record(self.workdir / _ENVIRONMENT, devices.numerics())
        self._times = self._earlier_times()
        self._last_tick = time.monotonic()
        self._save_times()
        self._closing = threading.Event()
        self._clock = threading.Thread(target=self._keep_time, daemon=True)
        self._clock.start()

    def _stop_clock(self) -> None:
        self._closing.set()
        self._clock.join()

    def _tidy(self, error_type, error, traceback) -> None:
        """A mistake found before anything was made leaves nothing behind."""
        if not isinstance(error, UserError) or self._continued or not self._made_nothing():
            return
        with contextlib.suppress(OSError):
            for name in sorted(_BOOKKEEPING):
                (self.workdir / name).unlink(missing_ok=True)
            for folder in (self.workdir / "experts", *self._new_folders):
                if folder.exists():
                    folder.rmdir()

    def _made_nothing(self) -> bool:
        files = {p.relative_to(self.workdir).as_posix(): p for p in self.workdir.rglob("*")}
        made = {name for name, path in files.items() if not path.is_dir()} - _BOOKKEEPING
        metrics = files.get("metrics.jsonl")
        return not made and (metrics is None or metrics.stat().st_size == 0)

    def _pinned(self) -> dict[str, Any] | None:
        """The config that the folder belongs to, flat; None where it doesn't say."""
        try:
            flat = flatten(storage.read_record(self.workdir / "config.json", sealed=False))
        except storage.DamagedFile:
            return None
        return flat if {"seed", "distill.iterations"} <= set(flat) else None

    def _earlier_times(self) -> dict[str, float]:
        """Seconds of earlier sittings, by stage."""
        if not self._continued:
            return {}
        path = self.workdir / "times.json"
        try:
            record = storage.read_record(path)
            storage.check_place(path, record, {"config": self._identity})
            return record["seconds"]
        except (storage.DamagedFile, KeyError) as error:
            _log.warning("%s: time counts from now", error)
            return {}

    def _save_times(self) -> None:
        record = {"seconds": dict(self._times), "config": self._identity}
        storage.write_record(self.workdir / "times.json", record)

    def _keep_time(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(_HEARTBEAT)
            self._tick()
            with contextlib.suppress(storage.WriteFailed):
                self._save_times()

    def _tick(self) -> None:
        with self._ticking:
            now = time.monotonic()
            spent = self._times.get(self._stage, 0.0) + now - self._last_tick
            self._times[self._stage], self._last_tick = spent, now

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time within as that stage's."""
        self._tick()
        before, self._stage = self._stage, name
        try:
            yield
        finally:
            self._tick()
            self._stage = before

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`, which says whose it is."""
        storage.write_record(
            self.workdir / "result.json", {**result, "config_digest": self._identity}
        )

    def origin(self) -> dict[str, Any]:
        """Command, versions and hardware, which stand beside every figure."""
        return origin(self.command)

    def provenance(self) -> dict[str, Any]:
        """The origin, time and memory, for `result.json`."""
        self._tick()
        times = dict(self._times)
        return {
            **self.origin(),
            "stages": {name: round(value, 1) for name, value in times.items()},
            "seconds": round(sum(times.values()), 1),
            "peak_memory_mb": round(_peak_memory_mb()),
        }


def origin(command: str) -> dict[str, Any]:
    """A command, and the versions and hardware that it runs on."""
    return {
        "command": command,
        "versions": {**_versions(), "python": platform.python_version()},
        "hardware": _hardware(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _hardware() -> dict[str, str]:
    found = jax.devices()
    # The devices of a CPU are its cores.
    kind = found[0].device_kind
    return {
        "device": kind if found[0].platform == "cpu" else f"{len(found)} x {kind}",
        "cpu": _cpu_name(),
        "cores": str(devices.available_cores()),
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
