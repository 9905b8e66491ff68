"""Training from scratch on a distilled set, and what to hold its accuracy against."""

from edf_jax.evaluate.plain import Accuracies, Evaluator

__all__ = ["Accuracies", "Evaluator"]
