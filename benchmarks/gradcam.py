"""Class activation maps of all synthetic images, and the weight that they give pixels.

    python -m benchmarks.gradcam --preset=imagenette-ipc10 --method=smooth_grad_cam_pp

The large presets take ImageNet's ResNet-18, as the official code does, the others the ConvNet of
the students. PyTorch's makes the maps of all images in one batch too.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the benchmark by flags; returns its record."""
    return harness.main("gradcam", __doc__, {}, 1e-3, argv)


if __name__ == "__main__":
    main()
