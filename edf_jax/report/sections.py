"""The parts of a run's report: from the run's files to HTML, "" where there is nothing to show."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np

from edf_jax import distilled_set
from edf_jax.config.resolve import flatten
from edf_jax.distilled_set import DistilledSet
from edf_jax.report.tables import accuracies, other_networks, protocol_lines
from edf_jax.runs import pictures
from edf_jax.runs.files import RunFiles, selected
from edf_jax.runtime.progress import duration

# Bounds that keep the page at a few megabytes whatever the run's size.
_GALLERY_IMAGES = 300
_GALLERY_CLASSES = 100
_MAP_IMAGES = 20
_HISTORY_FRAMES = 16
_HISTORY_IMAGES = 20

_COLOURS = {"random": "random", "full": "full"}


def header(run: RunFiles) -> str:
    """What the run is: dataset, method, images per class, network."""
    config = run.config
    data = config.get("data", {})
    ipc = config.get("distill", {}).get("ipc")
    parts = [
        data.get("subset") or data.get("name") or data.get("source"),
        config.get("method"),
        f"{ipc} image{'' if ipc == 1 else 's'} per class" if ipc else None,
    ]
    line = " · ".join(escape(str(part)) for part in parts if part)
    title = escape(run.workdir.resolve().name)
    return f'<header><h1>{title}</h1><div class="muted">{line}</div></header>'


def results(run: RunFiles) -> str:
    """The table of accuracies, in words first, and the facts of the run."""
    result = run.result
    body = _lead(result) + _result_table(result)
    if not result:
        body = "<p>The run has not finished: this page shows what there is so far.</p>"
    return f"<section><h2>Result</h2>{body}{_skip_warning(run)}{_facts(run)}</section>"


def _lead(result: dict[str, Any]) -> str:
    distilled = result.get(f"{selected(result)}_mean")
    random = result.get("random_mean")
    if distilled is None or random is None:
        return ""
    text = (
        f"Networks trained on the distilled images reach <strong>{distilled:.1f}%</strong>, "
        f"{abs(distilled - random):.1f} points {'more' if distilled >= random else 'less'} than on "
        f"random real images ({random:.1f}%)"
    )
    if result.get("full_mean"):
        text += f" and {100 * distilled / result['full_mean']:.0f}% of what all the data gives"
    return f'<p class="lead">{text}.</p>'


def _result_table(result: dict[str, Any]) -> str:
    headline = selected(result)
    rows = [
        f"<tr{' class=headline' if row.kind == headline else ''}>"
        f'<td>{row.title}<span class="note">{escape(row.note)}</span></td>'
        f'<td><div class="bar" style="--colour: var(--{_COLOURS.get(row.kind, "distilled")})">'
        f'<i style="width: {min(max(row.mean, 0.0), 100.0):.1f}%"></i></div></td>'
        f'<td class="number value">{row.text}</td>'
        f'<td class="number interval">{row.interval_text}</td>'
        f'<td class="number networks">{row.count or "–"}</td></tr>'
        for row in accuracies(result) + other_networks(result)
    ]
    if not rows:
        return ""
    return (
        '<table class="results"><thead><tr><th>Trained on</th><th></th>'
        '<th class="number">Test accuracy, %</th><th class="number interval">95% interval</th>'
        '<th class="number networks">Networks</th></tr></thead><tbody>'
        + "".join(rows)
        + "</tbody></table>"
        '<p class="small muted">Mean and standard deviation over networks; the interval is that of '
        "the mean.</p>"
        + "".join(f'<p class="small">{escape(line)}</p>' for line in protocol_lines(result))
    )


def _skip_warning(run: RunFiles) -> str:
    skipped = [bool(row.get("skipped")) for row in run.rows("distill")]
    last = skipped[-100:]
    if not last or sum(last) <= len(last) / 2:
        return ""
    return (
        f'<p class="warning">{sum(last)} of the last {len(last)} iterations were skipped: their '
        "matching loss was above the threshold, and they changed nothing.</p>"
    )


def _facts(run: RunFiles) -> str:
    result, rows = run.result, run.rows("distill")
    last = run.last
    facts: dict[str, str] = {}
    if last is not None:
        height, width, channels = last.images.shape[1:]
        facts["Distilled images"] = f"{len(last.images)} of {width}×{height}×{channels}"
        facts["Student's rate alpha"] = f"{last.alpha:.4g}"
    if rows:
        skipped = sum(bool(row.get("skipped")) for row in rows)
        facts["Iterations"] = f"{rows[-1]['step'] + 1 - rows[0]['step']}"
        facts["Skipped iterations"] = f"{skipped} ({100 * skipped / len(rows):.1f}%)"
    if "seconds" in result:
        facts["Time, all sittings"] = duration(result["seconds"])
    if result.get("peak_memory_mb"):
        facts["Peak memory"] = f"{result['peak_memory_mb'] / 1024:.2f} GiB"
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f'<dl class="facts">{items}</dl>' if facts else ""


def gallery(run: RunFiles) -> str:
    """Distilled images by class, over the real ones they grew from."""
    last, first = run.last, run.first
    if last is None:
        return ""
    classes = min(len(last.class_names), _GALLERY_CLASSES)
    chosen = pictures.choose(
        run.classes,
        len(last.class_names),
        per_class=max(1, _GALLERY_IMAGES // classes),
        classes=classes,
    )
    after, before = last.pixels, first.pixels if first is not None else None
    blocks = []
    for indices in chosen:
        name = last.class_names[int(run.classes[indices[0]])]
        tiles = "".join(_pair(before, after, last, i) for i in indices)
        blocks.append(
            f'<div><div class="class-name">{escape(name)}</div>'
            f'<div class="tiles">{tiles}</div></div>'
        )
    shown = sum(len(indices) for indices in chosen)
    which = "All" if shown == len(last.images) else f"{shown} of the {len(last.images)}"
    # Five to a row keeps a class on a phone's width; ten where there are many.
    row = min(len(chosen[0]), 10 if len(chosen[0]) > 10 else 5)
    side = 60 if row > 3 else 84
    width = row * (side + 4) - 4
    slider = (
        '<div class="control"><span>real</span><input type="range" min="0" max="100" value="100" '
        'data-compare="gallery" aria-label="From the real images to the distilled ones">'
        "<span>distilled</span></div>"
    )
    words, control = "", ""
    if first is not None:
        words, control = "Slide to see the real images they grew from. ", slider
    return (
        f"<section><h2>Distilled images</h2><p>{which} distilled images after the last iteration, "
        f"by class. {words}Hover over one for its soft label.</p>{control}"
        f'<div class="classes" id="gallery" style="--class-width: {width}px; --tile: {side}px">'
        f"{''.join(blocks)}</div></section>"
    )


def _pair(before: np.ndarray | None, after: np.ndarray, last: DistilledSet, i: int) -> str:
    label = escape(pictures.top_classes(last.labels[i], last.class_names))
    name = escape(last.class_names[int(last.classes[i])])
    below = f'<img src="{pictures.data_uri(before[i])}" alt="">' if before is not None else ""
    above = f'<img src="{pictures.data_uri(after[i])}" alt="distilled {name}">'
    return f'<div class="pair" title="{label}">{below}{above}</div>'


def activation_maps(run: RunFiles) -> str:
    """Where the class is, by Grad-CAM, and what the gradient was multiplied by there."""
    last, activation = run.last, run.activation_maps()
    if last is None or activation is None:
        return ""
    chosen = pictures.choose(run.classes, len(last.class_names), per_class=1, classes=_MAP_IMAGES)
    high = max(float(activation.weights.max()), 1.0 + 1e-3)
    pixels = last.pixels
    items = []
    for i in np.concatenate(chosen):
        name = last.class_names[int(run.classes[i])]
        weight = pictures.colourise(activation.weights[i], 1.0, high, pictures.WEIGHT_COLOURS)
        rows = (
            ("distilled image", pixels[i]),
            ("activation map over it", pictures.overlay(pixels[i], activation.maps[i])),
            ("weight of each pixel's gradient", weight),
        )
        cells = "".join(
            f'<img class="pixels" src="{pictures.data_uri(image)}" alt="{escape(name)}, {title}" '
            f'title="{title}">'
            for title, image in rows
        )
        items.append(f"<figure><figcaption>{escape(name)}</figcaption>{cells}</figure>")
    stops = pictures.colourise(np.linspace(0, 1, 9), 0, 1, pictures.WEIGHT_COLOURS)
    ramp = ", ".join("rgb({:.0f} {:.0f} {:.0f})".format(*(255 * stop)) for stop in stops)
    network = f" of {escape(activation.network)}" if activation.network else ""
    return (
        "<section><h2>Activation maps</h2>"
        f"<p>Above, the distilled image; in the middle, the class activation map{network} over it; "
        "below, what each pixel's gradient is multiplied by (discriminative area enhancement).</p>"
        f'<p class="small muted">1<span class="ramp" style="background: linear-gradient(90deg, '
        f'{ramp})"></span>{high:.2g} times the gradient</p>'
        f'<div class="maps">{"".join(items)}</div></section>'
    )


def history(run: RunFiles) -> str:
    """How the pixels changed: a slider over the saved steps."""
    steps = run.saved_steps()
    if len(steps) < 2:
        return ""
    spread = np.linspace(0, len(steps) - 1, min(_HISTORY_FRAMES, len(steps))).round().astype(int)
    first = distilled_set.load(run.step_path(steps[0]))
    start = first.pixels
    count = min(_HISTORY_IMAGES, len(first.class_names))
    index = np.concatenate(
        pictures.choose(first.classes, len(first.class_names), per_class=1, classes=count)
    )
    end = distilled_set.load(run.step_path(steps[-1])).pixels
    high = max(float(np.percentile(np.abs(end - start)[index].mean(axis=-1), 99)), 1e-6)
    columns = min(5, len(index))
    frames = []
    # One set at a time: a large run's sets together would not fit in a laptop's memory.
    for step in (steps[i] for i in spread):
        pixels = distilled_set.load(run.step_path(step)).pixels
        change = np.abs(pixels - start)
        heat = pictures.colourise(change[index].mean(axis=-1), 0.0, high, pictures.CHANGE_COLOURS)
        frames.append(
            {
                "step": step,
                "mean_change": f"{100 * change.mean():.1f}%",
                "images": _sprite(pixels[index], columns),
                "change": _sprite(heat, columns),
            }
        )
    data = json.dumps(frames).replace("</", "<\\/")
    last = len(frames) - 1
    return (
        "<section><h2>How the pixels changed</h2>"
        f'<div class="control"><button id="history-play">Play</button><input type="range" '
        f'id="history-step" min="0" max="{last}" value="{last}" aria-label="Saved iteration"></div>'
        '<p id="history-label" class="muted"></p><div class="sprites">'
        '<figure><figcaption class="small muted">images</figcaption>'
        f'<img class="sprite" id="history-images" alt="" src="{frames[-1]["images"]}"></figure>'
        '<figure><figcaption class="small muted">change since the start, brighter is more'
        f'</figcaption><img class="sprite" id="history-change" alt="" src="{frames[-1]["change"]}">'
        '</figure></div><script type="application/json" id="history-data">'
        f"{data}</script></section>"
    )


def _sprite(images, columns: int) -> str:
    grid = pictures.tile(images, columns, gap=1)
    # Opaque, so that large ones can be JPEG.
    return pictures.data_uri(grid[..., :3] * grid[..., 3:] + 0.5 * (1 - grid[..., 3:]))


def charts(light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """The curves, drawn for light and dark pages."""
    if not light:
        return ""
    items = "".join(
        '<picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{pictures.png_uri(dark[name])}">'
        f'<img src="{pictures.png_uri(png)}" alt="{escape(name.replace("_", " "))}"></picture>'
        for name, png in light.items()
    )
    return f'<section><h2>Curves</h2><div class="charts">{items}</div></section>'


def provenance(run: RunFiles) -> str:
    """The command, time by stage, hardware, versions and settings."""
    result, config = run.result, run.config
    body = ""
    if result.get("command"):
        body += (
            '<h3>Command</h3><pre id="command">' + escape(str(result["command"])) + "</pre>"
            '<button data-copy="command">Copy</button>'
        )
    stages = {name: duration(seconds) for name, seconds in result.get("stages", {}).items()}
    tables = (
        ("Time", stages),
        ("Hardware", result.get("hardware", {})),
        ("Versions", result.get("versions", {})),
    )
    columns = "".join(f"<div><h3>{t}</h3>{_pairs(v)}</div>" for t, v in tables if v)
    body += f'<div class="columns">{columns}</div>' if columns else ""
    if config:
        loose = {k: v for k, v in config.items() if not isinstance(v, dict)}
        groups = {"general": loose} if loose else {}
        groups.update({k: v for k, v in config.items() if isinstance(v, dict)})
        inner = "".join(
            f"<div><h3>{escape(name)}</h3>{_pairs(flatten(values))}</div>"
            for name, values in groups.items()
        )
        body += f"<h3>Settings</h3><details><summary>All {len(flatten(config))} settings</summary>"
        body += f'<div class="columns">{inner}</div></details>'
    return f"<section><h2>The run</h2>{body}</section>" if body else ""


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{escape(_setting_text(value))}</td></tr>"
        for key, value in values.items()
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'


def _setting_text(value: Any) -> str:
    return "–" if value is None or value == "" else str(value)
