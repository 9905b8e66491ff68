"""The dry run: what a run would do, need and take, told without data and without compiling.

`make_plan` also refuses what only the sizes tell to be impossible, so a run makes its plan first.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import shutil
from typing import Any

from edf_jax.config import files
from edf_jax.config.resolve import (
    METHODS,
    SCHEMA,
    autos,
    flatten,
    network_list,
    reckoned,
)
from edf_jax.data import whitening
from edf_jax.data.catalogue import is_fastai
from edf_jax.data.describe import describe_dataset
from edf_jax.data.load import find_cache_dir
from edf_jax.experts.settings import group_size
from edf_jax.experts.train import needed_epochs
from edf_jax.matching.placement import place
from edf_jax.methods import family
from edf_jax.models.choose import network_for
from edf_jax.plan import hours, memory
from edf_jax.plan.hours import evaluations
from edf_jax.runtime import devices
from edf_jax.runtime.errors import UserError

# Whose settings a config file's are where it doesn't say.
_EDF = SCHEMA["method"].default


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it is started.

    Attributes:
        config: resolved.
        data: what `describe_dataset` says.
        network: of experts and students.
        num_images: n, synthetic, as students see them.
        snapshots: of experts, as many as are trained.
        experts_bytes: on disk in the end.
        experts_peak_bytes: on disk while they are trained.
        disk_free: bytes where the run would lie; None if unknown.
        memory: peak bytes of each stage on one device, and of `iteration` and `maps`, which are
            parts of distillation.
        compiled: XLA's own figure for `iteration`; None where not asked for.
        device: where it would compute.
        hours: of each stage; None where no rate is known.
        warnings: what would go wrong, each with what would do.
        autos: keys whose numbers are found from the data; `config` has usual ones for them.
    """

    config: Any
    data: Any
    network: Any
    num_images: int
    snapshots: int
    experts_bytes: int
    experts_peak_bytes: int
    disk_free: int | None
    memory: dict[str, int]
    compiled: int | None
    device: Any
    hours: dict[str, float | None]
    warnings: tuple[str, ...]
    autos: tuple[str, ...] = ()


def describe(config, workdir: pathlib.Path | str, *, compile: bool = False) -> str:
    """The plan of a run as text, which is what `--dry_run` prints.

    Args:
        config: resolved.
        workdir: where the run would lie.
        compile: adds XLA's figure for the outer iteration, which takes a compilation.

    Raises:
        UserError: what is asked for is impossible, or nothing is known about the data.
    """
    # A plan needs a device's figures, not its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    devices.set_up(config.precision, deterministic=config.deterministic)
    data = describe_dataset(config.data)
    return to_text(make_plan(config, data, workdir, compile=compile))


def make_plan(config, data, workdir: pathlib.Path | str = ".", *, compile: bool = False) -> Plan:
    """Counts, sizes, memory and hours of a run.

    Args:
        config: resolved.
        data: what `describe_dataset` says.
        workdir: where the run would lie.
        compile: measures the outer iteration by compiling it.

    Raises:
        UserError: names a setting that the sizes make impossible.
    """
    asked, config = config, reckoned(config)
    network = network_for(config, data)
    options = config.evaluate
    evaluated = [
        network_for(config, data, name, width=options.width)
        for name in network_list(options.networks) or [""]
    ]
    num_images = family.num_images(config.distill, data.num_classes)
    _check_sizes(config, data)
    placement = place(config, network, num_images)
    if not options.distilled:
        placement = memory.place_iteration(config, network, num_images)

    experts = config.experts
    per_snapshot = 4 * network.num_params * (2 if experts.momentum else 1)
    epochs = experts.epochs + 1
    kept = len(needed_epochs(config)) if experts.keep == "needed" else epochs

    evaluation = [
        memory.evaluation_bytes(config, n, num_images, data.num_test, options.num)
        for n in evaluated
    ]
    during = memory.evaluation_bytes(config, network, num_images, data.num_test, options.during_num)
    needs = {
        "experts": memory.experts_bytes(config, network, data.num_train, data.num_test),
        "iteration": memory.iteration_bytes(config, network, num_images, placement),
        "maps": memory.maps_bytes(config, network, num_images),
        "evaluation": max(*evaluation, during),
    }
    needs["distillation"] = max(needs["iteration"], needs["maps"], during)
    device = devices.local_device()
    compiled = None
    if compile:
        compiled = memory.compiled_iteration_bytes(config, network, num_images)
    counts = (num_images, data.num_train, data.num_test)
    work = hours.stage_work(config, network, *counts, evaluated)
    plan = Plan(
        config=config,
        data=data,
        network=network,
        num_images=num_images,
        snapshots=experts.num * epochs,
        experts_bytes=experts.num * kept * per_snapshot,
        experts_peak_bytes=experts.num * epochs * per_snapshot,
        disk_free=_disk_free(pathlib.Path(experts.dir or workdir)),
        memory=needs,
        compiled=compiled,
        device=device,
        hours=hours.estimate(work, hours.forward_flops(network), device.kind, config.precision),
        warnings=(),
        autos=autos(flatten(asked)),
    )
    return dataclasses.replace(plan, warnings=tuple(_warnings(plan)))


