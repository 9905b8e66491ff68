"""Processes that run together make what one makes, and end together when one is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edf_jax.runtime import console, preemption, processes, storage
from edf_jax.runtime.errors import Preempted, UserError
from tests import tiny_run

_SETTINGS = {
    "experts.num": 3,
    "experts.group": 3,
    "experts.epochs": 3,
    "distill.max_start_epoch": 2,
    "distill.iterations": 5,
    "distill.trajectories": 2,
    "distill.eval_every": 4,
    "distill.save_every": 2,
    "evaluate.baselines": "",
    "log.tensorboard": False,
}
_SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[007-008],other",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class _Two:
    """Two processes of one run, each with a file for its lines."""

    def __init__(self, workdir: Path, **settings):
        port = _free_port()
        self._files = [workdir.with_name(f"{workdir.name}_{i}.txt") for i in range(2)]
        self.processes = [
            subprocess.Popen(
                [
                    *tiny_run.command(workdir, "--stage=evaluate", **_SETTINGS, **settings),
                    f"--coordinator=127.0.0.1:{port}",
                    "--num_processes=2",
                    f"--process_id={i}",
                ],
                env=tiny_run.environment(),
                cwd=tiny_run.ROOT,
                stdout=subprocess.DEVNULL,
                stderr=open(file, "w"),
            )
            for i, file in enumerate(self._files)
        ]

    def said(self, process: int) -> str:
        return self._files[process].read_text()

    def wait_for(self, line: str) -> None:
        """Returns when the first process has said it."""
        while line not in self.said(0):
            assert self.processes[0].poll() is None, self.said(0)
            time.sleep(0.02)

    def end(self) -> list[int]:
        """The statuses of both."""
        return [process.wait(timeout=300) for process in self.processes]


def _one(workdir: Path) -> None:
    command = tiny_run.command(workdir, "--stage=evaluate", **_SETTINGS)
    subprocess.run(
        command, env=tiny_run.environment(), cwd=tiny_run.ROOT, check=True, capture_output=True
    )


def _files(workdir: Path) -> set[str]:
    """Relative paths; Orbax names some files by their contents."""
    names = (str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file())
    return {re.sub("[0-9a-f]{32}", "...", name) for name in names}


def _arrays(workdir: Path) -> Iterator[tuple[str, np.ndarray]]:
    for checkpoint in sorted(path.parent for path in workdir.glob("**/arrays")):
        for name, array in storage.load_arrays(checkpoint).items():
            yield f"{checkpoint.relative_to(workdir)}/{name}", array
    for path in sorted((workdir / "distilled").glob("*.safetensors")):
        for name, array in storage.load_tensors(path, "edf_jax distilled set 1")[0].items():
            yield f"{path.name}/{name}", array


def test_two_processes_lose_one_continue_and_make_what_one_makes(tmp_path):
    _one(tmp_path / "one")
    workdir = tmp_path / "two"
    spread = {"parallel__trajectory": 2}

    killed = _Two(workdir, **spread)
    killed.wait_for("distill: 0/5")
    killed.processes[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert killed.end() == [console.LOST, -signal.SIGKILL], killed.said(0)
    assert time.monotonic() - began < 120
    last = killed.said(0).splitlines()[-1]
    assert "another process of this run is lost" in last and "continues" in last
    assert not (workdir / "distilled" / "last.safetensors").exists()

    again = _Two(workdir, **spread)
    assert again.end() == [0, 0], again.said(0) + again.said(1)
    assert "experts: " not in again.said(0)
    assert not re.search("experts|distill|evaluate", again.said(1))

    assert _files(workdir) == _files(tmp_path / "one")
    ones, twos = dict(_arrays(tmp_path / "one")), dict(_arrays(workdir))
    assert ones.keys() == twos.keys() and len(ones) > 20
    worst = max(
        float(np.linalg.norm(twos[name] - one) / max(np.linalg.norm(one), 1e-6))
        for name, one in ones.items()
    )
    print(f"relative error of {len(ones)} arrays: {worst:.1e}")
    assert worst < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_any_process_may_be_asked_to_stop(tmp_path, asked):
    two = _Two(tmp_path / "run", distill__iterations=4000)
    two.wait_for("distill: 0/4000")
    two.processes[asked].send_signal(signal.SIGTERM)
    assert two.end() == [console.PREEMPTED] * 2, two.said(0)
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def test_the_coordinator_listens_where_it_is_told_to_and_nowhere_else(tmp_path):
    def listens(host: str) -> bool:
        with socket.socket() as one:
            return one.connect_ex((host, port)) == 0

    port = _free_port()
    waiting = subprocess.Popen(
        [
            *tiny_run.command(tmp_path / "run"),
            f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0",
        ],
        env=tiny_run.environment(), cwd=tiny_run.ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not listens("127.0.0.1"):
        assert waiting.poll() is None
        time.sleep(0.05)
    # All of 127.0.0.0/8 is this machine, so it would hear at any address at which it listened.
    assert not listens("127.0.0.2")
    waiting.send_signal(signal.SIGTERM)
    _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == console.PREEMPTED, said
    assert said.startswith("edf_jax: asked to stop by SIGTERM") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["192.0.2.1:7777", "no.such.host.at.all:7777"])
def test_an_address_where_the_coordinator_cannot_listen_is_told(address):
    with pytest.raises(UserError, match="process 0 can't listen there"):
        processes.start(address, 2, 0)


def test_a_first_process_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr(processes, "_CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(processes, "_LOOK_SECONDS", 0.05)
    with pytest.raises(UserError, match="the first process doesn't answer at 127.0.0.1:"):
        processes.start(f"127.0.0.1:{_free_port()}", 2, 1)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_who_waits_for_the_first_process_hears_signals(number, error):
    with preemption.listening():
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        with pytest.raises(error):
            processes.start(f"127.0.0.1:{_free_port()}", 2, 1)


def test_a_process_alone_shares_with_itself():
    assert processes.count() == 1 and processes.is_first() and processes.process_name() == ""
    assert processes.from_first_process("a number", lambda: 3) == 3
    processes.check_same("a number", 3)
    with processes.in_every_process():
        pass
    assert not preemption.asked() and processes.leave(2) == 2


def test_nothing_joins_unless_there_are_others(monkeypatch):
    for name in _SLURM:
        monkeypatch.delenv(name, raising=False)
    alone = ("", 0, -1, False)
    assert processes._place(*alone) is None
    for name, value in _SLURM.items():
        monkeypatch.setenv(name, value)
    place = processes._place(*alone)
    assert place["coordinator_address"] == "node007:61444"
    assert (place["num_processes"], place["process_id"]) == (3, 1)
    assert "local_device_ids" not in place
    # What one who knows better says goes.
    assert processes._place("", 1, -1, False) is None
    # An interactive shell or a job of one task, and the script of a job of many.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert processes._place(*alone) is None
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert processes._place(*alone) is None


def test_tasks_that_see_the_same_gpus_share_them():
    tasks = {
        **_SLURM,
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_LOCALID": "1",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    }
    assert processes._slurm_place(tasks)["local_device_ids"] == [2, 3]
    assert "local_device_ids" not in processes._slurm_place({**tasks, "SLURM_NODEID": "2"})
    bound = {**tasks, "CUDA_VISIBLE_DEVICES": "1"}
    assert "local_device_ids" not in processes._slurm_place(bound)


def test_a_tpu_pod_is_found_by_its_hosts(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert processes._place("", 0, -1, False) is None
    assert processes._place("", 0, -1, True) == {}
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert processes._place("", 0, -1, False) == {}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("host:1", 0, 0), "only go together"),
        (("", 2, -1), "only go together"),
        (("", 0, 0), "only go together"),
        (("host", 2, 0), "HOST:PORT"),
        (("127.0.0.1:0", 2, 0), "HOST:PORT"),
        (("127.0.0.1:70000", 2, 1), "HOST:PORT"),
        (("host:1", 2, 2), "count from 0"),
        (("", -1, -1), "from 1 on"),
    ],
)
def test_flags_that_make_no_sense_are_told(flags, told):
    with pytest.raises(UserError, match=told):
        processes.start(*flags)
