"""Fast knowledge distillation: every student's batches fixed beforehand, with a teacher's labels.

For each epoch a table holds the order of the images, their crops and flips, who is mixed with whom
and where, and the teacher's logits for the mixed image in half precision. It is one
`.safetensors` file that needs nothing of this project to be read (see `FORMAT_NOTES`).

References:
  Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition" (2112.01528);
  Yin et al., SRe2L (2306.13092).
"""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from edf_jax.evaluate import crops as views
from edf_jax.runtime import processes, storage
from edf_jax.runtime.errors import UserError

_log = logging.getLogger(__name__)
FORMAT = "edf_jax fkd 1"
FORMAT_NOTES = (
    "E epochs of n images in batches of `batch`, the last batch of an epoch smaller. Place i of "
    "epoch e shows image order[e, i]: crop crops[e, i] = (first row, first column, height, width), "
    "resize it bilinearly to the image's size, mirror it where flips[e, i] is 1. Then, in batch "
    "i // batch, pixels inside mix_boxes[e, i // batch] = (first row, first column, row after the "
    "last, column after the last) come from the crop at place partners[e, i]. labels[e, i] are "
    "the teacher's logits for the result; train with KL divergence at `temperature`."
)
SMALLEST_CROP = 0.08


class Table(NamedTuple):
    """What all students see. E epochs, n images, B batches an epoch.

    Attributes:
        order: `[E, n]` int32, the image at each place.
        crops: `[E, n, 4]` int16, as `views.draw_crops` gives them.
        flips: `[E, n]` uint8.
        partners: `[E, n]` int32, the place whose pixels come into the box.
        mix_boxes: `[E, B, 4]` int16, as in `views.Mix`.
        labels: `[E, n, C]` float16, logits: the teacher's, or the images' own.
        batch: int32 scalar, the size of all batches but an epoch's last.
    """

    order: jax.Array
    crops: jax.Array
    flips: jax.Array
    partners: jax.Array
    mix_boxes: jax.Array
    labels: jax.Array
    batch: jax.Array

    @property
    def num_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self)


