"""How far the matching gradient is from float64's, for each value of `config.precision`.

    python -m benchmarks.precision --preset=imagenette-ipc10

An expert is trained for three epochs on made-up images of ten classes; the student starts from the
first epoch's snapshot, the target is the third's. All precisions get the same batches and
augmentation. TF32 exists on GPUs alone: elsewhere its row is float32's.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import problems
from benchmarks.harness import print_bench, significant
from benchmarks.ours import NORMALISATION
from benchmarks.sizes import ALPHA, CLASSES, Sizes, parse_sizes
from edf_jax.experts import train as experts
from edf_jax.matching import gradient as matching
from edf_jax.methods import dsa
from edf_jax.methods.cpd import common_pattern_dropout
from edf_jax.runtime import devices
from edf_jax.training import loop as training
from edf_jax.training import losses

# Of the expert.
_RATE = 0.01
_NAMES = ("loss", "images", "labels", "alpha")


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the comparison by flags; returns its record."""
    sizes, _ = parse_sizes(__doc__ or "", {}, argv)
    if sizes.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    devices.set_up("float32")
    task = _Task(sizes)
    with jax.enable_x64(True):
        reference = task.gradient("float32", jnp.float64)
    print(f"relative error against float64, {jax.devices()[0].device_kind}, N = {sizes.syn_steps}")
    print(f"{'':10}" + "".join(f"{name:>12}" for name in _NAMES) + f"{'cosine':>12}")
    errors: dict[str, dict[str, float]] = {}
    for precision in devices.PRECISIONS:
        found = task.gradient(precision, jnp.float32)
        errors[precision] = row = {
            name: _relative(found[name], reference[name]) for name in _NAMES
        }
        row["cosine"] = _cosine(found["images"], reference["images"])
        cells = [f"{row[name]:12.1e}" for name in _NAMES]
        print(f"{precision:10}{''.join(cells)}{row['cosine']:12.6f}", flush=True)
    record = {
        "benchmark": "precision",
        **dataclasses.asdict(sizes),
        "device": jax.devices()[0].device_kind,
        "errors": {
            precision: {name: significant(value, 6) for name, value in row.items()}
            for precision, row in errors.items()
        },
        "versions": {"jax": jax.__version__},
        "load": round(os.getloadavg()[0], 2),
    }
    print_bench(record)
    return record


class _Task:
    """The same matching problem in any precision."""

    def __init__(self, sizes: Sizes):
        self._sizes = sizes
        real = _class_pictures(sizes)
        self._start, self._target, logits = _expert(sizes, *real)
        chosen = np.concatenate(
            [np.flatnonzero(real[1] == label)[: sizes.ipc] for label in range(CLASSES)]
        )
        self._images = np.asarray(NORMALISATION.apply(real[0][chosen]))
        self._labels = logits[chosen]
        batches = matching.student_batches(
            problems.key_of(0), sizes.num_images, sizes.batch, sizes.syn_steps
        )
        # Drawn here once: the same keys give other numbers where float64 is on.
        size = batches.indices.shape[1]
        draws: Any = jax.vmap(lambda key: dsa.draw_dsa(key, size))(batches.keys)
        self._batches = jax.tree.map(np.asarray, batches._replace(keys=draws))

    def gradient(self, precision: str, dtype) -> dict[str, np.ndarray]:
        """The loss and its gradients.

        Args:
            precision: what products are computed in.
            dtype: of parameters, images and labels.
        """
        devices.set_precision(precision)
        network = problems.convnet(dataclasses.replace(self._sizes, precision=precision))
        select = common_pattern_dropout(self._sizes.drop)

        def loss(theta, images, labels, mask):
            logits = network.apply(theta, images, train=True)
            return losses.soft_cross_entropy(logits, labels, mask)

        def transform(draws, images):
            return dsa.apply_dsa(draws, images, crop_ratio=0.25)

        @jax.jit
        def match(*arrays):
            return matching.matching_gradient(loss, transform, *arrays, select=select)

        arrays = (self._start, self._target, self._images, self._labels, ALPHA)
        matched = match(*(jnp.asarray(array, dtype) for array in arrays), self._batches)
        return {name: np.asarray(getattr(matched, name), np.float64) for name in _NAMES}


def _class_pictures(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images with a pattern for each class under noise, and their classes."""
    real = problems.real_set(sizes, sizes.images)
    labels = real["real_labels"]
    patterns = problems.real_set(dataclasses.replace(sizes, ipc=1), 2 * CLASSES)["real_images"]
    mixed = 0.4 * patterns[CLASSES + labels] + 0.6 * real["real_images"]
    return mixed.astype(np.uint8), labels


def _expert(
    sizes: Sizes, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Snapshots after the first and the third epoch, and the last one's logits."""
    network = problems.convnet(dataclasses.replace(sizes, precision="float32"))
    recipe = experts.expert_recipe(problems.config(sizes), network, NORMALISATION.apply)

    @jax.jit
    def train(state, indices, images, labels):
        count = len(indices)
        epochs = training.Epochs(indices, jnp.full(count, _RATE), jnp.zeros(count, bool))
        return training.train_epochs(recipe, state, images, labels, epochs, jax.random.key(7))[0]

    predict = jax.jit(
        lambda theta, images: training.predict(network, theta, {}, images, NORMALISATION.apply)
    )
    state = training.initial_state(recipe, jax.random.key(8))
    snapshots = []
    for indices in ([0], [1, 2]):
        state = train(state, jnp.asarray(indices), images, labels)
        snapshots.append(np.asarray(state.theta))
    return snapshots[0], snapshots[1], np.asarray(predict(state.theta, images))


def _relative(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def _cosine(found: np.ndarray, reference: np.ndarray) -> float:
    norms = np.linalg.norm(found) * np.linalg.norm(reference)
    return float(np.sum(found * reference) / norms)


if __name__ == "__main__":
    main()
