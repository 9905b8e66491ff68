"""Distillation: the outer loop, what it starts from, and its checkpoints."""
