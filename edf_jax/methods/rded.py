"""RDED's patches: the crops of real images that a network is surest of, stitched into images.

Nothing is optimised: of each image the crop with the lowest loss is kept, of these the best ones,
and each new image is a square of them.

References:
  Sun et al., "On the Diversity and Realism of Distilled Dataset" (RDED, 2312.03526), section 3.3.
"""

from __future__ import annotations

import numpy as np

from edf_jax.runtime.shapes import Float, Integer, Shaped

# Of its official scripts: images looked at in a class, crops of each, the least area of a crop.
IMAGES, CROPS, SMALLEST = 300, 5, 0.08


def factor_of(size: int) -> int:
    """Patches along a side: 2, but 1 up to 64 pixels or on an odd side, as its scripts have it."""
    return 2 if size > 64 and size % 2 == 0 else 1


def best_crops(
    losses: Float[np.ndarray, "m k"], count: int
) -> tuple[Integer[np.ndarray, " r"], Integer[np.ndarray, " r"]]:
    """The crops to keep: each image's best, and of these the `count` best, the best first.

    Args:
        losses: of k crops of each of m images, by their true class.
        count: at most m.

    Returns:
        Positions of images, and which crop of each.
    """
    best = np.argmin(losses, axis=1)
    order = np.argsort(losses[np.arange(len(losses)), best], kind="stable")[:count]
    return order, best[order]


def stitch(
    patches: Shaped[np.ndarray, "p s s c"], factor: int
) -> Shaped[np.ndarray, "n h h c"]:
    """Images of `factor * factor` patches each.

    Args:
        patches: the best first. The first `n` are the upper left corners, the next `n` lie to the
            right of them, and so on row by row, so that every image has a patch of each quality.
        factor: patches along a side.
    """
    _, side, _, channels = patches.shape
    grid = patches.reshape(factor, factor, -1, side, side, channels)
    rows = np.moveaxis(grid, 2, 0).swapaxes(2, 3)  # n, row, s, column, s, c
    return rows.reshape(-1, factor * side, factor * side, channels)
