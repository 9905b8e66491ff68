"""One epoch of expert training: GSAM with DSA, several networks.

    python -m benchmarks.experts --preset=cpu-small --networks=2

Ours is the compiled epoch of a run, for all networks at once or in a compiled loop; PyTorch's
trains them one after another. Images stay on the device as uint8 on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the benchmark by flags; returns its record."""
    return harness.main("experts", __doc__, {"batch": 256, "networks": 2}, 1e-3, argv)


if __name__ == "__main__":
    main()
