"""Images as people look at them: which to show, laid out in a grid, under a map, as data URIs.

Arrays in, arrays or text out. Images are pixels in [0, 1], `[n, H, W, C]` with C of 1 or 3.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

MAP_COLOURS = "inferno"
WEIGHT_COLOURS = "viridis"
CHANGE_COLOURS = "magma"


def to_rgb(images) -> np.ndarray:
    """Pixels as float32 `[..., H, W, 3]` in [0, 1], grey repeated over the channels."""
    pixels = np.clip(np.asarray(images, np.float32), 0.0, 1.0)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def choose(labels, num_classes: int, *, per_class: int, classes: int) -> list[np.ndarray]:
    """The first `per_class` images of each of `classes` classes spread evenly over all.

    Args:
      labels: `[n]`, the class of each image.

    Returns:
      One array of indices per class shown; classes without images are left out.
    """
    labels = np.asarray(labels)
    present = [c for c in range(num_classes) if np.any(labels == c)]
    spread = np.linspace(0, len(present) - 1, min(classes, len(present))).round().astype(int)
    return [np.flatnonzero(labels == present[i])[:per_class] for i in spread]


def tile(images, columns: int, *, gap: int = 2, side: int = 0) -> np.ndarray:
    """A grid of images on a transparent ground.

    Args:
      images: `[n, H, W, C]`, put row by row.
      columns: images in a row.
      gap: pixels between images.
      side: images whose longer side is less are enlarged by a whole factor to reach about this.

    Returns:
      float32 `[rows * (h + gap) - gap, columns * (w + gap) - gap, 4]`.
    """
    pixels = enlarge(to_rgb(images), side)
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    grid = np.zeros((rows * (height + gap), columns * (width + gap), 4), np.float32)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        grid[top : top + height, left : left + width, :3] = image
        grid[top : top + height, left : left + width, 3] = 1.0
    return grid[: rows * (height + gap) - gap, : columns * (width + gap) - gap]


def enlarge(images, side: int) -> np.ndarray:
    """Images `[n, H, W, ...]`, every pixel repeated so that the longer side is about `side`."""
    factor = max(1, round(side / max(images.shape[1:3])))
    return np.repeat(np.repeat(images, factor, axis=1), factor, axis=2)


def colourise(values, low: float, high: float, colours: str) -> np.ndarray:
    """Numbers `[...]` as colours `[..., 3]`: `low` and `high` are the ends of the colour map."""
    import matplotlib

    scaled = (np.asarray(values, np.float32) - low) / max(high - low, 1e-12)
    return matplotlib.colormaps[colours](np.clip(scaled, 0.0, 1.0))[..., :3].astype(np.float32)


def overlay(images, maps) -> np.ndarray:
    """Activation maps over their images, stronger where the map is.

    Args:
      images: `[n, H, W, C]`.
      maps: `[n, H, W]` in [0, 1].

    Returns:
      float32 `[n, H, W, 3]`.
    """
    strength = np.clip(np.asarray(maps, np.float32), 0.0, 1.0)[..., None]
    colours = colourise(maps, 0.0, 1.0, MAP_COLOURS)
    return to_rgb(images) * (1.0 - 0.65 * strength) + 0.65 * strength * colours


def data_uri(image) -> str:
    """One image `[H, W, C]` as a data URI: PNG while small or see-through, JPEG above 64 pixels."""
    if image.shape[-1] == 4 or max(image.shape[:2]) <= 64:
        return png_uri(encode(image, "PNG", optimize=True))
    jpeg = encode(image, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def encode(image, form: str, **options: Any) -> bytes:
    """One image `[H, W, C]` in [0, 1] as a file's bytes; `form` and `options` are Pillow's."""
    from PIL import Image

    pixels = np.asarray(image, np.float32)
    if pixels.shape[-1] == 1:
        pixels = to_rgb(pixels)
    buffer = io.BytesIO()
    picture = Image.fromarray((np.clip(pixels, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def png_uri(png: bytes) -> str:
    """The bytes of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def short_name(name: str, letters: int) -> str:
    """A class name that fits: cut with an ellipsis where it is longer."""
    return name if len(name) <= letters else name[: letters - 1].rstrip() + "…"


def top_classes(logits, class_names: Sequence[str], count: int = 3) -> str:
    """A soft label `[C]` in words: its `count` likeliest classes with their probabilities."""
    exponents = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    probabilities = exponents / exponents.sum()
    order = np.argsort(-probabilities)[:count]
    return ", ".join(f"{class_names[i]} {100 * probabilities[i]:.0f}%" for i in order)
