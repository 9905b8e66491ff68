"""Accelerators to compile for without having one: what their makers publish of them.

XLA compiles for a device that isn't there if it is told what the device is like. For a TPU libtpu
knows that by name; for a GPU the table below is put into the form that XLA's PJRT plug-in takes
(documented in openxla/xla pull requests 16913 and 25919).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

from edf_jax.runtime.errors import UserError

_GB, _TERA = 10**9, 10**12


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of accelerator.

    Attributes:
        name: as `--target` takes it.
        kind: as JAX names such a device.
        memory: bytes that a program can have.
        bandwidth: of that memory, bytes a second.
        rates: operations a second in products, by `config.precision`.
        gpu: for XLA, of a GPU: compute capability, multiprocessors, lanes in each, clock in GHz,
            level-2 cache in MiB, shared memory of a multiprocessor in KiB, and its threads.
        tpu: of a TPU: libtpu's names of topologies with 1 to 4 and with 5 to 8 chips.
    """

    name: str
    kind: str
    memory: int
    bandwidth: float
    rates: dict[str, float]
    gpu: tuple[str, int, int, float, int, int, int] | None = None
    tpu: tuple[str, str] | None = None

    @property
    def extra(self) -> str:
        """The extra that installs its compiler."""
        return "aot-gpu" if self.gpu else "aot-tpu"


def _gpu(name, kind, gigabytes, bandwidth, float32, tf32, bfloat16, *gpu) -> Target:
    rates = _rates(float32, tf32, bfloat16)
    return Target(name, kind, _usable(gigabytes), bandwidth * _GB, rates, gpu=gpu)


def _tpu(name, kind, gigabytes, bandwidth, bfloat16, *topologies) -> Target:
    # float32 and TF32 products are six and three of bfloat16.
    rates = _rates(bfloat16 / 6, bfloat16 / 3, bfloat16)
    return Target(name, kind, _usable(gigabytes), bandwidth * _GB, rates, tpu=topologies)


def _rates(*teraflops: float) -> dict[str, float]:
    return {name: rate * _TERA for name, rate in zip(("float32", "tf32", "bfloat16"), teraflops)}


def _usable(gigabytes: int) -> int:
    """What the driver and its context leave."""
    return int(0.98 * gigabytes * 2**30)


# GiB, GB/s, dense TFLOP/s in float32, TF32 and bfloat16; then what XLA wants to know.
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _gpu("a100_40", "NVIDIA A100-SXM4-40GB", 40, 1555, 19.5, 156, 312,
             "8.0", 108, 64, 1.41, 40, 164, 2048),
        _gpu("a100_80", "NVIDIA A100-SXM4-80GB", 80, 2039, 19.5, 156, 312,
             "8.0", 108, 64, 1.41, 40, 164, 2048),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 80, 3352, 67, 494, 989,
             "9.0", 132, 128, 1.98, 50, 228, 2048),
        _gpu("h200", "NVIDIA H200", 141, 4800, 67, 494, 989,
             "9.0", 132, 128, 1.98, 50, 228, 2048),
        _gpu("l4", "NVIDIA L4", 24, 300, 30.3, 60, 121, "8.9", 58, 128, 2.04, 48, 100, 1536),
        _gpu("l40s", "NVIDIA L40S", 48, 864, 91.6, 183, 362,
             "8.9", 142, 128, 2.52, 96, 100, 1536),
        _gpu("rtx3090", "NVIDIA GeForce RTX 3090", 24, 936, 35.6, 35.6, 71,
             "8.6", 82, 128, 1.70, 6, 100, 1536),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24, 1008, 82.6, 82.6, 165,
             "8.9", 128, 128, 2.52, 72, 100, 1536),
        _tpu("v4", "TPU v4", 32, 1228, 275, "v4:2x2x1", "v4:2x2x2"),
        _tpu("v5e", "TPU v5 lite", 16, 819, 197, "v5e:2x2", "v5e:2x4"),
        _tpu("v5p", "TPU v5", 95, 2765, 459, "v5p:2x2x1", "v5p:2x2x2"),
        _tpu("v6e", "TPU v6 lite", 32, 1640, 918, "v6e:2x2", "v6e:2x4"),
    )
}  # fmt: skip


def parse(text: str) -> tuple[Target, int]:
    """A target and how many of it, of `NAME` or `NAMExN`, as `h100` or `v5ex4`.

    Raises:
        UserError: there is no such target.
    """
    found = re.fullmatch(r"(\w+?)(?:x([1-8]))?", text)
    if found is None or found[1] not in TARGETS:
        raise UserError(
            f"--target={text}: write one of {', '.join(TARGETS)}, or so many up to 8 as h100x4"
        )
    return TARGETS[found[1]], int(found[2] or 1)


def devices_of(target: Target, count: int) -> list[Any]:
    """So many devices that aren't there, to compile for.

    JAX must not have started a back end of its own: the settings count from the first on.

    Raises:
        UserError: the compiler for it isn't installed.
    """
    if importlib.util.find_spec("jax_cuda12_plugin" if target.gpu else "libtpu") is None:
        raise UserError(
            f"--target={target.name} needs a compiler: pip install 'edf_jax[{target.extra}]'"
        )
    import jax
    from jax.experimental import topologies

    # The program that asks computes on the CPU.
    jax.config.update("jax_platforms", "cpu")
    if target.gpu:
        # Autotuning would time kernels on the device.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name=target.name,
            target_config=_target_config(target),
            topology=f"1x1x{count}",
        )
    else:
        assert target.tpu
        name = target.tpu[count > 4]
        os.environ.update(
            TPU_SKIP_MDS_QUERY="1",
            TPU_ACCELERATOR_TYPE={"v5e": "v5litepod"}.get(target.name, target.name)
            + ("-8" if count > 4 else "-4"),
            TPU_WORKER_HOSTNAMES="localhost",
            TPU_WORKER_ID="0",
        )
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    return list(topology.devices)[:count]


def _target_config(target: Target) -> str:
    """The device as XLA's text form of `GpuTargetConfigProto`."""
    assert target.gpu
    capability, cores, lanes, clock, cache, shared, threads = target.gpu
    major, minor = capability.split(".")
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_core: {shared * 1024}
  shared_memory_per_block_optin: {(shared - 1) * 1024}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(target.bandwidth)}
  l2_cache_size: {cache * 2**20}
  clock_rate_ghz: {clock}
  device_memory_size: {target.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{target.kind}"
"""
