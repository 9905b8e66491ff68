"""Several processes, on one machine or many, that run one program together.

All of them compute the same programs on the same values. What a program depends on besides, that is
files and the clock, the first process looks at, and tells the others (`from_first_process`); it
alone writes the run's files. So only the first needs the run's folder; the images are read by each.

A process that ends before the others takes them along: they stop at the next value that they
share or compute together, or are ended by JAX's coordination service.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from edf_jax.runtime import preemption
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.process_group import LEAVE_SECONDS, Arrays, Group

# A process that can't be heard for so long is taken for dead, and ends the others.
_HEARTBEAT_SECONDS = 120
_CONNECT_SECONDS, _LOOK_SECONDS = 300, 0.5
_PORTS, _FIRST_PORT = 4096, 61440
# What errors of XLA, Gloo and NCCL say where another process has gone.
_OF_A_LOSS = re.compile(
    r"UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|Gloo|NCCL|by peer|coordination", re.IGNORECASE
)

_T = TypeVar("_T")
_group: Group | None = None
_joining: threading.Thread | None = None


def start(
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    *,
    distributed: bool = False,
) -> None:
    """Joins the other processes, if there are to be any; before the first computation.

    Without arguments a process joins the others of its SLURM step, or of its TPU pod where the
    environment names the pod's hosts; it is alone in a step of one task, and outside of a step.

    Args:
        coordinator: `host:port` of the first process.
        num_processes: how many there are; 1 is alone whatever the environment says.
        process_id: which this one is, from 0.
        distributed: let JAX find the others.

    Raises:
        UserError: flags don't make sense together, or the others can't be reached.
        Preempted: asked to stop while the others are waited for.
    """
    global _group, _joining
    place = _place(coordinator, num_processes, process_id, distributed)
    if place is None:
        return
    # SIGTERM is ours (`preemption`).
    jax.config.update("jax_enable_preemption_service", False)
    if place.get("process_id", 0) > 0:
        _wait_for_first(place["coordinator_address"])
    failed: list[Exception] = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                **place,
                initialization_timeout=_CONNECT_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=int(LEAVE_SECONDS),
            )
            # All exchange what devices they have here, whatever any of them computes later.
            jax.devices()
        except Exception as error:
            failed.append(error)

    # In a thread, for Python hears no signal while JAX waits for the others.
    _joining = threading.Thread(target=join, daemon=True)
    _joining.start()
    while _joining.is_alive():
        _joining.join(_LOOK_SECONDS)
        preemption.stop_if_asked()
    if failed:
        told = (str(failed[0]).strip() or type(failed[0]).__name__).splitlines()[0][:200]
        raise UserError(f"the processes of this run can't be joined: {told}") from failed[0]
    if jax.process_count() > 1:
        _group = Group()
        preemption.agree = _group.any_is_asked
    if not is_first():
        for name in ("", "edf_jax"):
            logging.getLogger(name).setLevel(logging.ERROR)


def check_flags(coordinator: str, num_processes: int, process_id: int) -> None:
    """Refuses flags of `start` that don't make sense.

    Raises:
        UserError: says which, and what would do.
    """
    if num_processes < 0:
        raise UserError(f"--num_processes={num_processes}: give a number from 1 on")
    if not coordinator and process_id < 0 and num_processes < 2:
        return
    if not coordinator or num_processes < 1 or process_id < 0:
        raise UserError("--coordinator, --num_processes and --process_id only go together")
    written = re.fullmatch(r"(?:[^:\s]+|\[[^\]\s]+\]):(\d{1,5})", coordinator)
    if written is None or not 0 < int(written[1]) < 2**16:
        raise UserError(f"--coordinator={coordinator}: write HOST:PORT, of the first process")
    if process_id >= num_processes:
        raise UserError(
            f"--process_id={process_id} of --num_processes={num_processes}: count from 0"
        )


def _place(
    coordinator: str, num_processes: int, process_id: int, distributed: bool
) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be given; None for a process alone."""
    check_flags(coordinator, num_processes, process_id)
    if coordinator and num_processes > 1:
        if process_id == 0:
            _check_listens(coordinator)
        return {
            "coordinator_address": coordinator,
            # JAX's own choice is every network that the machine is in.
            "coordinator_bind_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    if num_processes == 1:
        return None
    slurm = _slurm_place(os.environ)
    if slurm is not None:
        return slurm
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return {} if distributed or "," in hosts else None


def _check_listens(address: str) -> None:
    """Refuses an address that this process can't listen at: JAX's own try may end in a crash."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, _, _, _, place = found[0]
        socket.create_server(place[:2], family=family).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--coordinator={address}: process 0 can't listen there ({error}); give an address of "
            "its machine and a free port"
        ) from error


def _wait_for_first(address: str) -> None:
    """Returns when the first process listens: JAX, which waits as long, ends in a crash if not."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + _CONNECT_SECONDS
    while True:
        preemption.stop_if_asked()
        try:
            return socket.create_connection((host.strip("[]"), int(port)), _LOOK_SECONDS).close()
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"the first process doesn't answer at {address} ({error}): start it too, and "
                    "give all of them an address at which the others reach it"
                ) from error
        time.sleep(_LOOK_SECONDS)


