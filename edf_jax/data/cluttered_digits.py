"""The built-in data: handwritten digits pasted onto photographs.

scikit-learn's 1,797 digits (8x8 pixels), each drawn smoothly at a random size and place, in a
random colour with enough contrast to what lies under it, on a random crop of scikit-learn's two
photographs. It stands for 'complex scenes': the class lies in a part of the picture only.

Everything random comes from uniform draws of one PCG64 stream per composite, and everything
after the draws is integer arithmetic (or float64 on integers, which is exact), so the same
settings give the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_SHARE = 0.2
VERSION = 1  # part of the fingerprint: raise it when the same settings give other pictures

_ONE = 256  # fixed point: eight bits of fraction in positions and weights
_LUMINANCE = np.array([299, 587, 114], np.int64)  # thousandths (ITU-R BT.601)
_TARGETS = 3  # luminances drawn per digit, the one that stands out best is taken
_DRAWS = 11 + _TARGETS  # uniform draws per composite
_BATCH_PIXELS = 1 << 19


def minimum_contrast(difficulty: float) -> float:
    """Least luminance difference (of 255) between a digit and the mean of what it covers."""
    return _between(96.0, 64.0, difficulty)


def split_by_class(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stratified split of the digit samples.

    Args:
        labels: int `[N]`.
        seed: of the split.

    Returns:
        Sorted indices of the training and of the test samples (80% and 20%, none in both).
    """
    draws = np.random.Generator(np.random.PCG64([seed, 0])).random(len(labels))
    classes = np.unique(labels)
    share = np.array([np.sum(labels == c) for c in classes]) * TEST_SHARE
    counts = np.floor(share).astype(int)
    missing = int(np.ceil(len(labels) * TEST_SHARE)) - counts.sum()
    counts[np.argsort(counts - share, kind="stable")[:missing]] += 1
    test = np.zeros(len(labels), bool)
    for c, count in zip(classes, counts, strict=True):
        members = np.flatnonzero(labels == c)
        test[members[np.argsort(draws[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def make_splits(
    *,
    resolution: int,
    difficulty: float,
    composites: int,
    test_composites: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and test composites.

    Args:
        resolution: height and width of the pictures, at least 8.
        difficulty: 0 (large digits, plain background) to 1 (small digits, busy background).
        composites: pictures per training digit. More of them leave the first ones as they are.
        test_composites: pictures per test digit.
        seed: of the split and the pictures.
        progress: called with (pictures done, pictures in all).

    Returns:
        `((images, labels), (images, labels))`: uint8 `[n, resolution, resolution, 3]`, int32 `[n]`.

    Raises:
        UserError: an impossible setting, or scikit-learn or Pillow is not installed.
    """
    check_settings(resolution, difficulty, composites, test_composites)
    digits, labels, photographs = _load_sources()
    train, test = split_by_class(labels, seed)
    total = len(train) * composites + len(test) * test_composites
    atlas = _Atlas(photographs)
    done = 0
    parts = []
    for stream, indices, copies in ((1, train, composites), (2, test, test_composites)):
        images = np.empty((len(indices) * copies, resolution, resolution, 3), np.uint8)
        rows = max(1, _BATCH_PIXELS // resolution**2)
        for copy in range(copies):
            generator = np.random.Generator(np.random.PCG64([seed, stream, copy]))
            draws = generator.random((len(indices), _DRAWS))
            for start in range(0, len(indices), rows):
                chosen = indices[start : start + rows]
                first = copy * len(indices) + start
                images[first : first + len(chosen)] = _compose(
                    digits[chosen], draws[start : start + rows], atlas, resolution, difficulty
                )
                done += len(chosen)
                if progress is not None:
                    progress(done, total)
        parts.append((images, np.tile(labels[indices], copies).astype(np.int32)))
    return parts[0], parts[1]


def training_opacity(
    positions: np.ndarray, *, resolution: int, difficulty: float, composites: int, seed: int
) -> np.ndarray:
    """How much of each pixel the digit covers in training composites.

    Args:
        positions: int `[n]`, of the composites among `make_splits`'s.
        resolution, difficulty, composites, seed: as in `make_splits`.

    Returns:
        float32 `[n, resolution, resolution]` in [0, 1].
    """
    digits, labels, _ = _load_sources()
    train, _ = split_by_class(labels, seed)
    streams = [np.random.Generator(np.random.PCG64([seed, 1, c])) for c in range(composites)]
    draws = np.concatenate([stream.random((len(train), _DRAWS)) for stream in streams])
    chosen = digits[train[positions % len(train)]]
    opacity = _opacity(chosen, draws[positions, 5:8], resolution, difficulty)
    return (opacity / _ONE).astype(np.float32)


def sources_digest() -> str:
    """Digest of the digits and photographs as read here."""
    digits, labels, photographs = _load_sources()
    arrays = (digits, labels, *photographs)
    return storage.fingerprint(*(np.ascontiguousarray(array).data for array in arrays))


def check_settings(
    resolution: int, difficulty: float, composites: int, test_composites: int
) -> None:
    """Refuses impossible settings.

    Raises:
        UserError: names the key, the value and what would do.
    """
    if resolution < 8:
        raise UserError(f"data.resolution={resolution} is too small for a digit; 8 or more.")
    if not 0.0 <= difficulty <= 1.0:
        raise UserError(f"data.difficulty={difficulty} is not between 0 (easy) and 1 (hard).")
    for name, value in (("composites", composites), ("test_composites", test_composites)):
        if value < 1:
            raise UserError(f"data.{name}={value} makes no pictures; 1 or more.")


def _load_sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError(
            "data.source=cluttered_digits needs scikit-learn and Pillow: "
            "pip install scikit-learn pillow"
        ) from None
    bunch = datasets.load_digits()
    try:
        photographs = [np.asarray(p) for p in datasets.load_sample_images().images]
    except ImportError:
        raise UserError(
            "data.source=cluttered_digits needs Pillow to read its photographs: pip install pillow"
        ) from None
    return bunch.images.astype(np.int64), bunch.target.astype(np.int64), photographs


class _Atlas:
    """Each photograph at full, half, quarter ... size, all pixels in one flat array."""

    def __init__(self, photographs: list[np.ndarray]):
        pixels, self.levels, offset = [], 0, 0
        offsets, widths, heights = [], [], []
        for photograph in photographs:
            level, count = photograph.astype(np.int64), 0
            while min(level.shape[:2]) >= 8:
                height, width = level.shape[:2]
                pixels.append(level.reshape(-1, 3))
                offsets.append(offset)
                widths.append(width)
                heights.append(height)
                offset += height * width
                count += 1
                even = level[: height // 2 * 2, : width // 2 * 2]
                blocks = even.reshape(height // 2, 2, width // 2, 2, 3)
                level = (blocks.sum(axis=(1, 3)) + 2) // 4
            self.levels = count
        self.pixels = np.concatenate(pixels).astype(np.int32)
        self.photographs = len(photographs)
        self.offsets = np.array(offsets).reshape(self.photographs, -1)
        self.widths = np.array(widths).reshape(self.photographs, -1)
        self.heights = np.array(heights).reshape(self.photographs, -1)


def _between(easy: float, hard: float, difficulty: float) -> float:
    return easy + (hard - easy) * difficulty


def _compose(
    digits: np.ndarray, draws: np.ndarray, atlas: _Atlas, resolution: int, difficulty: float
) -> np.ndarray:
    """uint8 `[n, R, R, 3]` from digits `[n, 8, 8]` and uniform draws `[n, _DRAWS]`."""
    background = _background(draws[:, :5], atlas, resolution, difficulty)
    opacity = _opacity(digits, draws[:, 5:8], resolution, difficulty)  # 0.._ONE
    target = _stand_out(background, opacity, draws[:, 11:], minimum_contrast(difficulty))
    colour = _colour(draws[:, 8:11], target)
    opacity = opacity[..., None]
    mixed = background * (_ONE - opacity) + colour[:, None, None, :] * opacity
    return ((mixed + _ONE // 2) // _ONE).astype(np.uint8)


def _background(draws: np.ndarray, atlas: _Atlas, resolution: int, difficulty: float) -> np.ndarray:
    """Random crops, int64 `[n, R, R, 3]`: bilinear from the level just finer than needed."""
    which = np.minimum((draws[:, 0] * atlas.photographs).astype(np.int64), atlas.photographs - 1)
    height = atlas.heights[which, 0].astype(np.float64)
    width = atlas.widths[which, 0].astype(np.float64)
    smallest = _between(0.08, 0.45, difficulty)
    largest = _between(0.20, 1.00, difficulty)
    side = (smallest + (largest - smallest) * draws[:, 1]) * np.minimum(height, width)
    top, left = (height - side) * draws[:, 2], (width - side) * draws[:, 3]

    scale = side / resolution  # photograph pixels per picture pixel
    level = np.sum(scale[:, None] >= 2.0 ** np.arange(1, atlas.levels), axis=1)
    steps = np.arange(resolution) + 0.5
    steps_x = np.where((draws[:, 4] < 0.5)[:, None], steps, resolution - steps)

    def positions(first, along, size):
        at = (first[:, None] + along * scale[:, None]) / 2.0 ** level[:, None] - 0.5
        fixed = np.floor(at * _ONE).astype(np.int64)
        fixed = np.clip(fixed, 0, (size[:, None] - 1) * _ONE)
        whole = np.minimum(fixed // _ONE, size[:, None] - 2)
        return whole, fixed - whole * _ONE

    widths = atlas.widths[which, level]
    y, fy = positions(top, steps[None], atlas.heights[which, level])
    x, fx = positions(left, steps_x, widths)
    corner = (atlas.offsets[which, level][:, None] + y * widths[:, None])[:, :, None]
    corner = corner + x[:, None, :]
    below = widths[:, None, None]
    fx, fy = fx[:, None, :, None], fy[:, :, None, None]
    take = atlas.pixels.take
    upper = take(corner, axis=0) * (_ONE - fx) + take(corner + 1, axis=0) * fx
    corner = corner + below
    lower = take(corner, axis=0) * (_ONE - fx) + take(corner + 1, axis=0) * fx
    crop = (upper * (_ONE - fy) + lower * fy + _ONE * _ONE // 2) // (_ONE * _ONE)

    # A plain background is the crop with its contrast drawn towards its own mean colour.
    strength = int(_between(0.25, 1.0, difficulty) * _ONE)
    mean = crop.sum(axis=(1, 2)) // resolution**2
    return (crop * strength + mean[:, None, None, :] * (_ONE - strength)) // _ONE


def _opacity(
    digits: np.ndarray, draws: np.ndarray, resolution: int, difficulty: float
) -> np.ndarray:
    """How much of each pixel the digit covers, int64 `[n, R, R]` in 0.._ONE."""
    smallest = _between(0.80, 0.36, difficulty)
    largest = _between(1.00, 0.56, difficulty)
    size = (smallest + (largest - smallest) * draws[:, 0]) * resolution
    top, left = (resolution - size) * draws[:, 1], (resolution - size) * draws[:, 2]

    def weights(first):  # cubic interpolation from 8 samples to R pixels, integers: [n, R, 8]
        at = (np.arange(resolution) + 0.5 - first[:, None]) * (8.0 / size[:, None]) - 0.5
        distance = np.abs(np.floor(at * _ONE)[:, :, None] / _ONE - np.arange(8))
        near = (1.5 * distance - 2.5) * distance * distance + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        kernel = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
        return np.floor(kernel * _ONE + 0.5)

    # Matrix products of integers stay below 2^53, so they are exact in any order of summation.
    ink = weights(top) @ digits.astype(np.float64) @ weights(left).transpose(0, 2, 1)
    ink = ink.astype(np.int64)  # a full stroke is 16 * _ONE^2
    darkest = np.maximum(ink.max(axis=(1, 2), keepdims=True), 1)
    # The scans are blurred: between a quarter and two thirds of full ink becomes the edge.
    level = ink * 12 * _ONE // darkest
    return np.clip((level - 3 * _ONE) // 5, 0, _ONE)


def _stand_out(
    background: np.ndarray, opacity: np.ndarray, draws: np.ndarray, contrast: float
) -> np.ndarray:
    """Luminance for each digit `[n]`, at least `contrast` from the mean of what it covers.

    Of several draws the one that is too close to the fewest covered pixels is taken: a mean says
    little where the digit lies half on the sky and half on a roof.
    """
    luminance = background @ _LUMINANCE // 1000
    covered = (luminance * opacity).sum(axis=(1, 2)) / np.maximum(opacity.sum(axis=(1, 2)), 1)
    margin = contrast + 2.0  # for rounding
    darker = np.maximum(covered - margin, 0.0)
    brighter = np.maximum(255.0 - covered - margin, 0.0)
    at = draws * (darker + brighter)[:, None]
    above = at + (covered + margin - darker)[:, None]
    targets = np.floor(np.where(at < darker[:, None], at, above)).astype(np.int64)
    hidden = [
        (opacity * (np.abs(luminance - target[:, None, None]) < 64)).sum(axis=(1, 2))
        for target in targets.T
    ]
    best = np.argmin(np.stack(hidden, axis=1), axis=1)
    return targets[np.arange(len(best)), best].astype(np.float64)


def _colour(draws: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Random colours int64 `[n, 3]` of luminance `target [n]`, from draws `[n, 3]`."""
    colour = np.floor(draws * 256).astype(np.int64)
    own = np.maximum(colour @ _LUMINANCE / 1000.0, 1.0)
    dimmed = colour * np.minimum(target / own, 1.0)[:, None]
    share = np.clip((target - own) / np.maximum(255.0 - own, 1.0), 0.0, 1.0)[:, None]
    lit = dimmed + (255.0 - dimmed) * share
    return np.clip(np.floor(lit + 0.5), 0, 255).astype(np.int64)
