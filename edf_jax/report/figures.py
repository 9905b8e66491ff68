"""The pictures of a run, laid out. Pure: arrays in, the bytes of a PNG out."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from edf_jax.report.charts import DPI, LIGHT, Theme, png
from edf_jax.runs import pictures

# Pixels between pictures, and the longer side of a small image.
_GAP, _SIDE = 10, 96


def before_after(
    real,
    distilled,
    labels,
    class_names: Sequence[str],
    *,
    per_class: int = 5,
    classes: int = 20,
    theme: Theme = LIGHT,
) -> bytes:
    """Distilled images beside the real ones they grew from, by class.

    Few images per class: a column for each class, real above distilled. More: a row for each.

    Args:
      real: `[n, H, W, C]` pixels in [0, 1].
      distilled: the same images after distillation, same shape.
      labels: `[n]`, class of each.
      class_names: by class.
      per_class, classes: at most so many are shown.
    """
    chosen = pictures.choose(labels, len(class_names), per_class=per_class, classes=classes)
    names = [class_names[int(np.asarray(labels)[indices[0]])] for indices in chosen]
    depth = max(len(indices) for indices in chosen)
    layout = _columns_of_classes if depth <= 2 else _rows_of_classes
    return layout({"real": real, "distilled": distilled}, chosen, names, depth, theme)


def _columns_of_classes(both, chosen, names, depth, theme) -> bytes:
    left, top, y = 118, 58, 0
    blocks = []
    for start in range(0, len(chosen), 10):
        line = slice(start, start + 10)
        y += top
        for title, images in both.items():
            padded = _pad(images, chosen[line], depth, by_column=True)
            grid = pictures.tile(padded, len(chosen[line]), side=_SIDE)
            blocks.append((names[line] if title == "real" else [], title, grid, y))
            y += grid.shape[0] + _GAP
    width = left + max(grid.shape[1] for _, _, grid, _ in blocks) + 12
    canvas = _Canvas(width, y + _GAP, theme)
    for head, title, grid, y in blocks:
        canvas.names(head, left, grid.shape[1], y - 12)
        canvas.titled_image(title, grid, left, y)
    return canvas.png()


def _rows_of_classes(both, chosen, names, depth, theme) -> bytes:
    grids = {
        title: pictures.tile(_pad(images, chosen, depth, by_column=False), depth, side=_SIDE)
        for title, images in both.items()
    }
    height, width = grids["real"].shape[:2]
    letters = min(16, max(len(name) for name in names))
    left, top, gap = 30 + 13 * letters, 46, 28
    canvas = _Canvas(left + 2 * width + gap + 12, top + height + 12, theme)
    for x, (title, grid) in zip((left, left + width + gap), grids.items()):
        canvas.text(x, top - 14, title, color=theme.muted)
        canvas.image(grid, x, top)
    row = (height + 2) / len(names)
    style = {"ha": "right", "va": "center", "color": theme.ink}
    for i, name in enumerate(names):
        canvas.text(left - 14, top + (i + 0.5) * row, pictures.short_name(name, letters), **style)
    return canvas.png()


def _pad(images, chosen, depth: int, *, by_column: bool) -> np.ndarray:
    """The chosen images, one class after another or interleaved, blank where a class has fewer."""
    pixels = pictures.to_rgb(images)
    grid = np.full((len(chosen), depth, *pixels.shape[1:]), 0.5, np.float32)
    for row, indices in enumerate(chosen):
        grid[row, : len(indices)] = pixels[indices]
    grid = grid.swapaxes(0, 1) if by_column else grid
    return grid.reshape(-1, *pixels.shape[1:])


def activation_maps(
    images,
    maps,
    weights,
    labels,
    class_names: Sequence[str],
    *,
    count: int = 10,
    theme: Theme = LIGHT,
) -> bytes:
    """Images, their class activation maps over them, and the weights on their gradients (DAE).

    Args:
      images: `[n, H, W, C]` pixels in [0, 1].
      maps: `[n, H, W]` in [0, 1].
      weights: `[n, H, W]`, what the gradient of each pixel is multiplied by.
      labels: `[n]`, class of each.
      count: how many images, of classes spread evenly.
    """
    chosen = pictures.choose(labels, len(class_names), per_class=1, classes=count)
    index = np.concatenate(chosen)
    weights = np.asarray(weights, np.float32)
    high = max(float(weights.max()), 1.0 + 1e-3)
    rows = {
        "distilled": pictures.to_rgb(np.asarray(images)[index]),
        "activation": pictures.overlay(np.asarray(images)[index], np.asarray(maps)[index]),
        "weight": pictures.colourise(weights[index], 1.0, high, pictures.WEIGHT_COLOURS),
    }
    grids = [pictures.tile(row, len(index), side=_SIDE) for row in rows.values()]
    height, width = grids[0].shape[:2]
    left, top, foot = 136, 44, 64
    # Room for the legend below, however few images there are.
    canvas = _Canvas(left + max(width, 480) + 12, top + 3 * (height + _GAP) + foot, theme)
    names = [class_names[int(label)] for label in np.asarray(labels)[index]]
    canvas.names(names, left, width, top - 12)
    for i, (title, grid) in enumerate(zip(rows, grids)):
        canvas.titled_image(title, grid, left, top + i * (height + _GAP))
    ramp = pictures.colourise(
        np.broadcast_to(np.linspace(0, 1, 200), (12, 200)), 0, 1, pictures.WEIGHT_COLOURS
    )
    y = top + 3 * (height + _GAP) + 12
    canvas.image(pictures.tile(ramp[None], 1), left + 40, y)
    canvas.text(left, y + 6, "1", va="center")
    canvas.text(left + 252, y + 6, f"{high:.2g}  times the gradient", va="center")
    return canvas.png()


class _Canvas:
    """A figure laid out in pixels, so that images keep theirs exactly; y counts from the top."""

    def __init__(self, width: float, height: float, theme: Theme):
        from matplotlib.figure import Figure

        self._width, self._height, self._theme = round(width), round(height), theme
        self._figure = Figure(
            figsize=(self._width / DPI, self._height / DPI), dpi=DPI, facecolor=theme.background
        )

    def image(self, pixels, x: float, y: float) -> None:
        bottom = self._height - round(y) - pixels.shape[0]
        self._figure.figimage(np.flipud(pixels), round(x), bottom, origin="lower")

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"fontsize": 7.5, "color": self._theme.muted, **style}
        self._figure.text(x / self._width, 1 - y / self._height, text, **style)

    def titled_image(self, title: str, pixels, x: float, y: float) -> None:
        """An image with its title to the left."""
        self.image(pixels, x, y)
        self.text(x - 14, y + pixels.shape[0] / 2, title, ha="right", va="center")

    def names(self, names: Sequence[str], x: float, width: float, y: float) -> None:
        """A name over each of as many columns, on two lines at most."""
        cell = (width + 2) / max(len(names), 1)
        letters = max(4, int(cell / 10.5))
        style = {"fontsize": 6.5, "ha": "center", "linespacing": 1.1, "color": self._theme.ink}
        for i, name in enumerate(names):
            lines = textwrap.wrap(name, letters, max_lines=2, placeholder="…") or [name]
            self.text(x + (i + 0.5) * cell, y, "\n".join(lines), **style)

    def png(self) -> bytes:
        return png(self._figure)
