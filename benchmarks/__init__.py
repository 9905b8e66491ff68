"""Comparisons with PyTorch on identical work; see docs/benchmarks.md."""
