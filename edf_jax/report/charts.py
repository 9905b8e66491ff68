"""The curves of a run. Pure: arrays in, the bytes of a PNG out.

Each is drawn narrow, so that its letters stay readable when a page shows it on a phone, and in
either of two themes, so that it sits on a light or a dark page.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours by what they stand for; told apart by colour-blind readers too."""

    background: str
    ink: str
    muted: str
    grid: str
    distilled: str
    random: str
    full: str
    skipped: str


LIGHT = Theme(
    "#ffffff", "#1b1f24", "#667080", "#e4e8ee", "#0b6bcb", "#c46a00", "#0a8754", "#c8321f"
)
DARK = Theme("#161b22", "#e8edf3", "#97a3b3", "#2c343f", "#5ab0ff", "#f0a13a", "#3fcf8e", "#ff7a66")

DPI = 200
_CHART_INCHES = (3.9, 2.5)
_MOST_BARS = 80
# Okabe and Ito's, of which any two are told apart by colour-blind readers too.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_STRONG = {"fontsize": 8.5, "fontweight": "bold"}
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1)))


def loss_curve(
    steps, loss, skipped, *, threshold: float | None = None, theme: Theme = LIGHT
) -> bytes:
    """Matching loss over iterations, with its running median; skipped iterations marked.

    Args:
      steps, loss, skipped: `[iterations]`; a loss may be not-a-number.
      threshold: above it an iteration changes nothing.
    """
    steps, loss = np.asarray(steps), np.asarray(loss, float)
    skipped = np.asarray(skipped, bool)
    figure, axes = _chart("Matching loss", "iteration", theme)
    kept = ~skipped & np.isfinite(loss)
    size = 14 if len(steps) < 300 else 5
    axes.scatter(steps[kept], loss[kept], s=size, color=theme.distilled, alpha=0.35, linewidths=0)
    median = _running_median(np.where(kept, loss, np.nan))
    axes.plot(steps, median, color=theme.distilled, linewidth=1.6)
    limits = [value for value in (threshold, np.nanmax(median, initial=0.0)) if value]
    if kept.any():
        limits.append(np.percentile(loss[kept], 99.5))
    high = 1.12 * max(limits, default=1.0)
    low = min(0.0, float(loss[kept].min(initial=0.0)))
    axes.set_ylim(low, high)
    if threshold is not None:
        axes.axhline(threshold, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
        _label(axes, f"skipped above {threshold:g}", threshold, theme.muted, theme, at_right=True)
    if skipped.any():
        heights = np.where(np.isfinite(loss), loss, np.inf)[skipped].clip(None, 0.985 * high)
        label = f"skipped: {skipped.sum()} of {len(steps)}"
        style = {"s": size + 4, "marker": "x", "color": theme.skipped, "linewidths": 0.9}
        axes.scatter(steps[skipped], heights, label=label, **style)
        axes.legend(loc="lower left", handletextpad=0.1, **_legend(theme))
    return png(figure)


def _running_median(values: np.ndarray) -> np.ndarray:
    """Median over a window of 2% of the values, at least 5, centred, not-a-number left out."""
    half = max(2, len(values) // 100)
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    masked = np.ma.masked_invalid(windows)
    return np.ma.median(masked, axis=1).filled(np.nan)


def accuracy_curve(
    steps,
    mean,
    std,
    *,
    random: tuple[float, float] | None = None,
    full: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
) -> bytes:
    """Test accuracy of networks trained on the distilled set, over distillation iterations.

    Args:
      steps, mean, std: `[evaluations]`, in percent.
      random, full: (mean, std) of random real images and of all the data, as reference lines.
    """
    steps, mean, std = (np.asarray(values, float) for values in (steps, mean, std))
    figure, axes = _chart("Test accuracy, %", "iteration", theme)
    axes.fill_between(steps, mean - std, mean + std, color=theme.distilled, alpha=0.2, linewidth=0)
    axes.plot(steps, mean, color=theme.distilled, linewidth=1.8, marker="o", markersize=3.5)
    references = (("all the data", full, theme.full), ("random images", random, theme.random))
    for name, reference, colour in references:
        if reference is not None:
            centre, spread = reference
            axes.axhspan(centre - spread, centre + spread, color=colour, alpha=0.13, linewidth=0)
            axes.axhline(centre, color=colour, linewidth=1.2, linestyle=(0, (5, 2)))
            # Distillation starts near random images: at the left they would cover each other.
            at_right = reference is random
            _label(axes, f"{name} {centre:.1f}", centre, colour, theme, at_right=at_right)
    best = int(np.nanargmax(mean))
    place = {"xy": (steps[best], mean[best]), "xytext": (0, 6), "textcoords": "offset points"}
    side = "right" if best == len(mean) - 1 and best else "center"
    axes.annotate(f"{mean[best]:.1f}", **place, ha=side, color=theme.distilled, **_STRONG)
    axes.margins(y=0.14)
    return png(figure)


def expert_accuracy(epochs, accuracy, *, theme: Theme = LIGHT) -> bytes:
    """Test accuracy of the experts after each epoch: each one (or group) thin, the mean thick.

    Args:
      epochs: `[epochs]`.
      accuracy: `[experts or groups, epochs]` in percent; not-a-number where not measured.
    """
    accuracy = np.asarray(accuracy, float)
    figure, axes = _chart("Experts' test accuracy, %", "epoch", theme)
    for one in accuracy if len(accuracy) > 1 else ():
        axes.plot(epochs, one, color=theme.full, linewidth=0.7, alpha=0.35)
    mean = np.ma.masked_invalid(accuracy).mean(axis=0).filled(np.nan)
    axes.plot(epochs, mean, color=theme.full, linewidth=2.0)
    last = np.flatnonzero(np.isfinite(mean))[-1]
    # The curve rises, so this corner is free.
    corner = {"transform": axes.transAxes, "ha": "right"}
    axes.text(0.985, 0.06, f"mean {mean[last]:.1f}", color=theme.full, **corner, **_STRONG)
    axes.margins(y=0.1)
    return png(figure)


def start_epochs(steps, epochs, upper=None, *, theme: Theme = LIGHT) -> bytes:
    """Which stretch of the experts' training each iteration matched, and how often each.

    Args:
      steps, epochs: `[iterations]`, the epoch that the student started from.
      upper: `[iterations]`, the first epoch not yet allowed (sequential generation), if known.
    """
    from matplotlib.ticker import MaxNLocator

    steps, epochs = np.asarray(steps), np.asarray(epochs)
    figure, (axes, side) = _chart(
        "Start epochs matched", "iteration", theme, width_ratios=(4, 1), sharey=True
    )
    size = 12 if len(steps) < 300 else 4
    axes.scatter(steps, epochs, s=size, color=theme.distilled, alpha=0.5, linewidths=0)
    if upper is not None:
        # Drawn between the last epoch allowed and the first that is not.
        bound = np.asarray(upper, float) - 0.5
        axes.step(steps, bound, color=theme.muted, linewidth=1.0, where="post")
    bins = np.arange(epochs.min(), epochs.max() + 2) - 0.5
    side.hist(epochs, bins=bins, orientation="horizontal", color=theme.distilled, alpha=0.7)
    side.set_xlabel("times", color=theme.muted, fontsize=8.5)
    side.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    side.grid(False)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return png(figure)


def comparison(
    labels: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    theme: Theme = LIGHT,
) -> bytes:
    """Accuracies side by side: a line of dots with error bars for each label, the first on top.

    Args:
      labels: what is compared.
      series: by name, the (mean, std) of each label, not-a-number where there is none; the first
        is drawn strongest.
      title: of the chart.
    """
    size = (_CHART_INCHES[0] + 1.2, 1.1 + 0.3 * len(labels))
    figure, axes = _lying_chart(title, size, theme, fontsize=9)
    places = np.arange(len(labels))[::-1]
    colours = (theme.distilled, theme.random, theme.full)
    for index, (name, figures) in enumerate(series.items()):
        mean, std = np.asarray(figures, float).T
        offset = 0.2 * (index - (len(series) - 1) / 2)
        style = {"color": colours[index % len(colours)], "elinewidth": 1.2, "capsize": 2}
        marker = {"fmt": "s", "markersize": 3.5} if index else {"fmt": "o", "markersize": 5}
        axes.errorbar(mean, places - offset, xerr=std, label=name, **style, **marker)
    axes.set_yticks(places, labels, color=theme.ink, fontsize=8.5)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    if len(series) > 1:
        figure.legend(loc="outside lower right", ncols=len(series), **_legend(theme))
    return png(figure)


def curves(
    series: Mapping[str, tuple[Any, Any, Any]], *, title: str, x_label: str, theme: Theme = LIGHT
) -> bytes:
    """Several curves in one chart, each with a band of its deviation.

    Args:
      series: by label, the places `[n]`, means `[n]` and deviations `[n]` of a curve.
      title: of the chart.
      x_label: of its places.
    """
    figure, axes = _chart(title, x_label, theme)
    figure.set_size_inches(_CHART_INCHES[0] + 1.6, _CHART_INCHES[1] + 0.4)
    for index, (label, (places, mean, std)) in enumerate(series.items()):
        places, mean, std = (np.asarray(values, float) for values in (places, mean, std))
        dashes = _DASHES[index // len(_SERIES) % len(_DASHES)]
        colour = _SERIES[index % len(_SERIES)]
        axes.fill_between(places, mean - std, mean + std, color=colour, alpha=0.1, linewidth=0)
        style = {"color": colour, "linestyle": dashes, "marker": "o", "markersize": 3}
        axes.plot(places, mean, label=label, **style)
    figure.legend(loc="outside right upper", **_legend(theme))
    axes.margins(y=0.1)
    return png(figure)


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    marks: Sequence[str],
    *,
    title: str,
    theme: Theme = LIGHT,
) -> bytes:
    """A bar for each label, the first on top; of very many the first and the last.

    Args:
      labels: what the bars are of.
      values: their lengths.
      marks: of each, a word that bars of one colour share, or "".
      title: of the chart.
    """
    shown = list(range(len(labels)))
    if len(shown) > _MOST_BARS:
        half = _MOST_BARS // 2
        shown = shown[:half] + shown[-half:]
        title = f"{title} (the {half} highest and lowest of {len(labels)})"
    size = (_CHART_INCHES[0], 0.9 + 0.17 * len(shown))
    figure, axes = _lying_chart(title, size, theme, fontsize=8, dpi=DPI // 2)
    colours = dict(zip(sorted({mark for mark in marks if mark}), (theme.full, theme.random)))
    for mark in dict.fromkeys(marks[i] for i in shown):
        rows = [row for row, i in enumerate(shown) if marks[i] == mark]
        colour, lengths = colours.get(mark, theme.distilled), [values[shown[row]] for row in rows]
        axes.barh([-row for row in rows], lengths, color=colour, label=mark or None, height=0.7)
    axes.set_yticks([-row for row in range(len(shown))], [labels[i] for i in shown])
    axes.tick_params(axis="y", labelcolor=theme.ink, labelsize=6.5)
    axes.set_ylim(0.6 - len(shown), 0.6)
    if colours:
        axes.legend(loc="lower right", **{**_legend(theme), "fontsize": 7})
    return png(figure)


def _bare(axes, theme: Theme, *, grid: str) -> None:
    axes.set_facecolor(theme.background)
    axes.grid(axis=grid, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted)


def _legend(theme: Theme) -> dict[str, Any]:
    return {"frameon": False, "labelcolor": theme.ink, "fontsize": 8}


def _lying_chart(title: str, size: tuple[float, float], theme: Theme, *, fontsize: float, dpi=DPI):
    """A figure and its axes, of which the lines run from left to right."""
    from matplotlib.figure import Figure

    figure = Figure(size, dpi=dpi, facecolor=theme.background, layout="constrained")
    axes = figure.subplots()
    _bare(axes, theme, grid="x")
    axes.set_title(
        title, loc="left", color=theme.ink, fontsize=fontsize, fontweight="bold", wrap=True
    )
    return figure, axes


def _chart(title: str, x_label: str, theme: Theme, **grid: Any):
    """A figure with its title and bare axes: one, or as many as `width_ratios` has."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(_CHART_INCHES, dpi=DPI, facecolor=theme.background, layout="constrained")
    columns = len(grid.get("width_ratios", (1,)))
    all_axes = figure.subplots(1, columns, squeeze=False, **grid)[0]
    for axes in all_axes:
        _bare(axes, theme, grid="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    first = all_axes[0]
    first.set_title(title, loc="left", color=theme.ink, fontsize=10, fontweight="bold")
    first.set_xlabel(x_label, color=theme.muted, fontsize=8.5)
    return figure, first if columns == 1 else all_axes


def _label(axes, text: str, y: float, colour: str, theme: Theme, at_right: bool = False) -> None:
    """Words on a horizontal line at an edge, on a ground that keeps them readable."""
    from matplotlib.transforms import blended_transform_factory

    x, side = (0.985, "right") if at_right else (0.015, "left")
    place = {"transform": blended_transform_factory(axes.transAxes, axes.transData), "ha": side}
    ground = {"facecolor": theme.background, "edgecolor": "none", "pad": 1.2}
    axes.text(x, y, text, **place, va="center", color=colour, fontsize=8, bbox=ground)


def png(figure) -> bytes:
    """A figure as the bytes of a PNG; the same arrays give the same bytes.

    No figure here holds formulas; names of classes and folders may look like some.
    """
    import matplotlib
    from matplotlib.text import Text

    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False}):
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
