"""Prints as JSON how far every placement's outer iteration is from one device's; a program."""

from __future__ import annotations

import json
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

from edf_jax import models  # noqa: E402
from edf_jax.config import resolve as config  # noqa: E402
from edf_jax.matching import iteration  # noqa: E402

_TRAJECTORIES = 8
# A batch of five divides by none of the data axes.
_BATCH = 5
# Devices along trajectories and along the data, and trajectories that a device maps at once.
_PLACEMENTS = {
    "float64": [(8, 1, 1), (1, 8, 1), (1, 3, 1), (1, 1, 3), (4, 2, 2)],
    "float32": [(4, 2, 2)],
}


def moved(trajectory: int, data: int, together: int, dtype):
    """Loss, and how far one iteration moves images, labels and alpha."""
    settings = config.resolve(
        config.default_config(
            **{
                "distill.parametrisation": "multi_formation",
                "distill.batch_syn": _BATCH,
                "distill.syn_steps": 2,
                "distill.trajectories": _TRAJECTORIES,
                "distill.threshold": 0.0,
                "distill.lr_img": 1.0,
                "parallel.trajectory": trajectory,
                "parallel.data": data,
                "parallel.together": together,
            }
        )
    )
    network = models.build_network(
        "ConvNet", num_classes=4, image_shape=(8, 8, 3), width=4, depth=2
    )
    keys = jax.random.split(jax.random.key(0), 5)
    starts = jax.vmap(lambda key: network.init(key)[0])(jax.random.split(keys[0], _TRAJECTORIES))
    starts = starts.astype(dtype)
    targets = starts + 0.02 * jax.random.normal(keys[1], starts.shape, dtype)
    # Two grids of four images each.
    images = jax.random.normal(keys[2], (2, 8, 8, 3), dtype)
    labels = jax.random.normal(keys[3], (8, 4), dtype)
    values = iteration.Learnable(images, labels, jnp.asarray(0.1, dtype))
    state = iteration.initial_state(settings.distill, values)
    step = iteration.make_iteration(settings, network, 8)
    weight = jnp.ones((8, 8, 8, 1), dtype)
    after, report = step(state, starts, targets, weight, keys[4])
    # One step of plain SGD: the momentum's trace is the gradient.
    return report["loss"], *jax.tree.leaves(after.momentum)


def main() -> None:
    rows = []
    for name, placements in _PLACEMENTS.items():
        dtype = jnp.dtype(name)
        expected = moved(1, 1, 1, dtype)
        for placement in placements:
            actual = moved(*placement, dtype)
            errors = [
                float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
                for a, b in zip(actual, expected)
            ]
            rows.append([name, placement, max(errors), len(errors)])
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
