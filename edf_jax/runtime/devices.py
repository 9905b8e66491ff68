"""Devices: what there is, and their set-up: precision, compilation cache, the host's allocator."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from edf_jax.runtime.errors import UserError

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 2**31 - 1

# More shares of a usual batch than this are too small to be worth it.
_MOST_CORES = 16
_CORE_FLAGS = ("xla_force_host_platform_device_count", "xla_cpu_multi_thread_eigen")
_ONE_THREAD, _SAME_BITS = "--xla_cpu_multi_thread_eigen=false", "--xla_gpu_deterministic_ops=true"
# What JAX can be told, by its environment or otherwise, that changes a run's numbers.
_NUMERICS = (
    "jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_default_matmul_precision",
)

PRECISIONS = ("float32", "tf32", "bfloat16")


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks for the next allocation.

    XLA's CPU backend allocates its temporaries anew at each call. By default glibc gets large
    blocks from the kernel and gives them back each time, and clearing the fresh pages took up to
    half of a matching step. Does nothing where the C library isn't glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def use_every_core() -> None:
    """Makes a device of each core of a CPU, where this is decided nowhere else.

    Work that is spread over devices then keeps all cores busy, each with its own part of a batch
    or its own network; XLA's threads inside an operation do so less well, and get in the way of
    the devices, so they are turned off. Does nothing once JAX has started its devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    count = min(available_cores(), _MOST_CORES)
    chosen = jax.config.jax_num_cpu_devices > 0 or any(name in flags for name in _CORE_FLAGS)  # type: ignore[attr-defined]
    if count < 2 or chosen:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {_ONE_THREAD}".strip()


def available_cores() -> int:
    """The cores that this process may use: what a container or scheduler leaves it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_precision(precision: str) -> None:
    """Sets what float32 products are computed in: true float32 everywhere unless asked for less.

    Args:
        precision: one of `PRECISIONS`. JAX's own default would be TF32 on newer NVIDIA GPUs and
            bfloat16 on TPUs.
    """
    jax.config.update(
        "jax_default_matmul_precision",
        {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}[precision],
    )


def compute_dtype(precision: str) -> jnp.dtype | None:
    """The networks' compute dtype: bfloat16 where asked, else that of the parameters (None)."""
    return jnp.bfloat16 if precision == "bfloat16" else None


def use_compilation_cache(folder: str | os.PathLike | None = None) -> None:
    """Keeps compiled programs in the user's cache folder, unless a cache is already configured."""
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        path = pathlib.Path(folder or pathlib.Path(base) / "edf_jax" / "compiled")
        # JAX makes the folder when there is something to keep.
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    except (OSError, RuntimeError):  # No home, or no path.
        return
    if not there.is_dir() or not os.access(there, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def set_up(
    precision: str, *, deterministic: bool = False, join: Callable[[], None] = lambda: None
) -> None:
    """Everything that must be decided before the first computation; starts the devices.

    Args:
        precision: one of `PRECISIONS`.
        deterministic: make GPU kernels give the same bits every time.
        join: other processes, which must be done before the devices start.

    Raises:
        UserError: the environment asks for devices that aren't there, or XLA doesn't know its
            flags.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not set(flags.split()) <= {_ONE_THREAD, _SAME_BITS}:
        _check_flags(flags)
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{flags} {_SAME_BITS}".strip()
    keep_freed_memory()
    use_every_core()
    set_precision(precision)
    use_compilation_cache()
    join()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # The latter of CUDA without its plugin.
        asked = os.environ.get("JAX_PLATFORMS", "")
        told = (str(error).strip() or "JAX knows none").splitlines()[0][:200]
        raise UserError(f"JAX_PLATFORMS={asked!r}: no such device is here ({told})") from error


@functools.cache
def _check_flags(flags: str) -> None:
    """Refuses flags that XLA would end this very process for."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    tried = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=environment, stderr=subprocess.PIPE, text=True, errors="replace",
    )
    if tried.returncode:
        told = (tried.stderr.strip() or "XLA ends").splitlines()[0].rpartition("] ")[2]
        raise UserError(f"XLA_FLAGS={flags!r} can't be used: {told}")


def numerics() -> dict[str, Any]:
    """What changes a run's numbers besides its config and versions, by name."""
    found = {name: getattr(jax.config, name, None) for name in _NUMERICS}
    return {**found, "NVIDIA_TF32_OVERRIDE": os.environ.get("NVIDIA_TF32_OVERRIDE")}


@dataclasses.dataclass(frozen=True)
class Device:
    """Where a run would compute.

    Attributes:
        kind: as JAX names it.
        count: how many there are, over all processes.
        memory: bytes of one device, or of the host where that is the device; None if unknown.
    """

    kind: str
    count: int
    memory: int | None


# Devices to compile for that aren't here, and what one is; None where work is done here.
_elsewhere: tuple[Sequence[jax.Device], Device] | None = None


@contextlib.contextmanager
def elsewhere(devices: Sequence[jax.Device], each: Device) -> Iterator[None]:
    """Within it, what is traced is for devices that aren't here (see `plan.targets`).

    Args:
        devices: to place work on, in `jax.sharding`.
        each: what is told of one of them.
    """
    global _elsewhere
    before, _elsewhere = _elsewhere, (devices, each)
    try:
        yield
    finally:
        _elsewhere = before


def all_devices() -> Sequence[jax.Device]:
    """What work is placed on: JAX's devices, or those that `elsewhere` is about."""
    return jax.devices() if _elsewhere is None else _elsewhere[0]


def platform() -> str:
    """The kind of device that work is done on, such as `cpu`, as JAX names it."""
    return all_devices()[0].platform


def local_device() -> Device:
    """The device that work would be done on; starts JAX's back end."""
    if _elsewhere is not None:
        return _elsewhere[1]
    first = jax.local_devices()[0]
    if first.platform == "cpu":
        return Device(first.device_kind, jax.device_count(), host_memory())
    stats = first.memory_stats() or {}
    return Device(first.device_kind, jax.device_count(), stats.get("bytes_limit"))


def host_memory() -> int | None:
    """The host's memory, or what a container leaves of it; None where the system doesn't tell."""
    found = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(pathlib.Path(path).read_text()))
    return min(found, default=None)
