"""Dataset distillation by trajectory matching, in JAX."""
