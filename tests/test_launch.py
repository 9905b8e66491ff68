"""The launch scripts, with stand-ins for Python, GPUs, SLURM and Google Cloud."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

_LAUNCH = Path(__file__).resolve().parents[1] / "launch"
_SCRIPTS = ("local.sh", "slurm.sh", "sweep.sh", "tpu_vm.sh")
_CONFIG = "configs/imagenette.py:ipc10"
# Says its arguments, and for a run leaves what a finished one does; FAIL names runs that fail.
_PYTHON = """#!/usr/bin/env bash
echo "$(basename "$PWD")$ GPUS=${CUDA_VISIBLE_DEVICES:-} python $*" >>"$CALLS"
if [ "$2" = edf_jax.report ]; then echo "| a table of $(($# - 3)) |"; fi
for argument in "$@"; do
  case "$argument" in --workdir=*)
    folder=${argument#*=}
    if [ "$(basename "$folder")" = "${FAIL:-}" ]; then exit "${STATUS:-2}"; fi
    mkdir -p "$folder" && touch "$folder/result.json" "$folder/report.html" ;;
  esac
done
"""
_SBATCH = """#!/usr/bin/env bash
number=$(($(ls "$JOBS" | wc -l) + 41))
{ echo "# $*"; cat; } >"$JOBS/$number"
echo "$number;cluster"
"""
_GPUS = """#!/usr/bin/env bash
if [ "$1" = -L ]; then printf 'GPU 0: A\\nGPU 1: A\\nGPU 2: A\\n'; else echo 550.54; fi
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


class _Machine:
    """A PATH that begins with stand-ins, and what they were asked for."""

    def __init__(self, folder: Path):
        self.folder, self._bin = folder, folder / "bin"
        self._bin.mkdir()
        self._calls = folder / "calls"
        self._calls.touch()
        self.jobs = folder / "jobs"
        self.jobs.mkdir()
        self.add("python", _PYTHON)

    def add(self, name: str, script: str) -> None:
        path = self._bin / name
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        env |= {
            "PATH": f"{self._bin}{os.pathsep}{env['PATH']}",
            "EDF_PYTHON": str(self._bin / "python"),
            "CALLS": str(self._calls),
            "JOBS": str(self.jobs),
            **variables,
        }
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, check=False
        )

    def launch(self, script: str, *flags: str, **variables: str):
        return self.run(["bash", str(_LAUNCH / script), *flags], **variables)

    def calls(self) -> list[str]:
        lines = self._calls.read_text().splitlines()
        self._calls.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path) -> _Machine:
    return _Machine(tmp_path)


@pytest.mark.parametrize("script", _SCRIPTS)
def test_every_script_tells_how_it_is_used(machine, script):
    told = machine.launch(script, "--help")
    assert told.returncode == 0 and told.stdout.startswith(f"usage: bash launch/{script}")
    wrong = machine.launch(script, "one", "two")
    assert wrong.returncode == 2 and wrong.stderr and not machine.calls()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing(machine):
    found = machine.run(["shellcheck", *map(str, _LAUNCH.glob("*.sh"))])
    assert found.returncode == 0, found.stdout


# One machine.


def test_local_takes_all_gpus_and_splits_batches_over_them(machine):
    machine.add("nvidia-smi", _GPUS)
    workdir = machine.folder / "a b"
    assert machine.launch("local.sh", _CONFIG, f"--workdir={workdir}").returncode == 0
    (call,) = machine.calls()
    assert "GPUS=0,1,2 " in call
    assert call.endswith(f"main --config={_CONFIG} --workdir={workdir} --config.parallel.data=3")


def test_local_takes_some_gpus_split_as_one_says(machine):
    machine.add("nvidia-smi", _GPUS)
    machine.launch("local.sh", "--gpus=2", _CONFIG, "--config.parallel.trajectory=2")
    (call,) = machine.calls()
    assert "GPUS=0,1 " in call and "parallel.data" not in call
    assert machine.launch("local.sh", "--gpus=4", _CONFIG).returncode == 2


