"""Images stored as their own pixels, as in dataset distillation by trajectory matching.

References:
    Cazenavette et al., MTT (2203.11932).
"""

from __future__ import annotations

from edf_jax.methods.parametrisation.stored import Parametrisation


def _itself(images):
    return images


PIXELS = Parametrisation("pixels", _itself, _itself)


def pixels(factor: int = 1) -> Parametrisation:
    """Parameters are the images; there is no factor."""
    del factor
    return PIXELS