def batch_sizes(n: int, batch: int) -> list[int]:
    """The sizes of an epoch's batches."""
    batch = min(batch, n)
    return [batch] * (n // batch) + [n % batch] * bool(n % batch)


def draw(
    key: jax.Array,
    epochs: int,
    num_images: int,
    size: tuple[int, int],
    batch: int,
    *,
    augmented: bool = True,
) -> Table:
    """A table that has no labels yet.

    Args:
        key: epoch e is drawn by `fold_in(key, e)`.
        epochs: E.
        num_images: n.
        size: `(H, W)`.
        batch: the batch size, at most n.
        augmented: False shows every image whole and unmixed.
    """
    sizes = batch_sizes(num_images, batch)

    def epoch(index) -> Table:
        order_key, crop_key, flip_key, mix_key = jax.random.split(jax.random.fold_in(key, index), 4)
        whole = jnp.asarray([0, 0, *size], jnp.int32)
        places = jnp.arange(num_images, dtype=jnp.int32)
        crops = jnp.broadcast_to(whole, (num_images, 4))
        flips = jnp.zeros(num_images, bool)
        boxes = jnp.zeros((len(sizes), 4), jnp.int32)
        partners = places
        if augmented:
            crops = views.draw_crops(crop_key, num_images, size, SMALLEST_CROP)
            flips = jax.random.bernoulli(flip_key, 0.5, (num_images,))
            mixes = [
                views.draw_mix(jax.random.fold_in(mix_key, b), length, size)
                for b, length in enumerate(sizes)
            ]
            starts = np.cumsum([0, *sizes[:-1]])
            partners = jnp.concatenate(
                [mix.partners + start for mix, start in zip(mixes, starts, strict=True)]
            )
            boxes = jnp.stack([mix.box for mix in mixes])
        return Table(
            jax.random.permutation(order_key, places),
            crops.astype(jnp.int16),
            flips.astype(jnp.uint8),
            partners.astype(jnp.int32),
            boxes.astype(jnp.int16),
            jnp.zeros((num_images, 0), jnp.float16),
            jnp.int32(sizes[0]),
        )

    table = lax.map(epoch, jnp.arange(epochs))
    return table._replace(batch=table.batch[0])


def show(images: jax.Array, table: Table, epoch: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What an epoch shows: images `[n, H, W, C]` and labels `[n, C]` float32, in its order.

    Args:
        images: `[n, H, W, C]`, all.
        table: as made for them.
        epoch: zero-based.
    """
    crops = views.resized_crop(images[table.order[epoch]], table.crops[epoch])
    crops = views.flip(crops, table.flips[epoch] > 0)
    boxes = table.mix_boxes[epoch, jnp.arange(len(images)) // table.batch]
    mixed = views.paste(crops, crops[table.partners[epoch]], boxes)
    return mixed, table.labels[epoch].astype(jnp.float32)


def label(
    table: Table, images: jax.Array, teach: Callable[[jax.Array], jax.Array]
) -> Table:
    """The table with the teacher's logits for everything it shows.

    Args:
        table: from `draw`.
        images: `[n, H, W, C]`, normalised.
        teach: from inputs `[n, H, W, C]` to logits `[n, C]`.
    """

    def epoch(index):
        return teach(show(images, table, index)[0]).astype(jnp.float16)

    return table._replace(labels=lax.map(epoch, jnp.arange(len(table.order))))


def keep_own(table: Table, labels: jax.Array, size: tuple[int, int]) -> Table:
    """The table with the images' own labels, mixed as the images are.

    Args:
        table: from `draw`.
        labels: `[n, C]` logits.
        size: `(H, W)` of the images.
    """
    batches = jnp.arange(len(labels)) // table.batch

    def epoch(index):
        shown, boxes = labels[table.order[index]], table.mix_boxes[index, batches]
        mixed = views.mix_labels(shown, shown[table.partners[index]], boxes, size)
        return mixed.astype(jnp.float16)

    return table._replace(labels=lax.map(epoch, jnp.arange(len(table.order))))


def save(path: pathlib.Path, table: Table, details: Mapping[str, Any]) -> None:
    """Writes a table, whole or not at all.

    Args:
        path: a `.safetensors` file.
        table: labelled.
        details: what made it, as JSON holds it.
    """
    tensors = {name: np.asarray(leaf) for name, leaf in table._asdict().items()}
    metadata = {
        "format": FORMAT,
        "notes": FORMAT_NOTES,
        "details": json.dumps(dict(details), sort_keys=True),
    }
    storage.save_tensors(path, tensors, metadata)


def find(path: pathlib.Path, wanted: Mapping[str, Any]) -> Table | None:
    """A table that is there already, read by the first of processes for all; else None.

    Args:
        path: as `save` has it.
        wanted: what must have made it; one that is damaged or another's is told of.
    """

    def read() -> tuple[bool, dict[str, np.ndarray]]:
        if path.exists():
            try:
                table, details = load(path)
                storage.check_place(path, details, wanted)
                return True, {name: np.asarray(leaf) for name, leaf in table._asdict().items()}
            except storage.DamagedFile as error:
                _log.warning("%s: made again", error)
        return False, {}

    there, arrays = processes.arrays_from_first_process("stored soft labels", read)
    return Table(**{k: jnp.asarray(v) for k, v in arrays.items()}) if there else None


def load(path: pathlib.Path) -> tuple[Table, dict[str, Any]]:
    """Reads a table and what made it.

    Raises:
        UserError: there is no such file, or it is no table.
        DamagedFile: it isn't what was written.
    """
    if not path.exists():
        raise UserError(f"there are no stored soft labels at {path}")
    tensors, metadata = storage.load_tensors(path, FORMAT)
    table = Table(**{name: jnp.asarray(tensor) for name, tensor in tensors.items()})
    return table, json.loads(metadata["details"])