@pytest.mark.parametrize(
    ("driver", "there", "extra"),
    [("550.54", "", "cuda12"), ("580.10", "", "cuda13"), ("580.10", "jax_cuda12_plugin", "cuda12"),
     ("550.54", "jax_cuda13_plugin", "cuda13"), ("none", "", "cuda12")],
)  # fmt: skip
def test_the_environment_keeps_to_one_cuda(machine, driver, there, extra):
    machine.add("nvidia-smi", f"#!/usr/bin/env bash\necho {driver}")
    checkout = machine.folder / "checkout"
    (checkout / "launch").mkdir(parents=True)
    shutil.copy(_LAUNCH / "environment.sh", checkout / "launch")
    (checkout / ".venv/lib/python3.12/site-packages" / there).mkdir(parents=True)
    found = machine.run(["bash", "-euc", f"source {checkout}/launch/environment.sh; cuda_extra"])
    assert found.stdout == f"{extra}\n", found.stderr


def test_local_without_gpus_runs_on_the_cpu(machine):
    machine.add("nvidia-smi", "#!/usr/bin/env bash\nexit 9\n")
    assert machine.launch("local.sh", _CONFIG, "--dry_run").returncode == 0
    (call,) = machine.calls()
    assert "GPUS= " in call and call.endswith(f"main --config={_CONFIG} --dry_run")


# SLURM.


def test_slurm_queues_an_array_of_experts_and_then_the_distillation(machine):
    machine.add("sbatch", _SBATCH)
    workdir = machine.folder / "runs" / "x"
    flags = ["--parts=3", "--nodes=2", "--gpus=4", "--sbatch=--partition=gpu --mem=64G"]
    queued = machine.launch(
        "slurm.sh", *flags, _CONFIG, f"--workdir={workdir}", "--config.data.path=/image net"
    )
    assert queued.returncode == 0, queued.stderr
    assert "job 41" in queued.stdout and "job 42" in queued.stdout
    experts, distill = (machine.jobs / name for name in ("41", "42"))
    head = experts.read_text().splitlines()[0]
    assert "--array=1-3" in head and "--partition=gpu --mem=64G" in head and "--signal" in head
    head = distill.read_text().splitlines()[0]
    assert "--dependency=afterok:41" in head and "--nodes=2" in head
    assert "--ntasks-per-node=1" in head and "--gpus-per-node=4" in head

    machine.add("srun", '#!/usr/bin/env bash\nexec "$@"\n')
    assert machine.run(["bash", str(experts)], SLURM_ARRAY_TASK_ID="2").returncode == 0
    assert machine.run(["bash", str(distill)]).returncode == 0
    part, whole = machine.calls()
    for call in (part, whole):
        assert f"--config={_CONFIG} --config.experts.dir={workdir.parent}/experts" in call
        assert "--config.data.path=/image net" in call
    assert "--stage=experts --config.experts.part=2/3" in part and f"={workdir}-part-2" in part
    assert whole.endswith(f"--workdir={workdir} --config.parallel.data=8")


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [
        ("75", "99", True),
        ("143", "99", True),
        ("76", "0", True),
        ("134", "20", False),
        ("2", "0", False),
    ],
)
def test_a_job_that_can_continue_is_queued_again(machine, status, restarts, again):
    machine.add("sbatch", _SBATCH)
    machine.launch("slurm.sh", _CONFIG, f"--workdir={machine.folder / 'x'}")
    machine.add("srun", '#!/usr/bin/env bash\nexec "$@"\n')
    machine.add("scontrol", '#!/usr/bin/env bash\necho "scontrol $*" >>"$CALLS"\n')
    slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
    ended = machine.run(["bash", str(machine.jobs / "42")], FAIL="x", STATUS=status, **slurm)
    assert ended.returncode == int(status)
    assert ("scontrol requeue 7" in machine.calls()) == again


