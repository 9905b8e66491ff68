"""One outer iteration of trajectory matching: the gradient through N student steps.

    python -m benchmarks.matching --preset=cpu-small --syn_steps=40

Ours is the compiled iteration of a run; PyTorch's keeps the graph of all steps. Both get the same
parameters, images, batches and augmentation, and must return the same loss and gradients. On a GPU
where PyTorch's graph doesn't fit, the largest number of steps that does is timed and scaled.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the benchmark by flags; returns its record."""
    return harness.main("matching", __doc__, {}, 1e-4, argv)


if __name__ == "__main__":
    main()
