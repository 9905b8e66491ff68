"""The parts of a run's report as values for its template; falsy where there is nothing to show."""

from __future__ import annotations

from typing import Any

import numpy as np

from edf_jax import distilled_set
from edf_jax.config.resolve import flatten
from edf_jax.distilled_set import BYTES
from edf_jax.report import tables
from edf_jax.runs import pictures, tuned
from edf_jax.runs.files import RunFiles, selected
from edf_jax.runs.statistics import mean_text
from edf_jax.runtime.progress import duration

# Bounds that keep the page at a few megabytes whatever the run's size.
_GALLERY_IMAGES = 300
_GALLERY_CLASSES = 100
_MAP_IMAGES = 20
_STORED_IMAGES = 20
_HISTORY_FRAMES = 16
_HISTORY_IMAGES = 20
# Iterations that the time left is reckoned from.
_RECENT = 100

_COLOURS = {"random": "random", "initial": "random", "full": "full"}


def header(run: RunFiles) -> dict[str, Any]:
    """What the run is: dataset, method, images per class."""
    config = run.config
    data, ipc = config.get("data", {}), config.get("distill", {}).get("ipc")
    dataset = run.result.get("dataset") or (run.last.origin.get("name") if run.last else "")
    about = [
        dataset or data.get("subset") or data.get("name") or data.get("source"),
        config.get("method"),
        f"{ipc} image{'' if ipc == 1 else 's'} per class" if ipc else None,
    ]
    return {"title": run.workdir.resolve().name, "about": [part for part in about if part]}


def results(run: RunFiles) -> dict[str, Any]:
    """The table of accuracies, in words first, and the facts of the run."""
    result = run.result
    return {
        "finished": bool(result),
        "lead": tables.headline(result),
        "headline": selected(result),
        "colours": _COLOURS,
        "accuracies": tables.accuracies(result),
        "protocol": tables.protocol_lines(result),
        "warnings": tables.warnings(run.rows("distill")),
        "facts": _facts(run),
    }


def _facts(run: RunFiles) -> dict[str, str]:
    result, rows, last = run.result, run.rows("distill"), run.last
    facts: dict[str, str] = {} if result else progress(run)
    if last is not None:
        height, width, channels = last.images.shape[1:]
        facts["Distilled images"] = f"{len(last.images)} of {width}×{height}×{channels}"
        stored = last.parametrisation
        if stored.images > 1:
            facts["Stored as"] = f"{len(last.parameters)} ({stored.name}, factor {stored.factor})"
        facts[BYTES.capitalize()] = f"{last.stored_bytes.text} (float32)"
        facts["Student's rate alpha"] = f"{last.alpha:.4g}"
    if rows:
        skipped = sum(bool(row.get("skipped")) for row in rows)
        facts["Iterations"] = f"{rows[-1]['step'] + 1 - rows[0]['step']}"
        facts["Skipped iterations"] = f"{skipped} ({100 * skipped / len(rows):.1f}%)"
    if "seconds" in result:
        facts["Time, all sittings"] = duration(result["seconds"])
    if result.get("peak_memory_mb"):
        facts["Peak memory"] = f"{result['peak_memory_mb'] / 1024:.2f} GiB"
    return facts


def progress(run: RunFiles) -> dict[str, str]:
    """How far a run that goes on is: its last accuracy, what is done, and what time is left."""
    told: dict[str, str] = {}
    evaluations = [row for row in run.rows("evaluate") if row.get("accuracy_mean") is not None]
    for row in evaluations[-1:]:
        accuracy = mean_text(row["accuracy_mean"], row.get("accuracy_std"))
        told[f"Accuracy at iteration {row['step']}, %"] = accuracy
    rows, total = run.rows("distill"), run.config.get("distill", {}).get("iterations", 0)
    if not rows:
        epochs = run.config.get("experts", {}).get("epochs", 0)
        for row in run.rows("experts")[-1:]:
            told["Experts"] = f"epoch {row.get('epoch', row['step'])} of {epochs}"
    elif total > 0:
        recent = rows[-_RECENT:]
        each = (recent[-1]["time"] - recent[0]["time"]) / max(1, len(recent) - 1)
        done = rows[-1]["step"] + 1
        told["Distilled"] = f"{done} of {total} iterations"
        told["Left of the distillation"] = duration(each * (total - done))
    return told


def found_numbers(run: RunFiles) -> dict[str, Any] | None:
    """The numbers that the run found, why, what it tried, and the flags that pin them."""
    chosen, told = run.tuned.get("chosen", {}), run.tuned.get("told", {})
    if not chosen:
        return None
    step = run.config.get("distill", {}).get("alpha_step", "log")
    return {
        "rows": [
            (key, f"{value:g}", told.get(key, {}).get("why", ""), tuned.tried(told.get(key, {})))
            for key, value in chosen.items()
        ],
        "flags": " ".join(tuned.flags(chosen, step)),
    }


