"""Configs: their keys, variants and checks."""

from edf_jax.config import found
from edf_jax.config.files import load
from edf_jax.config.resolve import default_config, flatten, parse_variant

__all__ = ["default_config", "flatten", "found", "load", "parse_variant"]
