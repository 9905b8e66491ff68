"""Adds a finished run's set to the zoo, without anything of the machine that it was made on."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from edf_jax import distilled_set
from edf_jax.distilled_set import ZOO, DistilledSet
from edf_jax.runs import tuned
from edf_jax.runs.files import RunFiles, open_run, selected
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError
from edf_jax.tune import budget
from edf_jax.zoo.catalogue import MOST_BYTES

# Of a row of a result: what another machine can't use, or the card says once.
_LEFT_OUT = ("provenance", "seconds", "soft_label_file")


def add(
    run: str | pathlib.Path, name: str, licence: str, folder: pathlib.Path = ZOO
) -> pathlib.Path:
    """Writes a run's set and its card into the zoo; one of that name is replaced.

    Args:
        run: folder of a finished run; its set is the one that `distill.select` says.
        name: `<data><pixels>-ipc<images per class>-<method>`, as `imagenette32-ipc10-edf`.
        licence: of the real images, in a sentence.
        folder: the zoo's.

    Returns:
        The set's file.

    Raises:
        UserError: the run isn't finished, the name doesn't fit the set, the set is whitened, or
            the zoo would become too large.
    """
    files = open_run(run)
    found, result = distilled_set.load(run), files.result
    kind = selected(result)
    if result.get(f"{kind}_step") != found.step:
        raise UserError(f"{run} isn't finished: the same command continues it")
    if found.normalisation.zca is not None:
        raise UserError(f"{run} is whitened (data.zca), and the matrix isn't in the set's file")
    _check_name(name, found)
    path = folder / f"{name}.safetensors"
    portable = dataclasses.replace(
        found,
        config={key: _without_place(value) for key, value in found.config.items()},
        best={},
    )
    others = (each.stat().st_size for each in folder.glob("*.safetensors") if each != path)
    if sum(portable.stored_bytes) + sum(others) > MOST_BYTES:
        raise UserError(f"with {name} the zoo is larger than {MOST_BYTES // 10**6} MB")
    portable.save(path)
    about = _about(portable, result, licence, path.stat().st_size)
    about["made"]["found"] = _found(files, portable.config)
    card = {"about": about, "result": _portable_result(result)}
    storage.write_record(path.with_suffix(".json"), card)
    return path


def _check_name(name: str, found: DistilledSet) -> None:
    height, count = found.images.shape[1], len(found.images) // len(found.class_names)
    if not re.fullmatch(rf"[a-z][a-z0-9_]*?{height}-ipc{count}-[a-z0-9_]+", name):
        raise UserError(
            f"--name={name}: this set's is of the form DATA{height}-ipc{count}-METHOD, in small "
            "letters, digits and underscores"
        )


def _about(
    found: DistilledSet, result: Mapping[str, Any], licence: str, size: int
) -> dict[str, Any]:
    origin = found.origin
    command = shlex.split(result["command"])
    portable = [_without_place(word) for word in command if not word.startswith("--workdir")]
    return {
        "data": {
            "name": origin["name"],
            "digest": origin["digest"],
            "resolution": origin["resolution"],
            "classes": origin["classes"],
            "class_names": list(found.class_names),
        },
        "method": found.config["method"],
        "width": found.config["model.width"],
        "seed": found.config["seed"],
        "images": len(found.images),
        "bytes": size,
        "digest": found.digest,
        "licence": licence,
        "made": {
            "command": shlex.join(portable),
            "versions": result["versions"],
            "hardware": result["hardware"],
        },
    }


def _found(run: RunFiles, config: Mapping[str, Any]) -> list[str]:
    """The flags that pin what a run found by itself: another machine would find other sizes."""
    sizes = {key: config[key] for key in budget.KEYS if config.get("budget.minutes")}
    chosen = {**sizes, **run.tuned.get("chosen", {})}
    return tuned.flags(chosen, config.get("distill.alpha_step", "log"))


def _portable_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result's figures without the run's place, time and memory."""
    rows = [{k: v for k, v in row.items() if k not in _LEFT_OUT} for row in result["rows"]]
    places = ("workdir", "stages", "seconds", "peak_memory_mb", "metrics_rows", "command")
    left_out = (*places, "versions", "hardware")
    kept = {k: v for k, v in result.items() if k not in left_out and not k.endswith(_LEFT_OUT)}
    return {**kept, "rows": rows}


def _without_place(value: Any) -> Any:
    """A value of a config, or a word of a command, with only the name of a path on this machine."""
    if not isinstance(value, str):
        return value
    flag, separator, path = value.rpartition("=")
    if path.startswith(("/", "~", "..")):
        path = pathlib.PurePath(path).name
    return f"{flag}{separator}{path}"