def gallery(run: RunFiles) -> dict[str, Any] | None:
    """Distilled images by class, over the real ones they grew from."""
    last, first = run.last, run.first
    if last is None:
        return None
    num_classes = len(last.class_names)
    classes = min(num_classes, _GALLERY_CLASSES)
    per_class = max(1, _GALLERY_IMAGES // classes)
    chosen = pictures.choose(run.classes, num_classes, per_class=per_class, classes=classes)
    after, before = last.pixels, first.pixels if first is not None else None

    def tile(i: int) -> dict[str, Any]:
        return {
            "label": pictures.top_classes(last.labels[i], last.class_names),
            "name": last.class_names[int(last.classes[i])],
            "before": pictures.data_uri(before[i]) if before is not None else None,
            "after": pictures.data_uri(after[i]),
        }

    shown = sum(len(indices) for indices in chosen)
    # Five to a row keeps a class on a phone's width; ten where there are many.
    row = min(len(chosen[0]), 10 if len(chosen[0]) > 10 else 5)
    side = 60 if row > 3 else 84
    return {
        "when": "the last iteration" if run.result else f"iteration {last.step}",
        "which": "All" if shown == len(last.images) else f"{shown} of the {len(last.images)}",
        "before": before is not None,
        "side": side,
        "width": row * (side + 4) - 4,
        "classes": [
            (last.class_names[int(run.classes[indices[0]])], [tile(i) for i in indices])
            for indices in chosen
        ],
    }


def stored_images(run: RunFiles) -> dict[str, Any] | None:
    """What is stored of some distilled images, where that is a picture but isn't the images."""
    last = run.last
    if last is None or not last.parametrisation.is_picture:
        return None
    if last.normalisation.zca is not None:
        return None  # which whitens whole images, not tiles of them
    began_as = run.classes[:: last.parametrisation.images]
    chosen = pictures.choose(began_as, len(last.class_names), per_class=1, classes=_STORED_IMAGES)
    shown = np.concatenate(chosen)
    pixels = np.asarray(last.normalisation.invert(last.parameters[shown]))
    return {
        "name": last.parametrisation.name.replace("_", "-"),
        "each": last.parametrisation.images,
        "figures": [
            (last.class_names[int(began_as[i])], pictures.data_uri(image))
            for i, image in zip(shown, pixels)
        ],
    }


def activation_maps(run: RunFiles) -> dict[str, Any] | None:
    """Where the class is, by Grad-CAM, and what the gradient was multiplied by there."""
    last, activation = run.last, run.activation_maps()
    if last is None or activation is None:
        return None
    chosen = pictures.choose(run.classes, len(last.class_names), per_class=1, classes=_MAP_IMAGES)
    high = max(float(activation.weights.max()), 1.0 + 1e-3)
    pixels = last.pixels
    shown = []
    for i in np.concatenate(chosen):
        weight = pictures.colourise(activation.weights[i], 1.0, high, pictures.WEIGHT_COLOURS)
        images = {
            "distilled image": pixels[i],
            "activation map over it": pictures.overlay(pixels[i], activation.maps[i]),
            "weight of each pixel's gradient": weight,
        }
        uris = [(title, pictures.data_uri(image)) for title, image in images.items()]
        shown.append((last.class_names[int(run.classes[i])], uris))
    stops = pictures.colourise(np.linspace(0, 1, 9), 0, 1, pictures.WEIGHT_COLOURS)
    return {
        "network": activation.network,
        "high": f"{high:.2g}",
        "ramp": ", ".join("rgb({:.0f} {:.0f} {:.0f})".format(*(255 * stop)) for stop in stops),
        "figures": shown,
    }


def history(run: RunFiles) -> list[dict[str, Any]]:
    """How the pixels changed: the images of some saved steps, and their change."""
    steps = run.saved_steps()
    if len(steps) < 2:
        return []
    spread = np.linspace(0, len(steps) - 1, min(_HISTORY_FRAMES, len(steps))).round().astype(int)
    first = distilled_set.load(run.step_path(steps[0]))
    start, num_classes = first.pixels, len(first.class_names)
    count = min(_HISTORY_IMAGES, num_classes)
    index = np.concatenate(
        pictures.choose(first.classes, num_classes, per_class=1, classes=count)
    )
    end = distilled_set.load(run.step_path(steps[-1])).pixels
    high = max(float(np.percentile(np.abs(end - start)[index].mean(axis=-1), 99)), 1e-6)
    columns = min(5, len(index))

    def sprite(images) -> str:
        grid = pictures.tile(images, columns, gap=1)
        # Opaque, so that large ones can be JPEG.
        return pictures.data_uri(grid[..., :3] * grid[..., 3:] + 0.5 * (1 - grid[..., 3:]))

    frames = []
    # One set at a time: a large run's sets together would not fit in a laptop's memory.
    for step in (steps[i] for i in spread):
        pixels = distilled_set.load(run.step_path(step)).pixels
        change = np.abs(pixels - start)
        heat = pictures.colourise(change[index].mean(axis=-1), 0.0, high, pictures.CHANGE_COLOURS)
        mean_change = f"{100 * change.mean():.1f}%"
        images = {"images": sprite(pixels[index]), "change": sprite(heat)}
        frames.append({"step": step, "mean_change": mean_change, **images})
    return frames


def provenance(run: RunFiles) -> dict[str, Any]:
    """The command, time by stage, hardware, versions and settings."""
    result, config = run.result, run.config
    stages = {name: duration(seconds) for name, seconds in result.get("stages", {}).items()}
    columns = {
        "Time": stages,
        "Hardware": result.get("hardware", {}),
        "Versions": result.get("versions", {}),
    }
    loose = {k: v for k, v in config.items() if not isinstance(v, dict)}
    groups = {k: flatten(v) for k, v in config.items() if isinstance(v, dict)}
    return {
        "command": result.get("command"),
        "columns": {name: values for name, values in columns.items() if values},
        "settings": {"general": loose, **groups} if loose else groups,
    }
