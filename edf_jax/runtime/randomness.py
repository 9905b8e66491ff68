"""Where every stream of random numbers comes from: the run's seed and a name."""

from __future__ import annotations

import zlib

import jax
import numpy as np


def stream(seed: int, name: str) -> jax.Array:
    """The PRNG key of a named stream; streams of different names are independent."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)


def host_stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """A NumPy generator of a named stream at a place in it, for choices made on the host."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), *counters])
