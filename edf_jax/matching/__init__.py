"""The heart: the gradient of the matching loss through the student's steps, and one iteration."""

from edf_jax.matching.gradient import matching_gradient, student_batches

__all__ = ["matching_gradient", "student_batches"]