def _slurm_place(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """A task's place among those of its step (`srun`); None where it is alone or in no step.

    JAX's own detection would also take a batch script for the first of its job's tasks, and give a
    task that has several GPUs only one of them.
    """
    try:
        tasks = int(environment["SLURM_STEP_NUM_TASKS"])
        process, local = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", 0))
        nodes = environment["SLURM_STEP_NODELIST"]
    except (KeyError, ValueError):
        return None
    if tasks < 2:
        return None
    # "node007", "node007,other" or "node[007-009,012],other".
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    host = "".join(filter(None, first.groups())) if first else nodes
    place: dict[str, Any] = {
        "coordinator_address": f"{host}:{_FIRST_PORT + (job + step) % _PORTS}",
        "num_processes": tasks,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }
    here = _tasks_by_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    on_node = here[min(int(environment.get("SLURM_NODEID", 0)), len(here) - 1)]
    gpus = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if on_node > 1 and len(gpus) >= on_node:
        # All tasks of the node see the same GPUs: each takes its share.
        share = len(gpus) // on_node
        place["local_device_ids"] = list(range(local * share, (local + 1) * share))
    return place


def _tasks_by_node(text: str) -> list[int]:
    """SLURM's "2(x3),1" as [2, 2, 2, 1]."""
    counts: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(times or 1)
    return counts or [1]


def count() -> int:
    """How many processes run together."""
    return 1 if _group is None else _group.count


def is_first() -> bool:
    """Whether this process decides, and writes files."""
    return _group is None or _group.index == 0


def from_first_process(what: str, make: Callable[[], _T]) -> _T:
    """A value that the first process makes, the same in all processes.

    All of them call it in the same order. What runs within `make`, within `in_every_process` or in
    another thread is this process's own business: there, `make` is simply called.

    Args:
        what: is made, in a few words; checked to be the same in all processes.
        make: called in the first process; returns what JSON holds.

    Raises:
        UserError: `make` raised it, in all processes; likewise `Preempted`.
        Left: another process ended with a failure.
    """
    return arrays_from_first_process(what, lambda: (make(), {}))[0]


def arrays_from_first_process(
    what: str, make: Callable[[], tuple[_T, Arrays]]
) -> tuple[_T, Arrays]:
    """As `from_first_process`, of a value and arrays by name."""
    if _group is None or _group.is_apart():
        return make()
    return _group.from_first_process(what, make)


@contextlib.contextmanager
def in_every_process() -> Iterator[None]:
    """Each process does the work within by itself; it is well only if it is so in all.

    Raises:
        UserError: raised within, or in another process, which is named; likewise `Preempted`.
    """
    if _group is None or _group.is_apart():
        yield
        return
    with _group.in_every_process():
        yield


def check_same(what: str, value: Any) -> None:
    """Refuses to go on where another process has another value than the first.

    Args:
        what: it is, for the message.
        value: as JSON holds it.

    Raises:
        UserError: in all processes; names the one that differs.
    """
    firsts = from_first_process(what, lambda: value)
    with in_every_process():
        if firsts != json.loads(json.dumps(value)):
            raise UserError(f"{what} differs from the first process's: start all of them alike")


def is_loss(error: BaseException) -> bool:
    """Whether an error of a computation says that another process has gone."""
    return _group is not None and _OF_A_LOSS.search(str(error)) is not None


def process_name() -> str:
    """This process for people; '' for the first."""
    return "" if _group is None or _group.index == 0 else f"process {_group.index}"


def leave(status: int) -> int:
    """Ends this process's part.

    Args:
        status: that it ends with.

    Returns:
        The status. Does not return from a failure: others that are still at work would wait for
        this process, and it for them.
    """
    if _group is not None:
        _group.leave(status)
    if _joining is not None and _joining.is_alive():
        # Asked to stop before all were there: JAX would tell of it in lines of its own.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
