"""Distilled sets that come with the package: `edf_jax.load("zoo:NAME")`."""

from edf_jax.zoo.catalogue import Card, names, read_card

__all__ = ["Card", "names", "read_card"]
