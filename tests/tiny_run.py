"""A run of the whole pipeline that takes seconds, as a command, and what it leaves as digests."""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_CONFIG = ROOT / "configs" / "cluttered_digits.py"
_SETTINGS = {
    "data.resolution": 16,
    "model.width": 4,
    "model.depth": 1,
    "experts.num": 3,
    "experts.group": 2,
    "experts.epochs": 4,
    "experts.batch": 128,
    "distill.ipc": 1,
    "distill.iterations": 40,
    "distill.syn_steps": 3,
    "distill.current_max_start_epoch": 1,
    "distill.max_start_epoch": 3,
    "distill.expansion_end": 20,
    "distill.eval_every": 15,
    "distill.save_every": 6,
    "cam.every": 4,
    "evaluate.num": 2,
    "evaluate.epochs": 2,
    "evaluate.baseline_rates": "0.01,0.03",
    # Runs beside each other must not take each other's experts.
    "experts.share": False,
}
# Of images as pixels, and of parameters that images are decoded from.
_SETS = ("edf_jax distilled set 1", "edf_jax distilled set 2")
# Made by the clock, the machine or the place, not by the run.
_NOT_CONTENT = {
    "time", "seconds", "provenance", "stages", "peak_memory_mb", "workdir", "command", "digest",
    "config_digest",  # A comparison's runs have the folder of their experts in their configs.
    "teacher.dir", "experts.dir", "soft_label_file", "distilled_soft_label_file",
    "best_on_test_soft_label_file", "best_on_held_out_soft_label_file",
}


def arguments(workdir: Path, **settings: Any) -> list[str]:
    """The flags of a tiny run; other settings as `distill__iterations=3`."""
    chosen = {**_SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}}
    return [
        f"--config={_CONFIG}:demo",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in chosen.items()),
    ]


def command(
    workdir: Path, *flags: str, module: str = "edf_jax.main", **settings: Any
) -> list[str]:
    """A tiny run as a process's command."""
    return [sys.executable, "-m", module, *arguments(workdir, **settings), *flags]


def environment() -> dict[str, str]:
    """A process's environment in which compiled programs of earlier runs are found."""
    env = dict(os.environ)
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return env


def contents(workdir: Path) -> dict[str, str]:
    """Digests of all contents: arrays, rows and figures, but no times and no containers.

    Of a comparison those of its runs.
    """
    from edf_jax.runs.metrics import read_metrics
    from edf_jax.runtime import storage

    found: dict[str, str] = {}
    for cell in sorted(path.parent for path in workdir.glob("cells/**/config.json")):
        name = cell.relative_to(workdir).as_posix()
        found |= {f"{name}/{key}": value for key, value in contents(cell).items()}
    for checkpoint in sorted(path.parent for path in workdir.glob("**/arrays")):
        if checkpoint.relative_to(workdir).parts[0] == "cells":
            continue
        name = str(checkpoint.relative_to(workdir))
        try:
            arrays = storage.load_arrays(checkpoint)
        except storage.DamagedFile:
            found[name] = "damaged"
            continue
        for array, values in arrays.items():
            found[f"{name}/{array}"] = storage.digest(values)
        details = storage.load_details(checkpoint)
        found[f"{name} details"] = storage.digest_of_record(_content(details))
    for path in sorted((workdir / "distilled").glob("*.safetensors")):
        try:
            tensors, metadata = storage.load_tensors(path, *_SETS)
        except storage.DamagedFile:
            found[f"distilled/{path.name}"] = "damaged"
            continue
        for tensor, values in tensors.items():
            found[f"distilled/{path.name}/{tensor}"] = storage.digest(values)
        found[f"distilled/{path.name} step"] = metadata["step"]
    # Each stage's rows in their order; what is made again may come after another stage's.
    numbers: collections.Counter[str] = collections.Counter()
    for row in read_metrics(workdir):
        found[f"{row['stage']} row {numbers[row['stage']]}"] = json.dumps(
            _content(row), sort_keys=True
        )
        numbers[row["stage"]] += 1
    for name in ("evaluation.json", "result.json", "experts/store.json"):
        if (workdir / name).exists():
            record = json.loads((workdir / name).read_text())
            found[name] = json.dumps(_content(record), sort_keys=True)
    return found


def _content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _content(v) for k, v in value.items() if k not in _NOT_CONTENT}
    return [_content(v) for v in value] if isinstance(value, list) else value