def _check_sizes(config, data) -> None:
    """Refuses what the published or counted sizes make impossible."""
    if data.num_classes < 2:
        raise UserError(f"{data.name} has {data.num_classes} class; distilling needs two or more")
    options = config.distill
    stored = family.parametrisation(options)
    side = min(data.image_shape[:2])
    if stored.images > side**2:
        raise UserError(
            f"distill.parametrisation_factor={options.parametrisation_factor} makes "
            f"{stored.images} images of one of {side} pixels a side: lower it"
        )
    if options.ipc * stored.real * data.num_classes > data.num_train:
        each = f" times {stored.real} real images in each" if stored.real > 1 else ""
        raise UserError(
            f"distill.ipc={options.ipc}{each} in {data.num_classes} classes is more than the "
            f"{data.num_train} training images of {data.name}: lower it"
        )
    weights = config.cam.weights
    if weights and not pathlib.Path(weights).expanduser().is_file():
        raise UserError(f"cam.weights={weights} is not a file")


def _disk_free(folder: pathlib.Path) -> int | None:
    """Free bytes where a folder is or would be made."""
    folder = folder.expanduser().absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _warnings(plan: Plan) -> list[str]:

    config, room = plan.config, plan.device.memory
    warnings = []
    options, experts = config.distill, config.experts
    steps = options.expert_epochs * -(-plan.data.num_train // experts.batch)
    found = "distill.lr_teacher" in plan.autos
    if not found and options.syn_steps * options.lr_teacher > 2 * steps * experts.lr:
        warnings.append(
            f"a student takes {options.syn_steps} steps where an expert takes {steps}, so most "
            "matching losses will be over distill.threshold and teach nothing: lower experts.batch "
            "or distill.syn_steps"
        )
    if _devices_needed(config) > plan.device.count:
        warnings.append(_too_few_devices(plan))
    if plan.disk_free is not None and plan.experts_peak_bytes > plan.disk_free:
        warnings.append(
            f"the experts don't fit on the disk ({_size(plan.disk_free)} free): set experts.num or "
            "experts.epochs lower, or experts.dir to another disk"
        )
    warnings += _zca_warnings(plan)
    if room is None:
        return warnings
    too_large = [stage for stage, need in plan.memory.items() if need > room]
    if "iteration" in too_large:
        batch = memory.fitting_batch(config, plan.network, plan.num_images, room)
        advice = f"set distill.batch_syn={batch}" if batch else "take a smaller data.resolution"
        warnings.append(f"an outer iteration doesn't fit into {_size(room)}: {advice}")
    if "maps" in too_large:
        warnings.append(
            f"the activation maps don't fit into {_size(room)}: lower distill.ipc, or set "
            "cam.method=grad_cam if it is another"
        )
    if "experts" in too_large:
        group = group_size(config)
        smaller = f"experts.group={max(1, group // 2)}" if group > 1 else "a lower experts.batch"
        warnings.append(f"expert training doesn't fit into {_size(room)}: set {smaller}")
    if "evaluation" in too_large:
        warnings.append(
            f"evaluation doesn't fit into {_size(room)}: lower evaluate.num or evaluate.batch"
        )
    return warnings


def _zca_warnings(plan: Plan) -> list[str]:
    if not plan.config.data.zca:
        return []
    size = math.prod(plan.data.image_shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _disk_free(find_cache_dir(plan.config.data))
    advice = "set data.zca=False or take a smaller data.resolution"
    warnings = []
    if whitening.fit_bytes(size) > memory:
        warnings.append(f"ZCA doesn't fit into the host's {_size(memory)}: {advice}")
    if free is not None and whitening.stored_bytes(size) > free:
        warnings.append(f"the ZCA matrices don't fit on the data cache's disk: {advice}")
    return warnings


def _devices_needed(config) -> int:
    return config.parallel.trajectory * max(1, config.parallel.data)


def _too_few_devices(plan: Plan) -> str:
    parallel = plan.config.parallel
    return (
        f"parallel.trajectory={parallel.trajectory} times parallel.data={parallel.data} needs "
        f"{_devices_needed(plan.config)} devices, but there are {plan.device.count}: lower one"
    )


def check_memory(plan: Plan) -> None:
    """Refuses a run that is sure not to fit on the devices that are there.

    Raises:
        UserError: there are too few, or an estimate is over the memory of one by more than the
            estimate's error.
    """
    if _devices_needed(plan.config) > plan.device.count:
        raise UserError(_too_few_devices(plan))
    room = plan.device.memory
    if room is not None and max(plan.memory.values()) > 1.25 * room:
        raise UserError(next(w for w in plan.warnings if "fit into" in w))


def to_text(plan: Plan) -> str:
    """The plan for people, a topic a paragraph."""
    rows = [
        ("run", _run_lines(plan)),
        ("data", _data_lines(plan)),
        ("experts", _experts_lines(plan)),
        ("distillation", _distillation_lines(plan)),
        ("evaluation", _evaluation_lines(plan)),
        ("memory", _memory_lines(plan)),
        ("time", [_hours_line(plan)]),
        *(("warning", [warning]) for warning in plan.warnings),
    ]
    return "\n".join(
        f"{topic if first else '':13} {line}"
        for topic, lines in rows
        for first, line in zip([True] + [False] * len(lines), lines)
    )


def _run_lines(plan: Plan) -> list[str]:
    config = plan.config
    method, of = config.method.upper(), config.settings_of
    if not of:
        settings = "unpublished settings"
    elif config.published:
        settings = f"settings published for {method} ({of})"
    elif config.method == _EDF:
        settings = f"unpublished: settings of {of}"
    else:
        settings = f"settings of EDF's config ({of}), not published for {method}"
    if is_fastai(plan.data.name):
        settings += ", here with another split of the images"
    changed = ", ".join(_changed(config))
    lines = [
        f"{config.method}, IPC {config.distill.ipc}; {settings}"
        + (f", changed in {changed}" if changed else "")
    ]
    if plan.autos:
        lines.append(
            f"found from the data: {', '.join(plan.autos)}; what follows reckons with usual numbers"
        )
    return lines


def _changed(config) -> list[str]:
    """The keys of the distillation that differ from the settings a config says it has."""
    settings = files.load_settings(config.settings_of)
    if settings is None:
        return []
    flat = flatten(config)
    said = settings.variant.of_methods.get(config.method if config.published else _EDF, {})
    # In another method's settings a method has its own numbers.
    own = {} if config.published or config.method == _EDF else METHODS[config.method]
    return [
        name
        for name, value in said.items()
        if name.startswith(("distill.", "cam.", "evaluate."))
        and flat[name] not in (value, own.get(name, value))
    ]


def _data_lines(plan: Plan) -> list[str]:
    data = plan.data
    about = "about " if data.counts == "approximate" else ""
    height, width, channels = data.image_shape
    lines = [
        f"{data.name}: {data.num_classes} classes of {height}x{width}x{channels}, {about}"
        f"{data.num_train:,} training and {data.num_test:,} test images "
        f"({data.num_train // data.num_classes:,} and {data.num_test // data.num_classes:,} a "
        f"class; {data.counts})"
    ]
    if plan.config.data.zca:
        size = math.prod(data.image_shape)
        lines.append(
            f"whitened (ZCA): fitting takes {_size(whitening.fit_bytes(size))} of the host's "
            f"memory, the matrix and its inverse {_size(whitening.stored_bytes(size))} on disk"
        )
    if is_fastai(data.name):
        lines.append("split as fast.ai does: not to be set beside figures of the published set")
    lines.append(f"found: {data.location}" if data.available else f"not there: {data.advice}")
    return lines


def _experts_lines(plan: Plan) -> list[str]:
    options = plan.config.experts
    network, size = plan.network, plan.network.image_shape
    disk = f"{_size(plan.experts_bytes)} on disk"
    if plan.experts_peak_bytes > plan.experts_bytes:
        disk += f" ({_size(plan.experts_peak_bytes)} while training)"
    return [
        f"{network.name} for {size[0]}x{size[1]} images: {network.num_params:,} parameters",
        f"{options.num} networks, {options.epochs} epochs each ({options.optimizer}, batch "
        f"{options.batch}): {plan.snapshots:,} snapshots, {disk}",
    ]


def _distillation_lines(plan: Plan) -> list[str]:

    options, cam = plan.config.distill, plan.config.cam
    batch = min(options.batch_syn, plan.num_images)
    stored = family.parametrisation(options)
    count = plan.num_images // stored.images
    floats = count * math.prod(plan.network.image_shape)
    floats += plan.num_images * plan.network.num_classes
    decoded = f", {stored.name}: {plan.num_images:,} for students" if stored.images > 1 else ""
    lines = [
        f"{count:,} synthetic images ({_size(4 * floats)}){decoded}",
        f"{options.iterations:,} iterations of {options.syn_steps} student steps in batches of "
        f"{batch}, {evaluations(options)} evaluations by "
        f"{_networks(plan.config.evaluate.during_num)}",
    ]
    if options.pixel_weight == "dae":
        lines.append(f"{cam.method} every {cam.every} iterations, by {_cam_network(plan)}")
    return lines


def _cam_network(plan: Plan) -> str:
    cam = plan.config.cam
    if cam.weights:
        asked = ", asked for the labels' numbers as classes" if cam.classes == "official" else ""
        return f"imported weights ({cam.weights}){asked}"
    if cam.network == "trained":
        return "a network trained on the real data"
    if cam.network == "experts":
        return f"the last snapshots of {plan.config.experts.num} experts, averaged"
    told = "the first expert's last snapshot"
    if plan.config.published and cam.network == "auto":
        told += " (published with an ImageNet ResNet-18: cam.weights=FILE)"
    return told


def _evaluation_lines(plan: Plan) -> list[str]:
    options = plan.config.evaluate
    names = options.networks or plan.network.name
    return [
        f"{_networks(options.num)} ({names}), {options.epochs + 1:,} epochs each; beside it random "
        "real images and all the real data"
    ]


def _memory_lines(plan: Plan) -> list[str]:
    lines = [
        f"{stage} {_size(plan.memory[stage])}"
        for stage in ("experts", "distillation", "evaluation")
    ]
    if plan.memory["maps"]:
        parts = f"outer iteration {_size(plan.memory['iteration'])}"
        lines[1] += f" ({parts}, activation maps {_size(plan.memory['maps'])})"
    if plan.compiled is not None:
        estimate = plan.memory["iteration"] / plan.compiled
        lines.append(
            f"outer iteration by XLA {_size(plan.compiled)}; the estimate is {estimate:.0%} of it"
        )
    device = plan.device
    there = f"has {_size(device.memory)}" if device.memory else "doesn't say how much it has"
    several = f"each of {device.count} x " if device.count > 1 else ""
    if device.kind == "cpu":
        lines.append("these are arrays; Python and compiled programs take about 1 GiB beside them")
    return [*lines, f"{several}{device.kind} {there}"]


def _networks(count: int) -> str:
    return "1 network" if count == 1 else f"{count} networks"


def _hours_line(plan: Plan) -> str:
    if all(value is None for value in plan.hours.values()):
        return f"unknown: no rates were recorded on {plan.device.kind}"
    parts = [
        f"{stage} {'unknown' if value is None else _duration(value)}"
        for stage, value in plan.hours.items()
    ]
    known = [value for value in plan.hours.values() if value is not None]
    return f"about {_duration(sum(known))} ({', '.join(parts)}), compilation aside"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:,.1f} h"


def _size(count: int) -> str:
    for unit, bytes_of_it in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= bytes_of_it:
            amount = count / bytes_of_it
            return f"{amount:,.1f} {unit}" if amount < 100 else f"{amount:,.0f} {unit}"
    return f"{count / 2**10:.0f} KiB"