def test_slurm_dry_run_queues_nothing(machine):
    machine.add("sbatch", _SBATCH)
    told = machine.launch("slurm.sh", "--dry_run", _CONFIG, "--workdir=runs/x")
    assert told.returncode == 0 and told.stderr.count("sbatch ") == 2
    assert not list(machine.jobs.iterdir()) and not machine.calls()


# Cloud TPU.


def test_tpu_vm_makes_installs_runs_copies_and_deletes(machine):
    # The VM is not there yet.
    machine.add(
        "gcloud",
        '#!/usr/bin/env bash\necho "$*" | tr "\\n" " " >>"$CALLS"; echo >>"$CALLS"\n'
        '[ "$4" != describe ]\n',
    )
    flags = ["--name=edf", "--zone=z", "--type=v5litepod-16", "--gcloud=--spot", "--delete"]
    workdir = machine.folder / "runs" / "x"
    done = machine.launch("tpu_vm.sh", *flags, _CONFIG, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    verbs = ("describe", "create", "scp", "ssh", "ssh", "scp --recurse", "delete")
    calls = machine.calls()
    assert len(calls) == len(verbs)
    for verb, call in zip(verbs, calls):
        assert call.startswith(f"compute tpus tpu-vm {verb} ") and "--zone=z" in call
    _, create, copy, install, run, back, _ = calls
    assert "--accelerator-type=v5litepod-16" in create and "--spot" in create
    assert all("--worker=all" in call for call in (copy, install, run))
    assert "--version=v2-alpha-tpuv5-lite" in create
    # The image's own Python may be too old.
    assert "uv venv -q --clear --seed --python 3.12" in install
    assert "pip install" in install and "[tpu]" in install
    assert f"-m edf_jax.main --distributed --config={_CONFIG} --workdir={workdir}" in run
    assert "--worker=0" in back


# A sweep.


def test_sweep_runs_what_is_not_finished_and_ends_with_a_table(machine):
    runs = machine.folder / "runs"
    flags = ["--configs=a,b", "--variants=ipc1,ipc10", f"--runs={runs}", "--config.seed=3"]
    first = machine.launch("sweep.sh", *flags, FAIL="a-ipc10")
    assert first.returncode == 1 and "a-ipc10 (status 2)" in first.stderr
    calls = machine.calls()
    assert len(calls) == 5 and calls[-1].count(f" {runs}/") == 3
    assert f"--config=configs/b.py:ipc1 --workdir={runs}/b-ipc1 --config.seed=3" in calls[2]
    assert (runs / "table.md").read_text() == first.stdout == "| a table of 3 |\n"

    second = machine.launch("sweep.sh", *flags)
    assert second.returncode == 0 and second.stderr.count("is finished") == 3
    assert [("a-ipc10" in call) for call in machine.calls()] == [True, True]


def test_sweep_asks_a_finished_run_again_where_flags_differ(machine):
    flags = ["--configs=a", "--variants=ipc1,ipc10", f"--runs={machine.folder / 'runs'}"]
    for seed, calls in (("3", 3), ("3", 1), ("4", 3), ("4", 1)):
        assert machine.launch("sweep.sh", *flags, f"--config.seed={seed}").returncode == 0
        assert len(machine.calls()) == calls
    refused = machine.launch("sweep.sh", *flags, "--config.seed=5", FAIL="a-ipc10")
    assert refused.returncode == 1 and "a-ipc10 (status 2)" in refused.stderr


def test_sweep_stops_when_a_run_is_asked_to(machine):
    flags = ["--configs=a,b", "--variants=ipc1", f"--runs={machine.folder}"]
    assert machine.launch("sweep.sh", *flags, FAIL="a-ipc1", STATUS="75").returncode == 75
    assert len(machine.calls()) == 1
