"""Processes that run together make what one makes, and end together when one is lost."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edf_jax.runtime import console, preemption, processes, storage
from edf_jax.runtime.errors import UserError
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


class _Two:
    """Two processes of one run, each with a file for its lines."""

    def __init__(self, workdir: Path, **settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
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
        (("host:1", 2, 2), "count from 0"),
        (("", -1, -1), "from 1 on"),
    ],
)
def test_flags_that_make_no_sense_are_told(flags, told):
    with pytest.raises(UserError, match=told):
        processes.start(*flags)
