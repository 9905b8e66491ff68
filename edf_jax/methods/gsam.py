"""GSAM: sharpness-aware minimisation guided by the surrogate gap, on flat parameter vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from edf_jax.runtime.shapes import Scalar, Theta

ValueAndGrad = Callable[[jax.Array], tuple[tuple[jax.Array, Any], jax.Array]]


def gsam_gradient(
    value_and_grad: ValueAndGrad,
    theta: Theta,
    *,
    rho: float | Scalar,
    alpha: float | Scalar,
    adaptive: bool = True,
    eps: float = 1e-12,
) -> tuple[Scalar, Any, Theta]:
    """The direction of one GSAM step; the step itself is `theta - rate * direction`.

    With `g` the gradient at `theta` and `gp` that at `theta + e`, where `e` is the ascent step
    of length `rho` (scaled by `theta**2` if adaptive), the direction is `gp - alpha * v`, with
    `v` the part of `g` that is orthogonal to `gp`. With `rho` and `alpha` zero it is `g`.

    Args:
      value_and_grad: `theta [P] -> ((loss, aux), gradient [P])`, called twice, so it has to be
        the same batch and the same randomness both times.
      theta: `[P]`; norms and products are over the whole vector.
      rho: length of the ascent step.
      alpha: weight of the orthogonal part.
      adaptive: scale the ascent step by the parameters (ASAM, arXiv 2102.11600).
      eps: added to the norms that divide.

    Returns:
      loss: before the perturbation, a scalar.
      aux: of the first pass, so batch-norm statistics move once.
      direction: `[P]`.

    References:
      Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training"
      (arXiv 2203.08065), algorithm 1.
    """
    (loss, aux), gradient = value_and_grad(theta)
    if adaptive:
        ascent = theta**2 * gradient * (rho / (jnp.linalg.norm(theta * gradient) + eps))
    else:
        ascent = gradient * (rho / (jnp.linalg.norm(gradient) + eps))
    # One vector, not a sum to be made anew by every layer that takes its part of it: compiled for
    # a GPU that took 8 minutes instead of one.
    _, perturbed = value_and_grad(lax.optimization_barrier(theta + ascent))

    norm, perturbed_norm = jnp.linalg.norm(gradient), jnp.linalg.norm(perturbed)
    cosine = jnp.sum(gradient * perturbed) / (perturbed_norm * norm + eps)
    parallel = cosine * norm * perturbed / (perturbed_norm + eps)
    return loss, aux, perturbed - alpha * (gradient - parallel)
