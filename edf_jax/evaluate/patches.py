"""A dataset's images as RDED makes them: crops that a teacher is surest of, stitched.

References:
  Sun et al., RDED (2312.03526); the choice and the stitching are `edf_jax.methods.rded`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edf_jax.data import Dataset
from edf_jax.data.decode import ImageSettings, decode
from edf_jax.distilled_set import LabelledImages
from edf_jax.evaluate import crops
from edf_jax.methods import rded
from edf_jax.methods.soft_labels import hard_labels
from edf_jax.runtime.errors import UserError
from edf_jax.training.trained import TrainedNetwork


def stitched_crops(
    rng: np.random.Generator, dataset: Dataset, teacher: TrainedNetwork, ipc: int
) -> LabelledImages:
    """`ipc` stitched images of each class, with hard labels.

    Args:
        rng: draws the images that are looked at, and their crops.
        dataset: the real images.
        teacher: judges the crops.
        ipc: images per class.

    Raises:
        UserError: a class has fewer images than patches are needed.
    """
    train, info = dataset.train, dataset.info
    size = info.image_shape[0]
    # Whitening is of whole images.
    factor = 1 if info.normalisation.zca else rded.factor_of(size)
    count, losses = ipc * factor**2, _make_losses(teacher, size)
    made, positions = [], []
    for label in range(info.num_classes):
        members = rng.permutation(np.flatnonzero(train.labels == label))
        members = members[: max(rded.IMAGES, count)]
        if len(members) < count:
            raise UserError(
                f"class {info.class_names[label]} has {len(members)} training images, and rded "
                f"needs {count}, a patch of each: lower distill.ipc"
            )
        patches = _draw_patches(rng, np.asarray(train.images[members]), size // factor)
        images, best = rded.best_crops(losses(info.normalisation.apply(patches), label), count)
        made.append(rded.stitch(patches[images, best], factor))
        positions.append(members[images])
    return LabelledImages(
        np.asarray(info.normalisation.apply(np.concatenate(made)), np.float32),
        hard_labels(np.repeat(np.arange(info.num_classes), ipc), info.num_classes),
        note=f"{factor} x {factor} crops of real images, chosen by {teacher.name}",
        positions=np.concatenate(positions),
    )


def _draw_patches(rng: np.random.Generator, images: np.ndarray, side: int) -> np.ndarray:
    """Random square crops of each image as stored, `[m, k, s, s, C]`."""
    key = jax.random.key(int(rng.integers(2**31)))
    count, size = len(images) * rded.CROPS, images.shape[1:3]
    boxes = crops.draw_crops(key, count, size, rded.SMALLEST, aspects=(1.0, 1.0))
    settings = ImageSettings(side, "squash", True, images.shape[3], False)
    patches = [
        decode(image[top : top + height, left : left + width], settings)[0]
        for image, (top, left, height, width) in zip(
            np.repeat(images, rded.CROPS, axis=0), np.asarray(boxes)
        )
    ]
    return np.stack(patches).reshape(len(images), rded.CROPS, side, side, -1)


def _make_losses(
    teacher: TrainedNetwork, size: int
) -> Callable[[np.ndarray, int], np.ndarray]:
    """Makes `(patches [m, k, s, s, C], class) -> the teacher's cross-entropy [m, k]`.

    The patches are normalised, and shown amid zeros on an image's size.
    """

    @jax.jit
    def of(arrays, patches, label):
        before = (size - patches.shape[1]) // 2
        sides = (before, size - patches.shape[1] - before)
        logits = teacher.logits(arrays, jnp.pad(patches, ((0, 0), sides, sides, (0, 0))))
        labels = jnp.full(len(patches), label)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

    def losses(patches, label):
        flat = jnp.asarray(patches, jnp.float32).reshape(-1, *patches.shape[2:])
        return np.asarray(of(teacher.arrays, flat, label)).reshape(patches.shape[:2])

    return losses
