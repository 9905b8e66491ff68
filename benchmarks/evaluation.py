"""Networks trained from scratch on a synthetic set by the plain protocol, and tested.

    python -m benchmarks.evaluation --preset=cpu-small --networks=5 --epochs=40

Ours is the evaluator of a run: all networks and epochs in one compiled call. PyTorch's trains them
one after another with `torch.optim.SGD`. A full evaluation has 1,001 epochs; time grows with them.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the benchmark by flags; returns its record."""
    defaults = {"batch": 128, "networks": 5, "images": 256}
    return harness.main("evaluation", __doc__, defaults, 1e-3, argv)


if __name__ == "__main__":
    main()
