"""Training from scratch on a distilled set, and what to hold its accuracy against."""

from edf_jax.evaluate.from_scratch import RealTestData
from edf_jax.evaluate.plain import plain_evaluator
from edf_jax.runs.statistics import Accuracies

__all__ = ["Accuracies", "RealTestData", "plain_evaluator"]
