"""Initial parameters, drawn as one vector.

One draw for all parameters, scaled leaf by leaf: a draw for each leaf compiles several times as
long. The initialisers of the modules themselves are therefore placeholders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Path = tuple[str, ...]


def torch_default(key: jax.Array, leaves: Sequence[tuple[Path, tuple[int, ...]]]) -> jax.Array:
    """PyTorch's default: weights and biases uniform in `+-1/sqrt(fan_in)`, norms 1 and 0.

    The uniform distribution is what `kaiming_uniform_(a=sqrt(5))` comes to.

    Args:
        key: a PRNG key.
        leaves: `(path, shape)` of every parameter, in forward order.

    Returns:
        `theta [P]`, float32.

    References:
        He et al., "Delving Deep into Rectifiers", 2015, equation 10 with slope sqrt(5).
    """
    kernels = {path[:-1]: shape for path, shape in leaves if path[-1] == "kernel"}

    def scaled(path: Path, draws: jax.Array) -> jax.Array:
        return draws / math.sqrt(math.prod(kernels[path[:-1]][:-1]))

    return _drawn(key, leaves, lambda path: path[:-1] in kernels, scaled)


def transformer(key: jax.Array, leaves: Sequence[tuple[Path, tuple[int, ...]]]) -> jax.Array:
    """A transformer's: weights and positions from a cut normal, biases 0, norms 1 and 0.

    The normal has deviation 0.02 and is cut at two deviations. Arguments and result are those of
    `torch_default`.

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, as implemented in timm.
    """

    def scaled(path: Path, draws: jax.Array) -> jax.Array:
        root = math.sqrt(2)
        return 0.02 * root * jax.lax.erf_inv(draws * math.erf(2 / root))

    return _drawn(key, leaves, lambda path: path[-1] not in ("bias", "scale"), scaled)


def _drawn(
    key: jax.Array,
    leaves: Sequence[tuple[Path, tuple[int, ...]]],
    is_random: Callable[[Path], bool],
    scaled: Callable[[Path, jax.Array], jax.Array],
) -> jax.Array:
    """`scaled` uniform draws from [-1, 1) where `is_random`; elsewhere scales are 1, biases 0."""
    count = sum(math.prod(shape) for _, shape in leaves)
    draws = jax.random.uniform(key, (count,), jnp.float32, -1, 1)
    pieces, start = [], 0
    for path, shape in leaves:
        end = start + math.prod(shape)
        if is_random(path):
            pieces.append(scaled(path, draws[start:end]))
        else:
            pieces.append(jnp.full((end - start,), float(path[-1] == "scale"), jnp.float32))
        start = end
    return jnp.concatenate(pieces)
