"""Controls of CPD, as choices of `distill.loss_mask`, and configs that know them.

    python -m edf_jax.main --config=experiments/controls.py:imagenette,distill.loss_mask=random ...

random: as many parameters are left out as by CPD, but other ones in every iteration, drawn at
    random. What CPD has over it is due to which parameters it leaves out.
rescaled: all parameters count, and the loss is divided by what CPD divides it by. What CPD has
    over it isn't due to the larger loss, and so the larger steps, that dropping makes.
"""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp

from edf_jax.extending import add_part
from edf_jax.methods.cpd import Selection, common_pattern_dropout


def random_dropout(drop: float) -> Selection:
    """The selection that leaves out a share of the parameters at random.

    Args:
        drop: the share, in [0, 1).
    """

    def select(distances):
        # The distances differ in every iteration, and decide the draw.
        bits = jax.lax.bitcast_convert_type(jnp.sum(distances).astype(jnp.float32), jnp.uint32)
        key = jax.random.fold_in(jax.random.key(0), bits)
        draws = jax.random.uniform(key, distances.shape)
        return draws >= jnp.sort(draws)[int(drop * distances.size)]

    return select


def rescaled(drop: float) -> Selection:
    """The selection that counts all distances, over the way of those that CPD would keep.

    Args:
        drop: CPD's share, in [0, 1).
    """
    kept_by_cpd = common_pattern_dropout(drop)

    def select(distances):
        everything = jnp.ones(distances.shape, bool)
        return everything, everything if kept_by_cpd is None else kept_by_cpd(distances)

    return select


def add() -> None:
    """Adds both to the choices of `distill.loss_mask`."""
    add_part("distill.loss_mask", "random", lambda options: random_dropout(options.drop))
    add_part("distill.loss_mask", "rescaled", lambda options: rescaled(options.drop))


def get_config(variant: str = "imagenette"):
    """The config of `<dataset>[,key=value...]` with its settings for ten images per class."""
    add()
    dataset, separator, pairs = variant.partition(",")
    return importlib.import_module(f"configs.{dataset}").get_config("ipc10" + separator + pairs)
