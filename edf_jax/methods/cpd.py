"""Which parameters count in the matching loss: common pattern dropout, and deep layers alone.

References:
    EDF (2410.17193), section 3.3; PAD (2408.03360).
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from edf_jax.runtime.shapes import Selected, Theta

# squared distances [P] -> which of them count [P], a constant for differentiation; or two of that,
# for the distances and for the way that they are divided by
Selection = Callable[[Theta], Selected | tuple[Selected, Selected]]


def common_pattern_dropout(drop: float) -> Selection | None:
    """The selection that drops the `int(drop * P)` smallest squared distances (CPD).

    Args:
        drop: share in [0, 1).

    Returns:
        A selection, or None where nothing is dropped.

    References:
        EDF (2410.17193), section 3.3.
    """
    if not drop:
        return None

    def select(distances: Theta) -> Selected:
        smallest_kept = jnp.sort(distances)[int(drop * distances.size)]
        return distances >= smallest_kept

    return select


def deep_layers(depth_ratio: float) -> Selection | None:
    """The selection that leaves out the first `int(depth_ratio * P)` parameters (PAD, 2408.03360).

    Args:
        depth_ratio: share in [0, 1), counted in forward order.
    """
    if not depth_ratio:
        return None
    return lambda distances: jnp.arange(distances.size) >= int(depth_ratio * distances.size)
