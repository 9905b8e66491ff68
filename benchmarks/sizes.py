"""How much work a benchmark does: flags over presets."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

OURS, PYTORCH = "ours", "pytorch"
# PyTorch in float64.
EXACT = "exact"
# Different draws of the same work; runs go round them.
VARIANTS = 4
CLASSES = 10
# The rate of students and evaluated networks; mean and deviation of pixels.
ALPHA = 0.01
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much work one run is; every benchmark reads what concerns it.

    Attributes:
        preset: the name of the preset they come from.
        width: channels of the ConvNet.
        depth: its blocks.
        resolution: side of the images.
        ipc: synthetic images per class, of ten classes.
        batch: images in a batch.
        syn_steps: N, the student's steps.
        networks: trajectories matched at once, experts or evaluated networks.
        epochs: of evaluation.
        images: real images, of experts and of the test in evaluation.
        drop: CPD's share.
        cam: the network of class activation maps.
        method: how those are made.
        convolution: ours, as `config.model.convolution`.
        store: ours, as `config.distill.store`.
        precision: float32, tf32 or bfloat16.
        pytorch_precision: the same for PyTorch; bfloat16 is its autocast.
        rounds: how often the two are asked in turn.
        repeats: timed runs in a round.
        device: cpu, gpu or auto, the one that JAX finds.
        threads: processor cores for each on a CPU.
        memory_gib: what PyTorch's graph may take; 0 is what is free.
    """

    preset: str = "cpu-small"
    width: int = 32
    depth: int = 3
    resolution: int = 32
    ipc: int = 10
    batch: int = 100
    syn_steps: int = 20
    networks: int = 1
    epochs: int = 40
    images: int = 1024
    drop: float = 0.25
    cam: str = "ConvNet"
    method: str = "grad_cam"
    convolution: str = "auto"
    store: str = "auto"
    precision: str = "float32"
    pytorch_precision: str = "float32"
    rounds: int = 5
    repeats: int = 1
    device: str = "auto"
    threads: int = 2
    memory_gib: float = 0.0

    @property
    def num_images(self) -> int:
        """n, the synthetic images."""
        return CLASSES * self.ipc


_LARGE = {"width": 128, "depth": 5, "resolution": 128, "cam": "ResNet18BNImageNet", "repeats": 3}
PRESETS: dict[str, dict[str, Any]] = {
    "cpu-small": {},
    "cpu": {"width": 128},
    "imagenette-ipc10": {**_LARGE, "syn_steps": 40, "images": 2560},
    "imagenette-ipc50": {
        **_LARGE, "ipc": 50, "syn_steps": 80, "batch": 128, "drop": 0.375, "images": 2560,
    },
}
_CHOICES = {
    "precision": ("float32", "tf32", "bfloat16"),
    "pytorch_precision": ("float32", "tf32", "bfloat16"),
    "device": ("auto", "cpu", "gpu"),
    "store": ("auto", "nothing", "products", "everything"),
    "convolution": ("auto", "platform", "matmul"),
    "cam": ("ConvNet", "ResNet18BNImageNet"),
    "method": ("grad_cam", "smooth_grad_cam_pp"),
}


def parse_sizes(
    description: str, defaults: Mapping[str, Any], argv: Sequence[str] | None = None
) -> tuple[Sizes, argparse.Namespace]:
    """Sizes by flags over a preset; and the parsed flags, for `--only`.

    Args:
        description: of the benchmark, for `--help`.
        defaults: the benchmark's own, over its preset's.
        argv: the flags; the process's own where None.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu-small")
    parser.add_argument("--only", choices=(OURS, PYTORCH), help="run one of the two")
    for field in dataclasses.fields(Sizes):
        if field.name != "preset":
            parser.add_argument(
                f"--{field.name}",
                type=type(field.default),
                choices=_CHOICES.get(field.name),
                help=f"default {field.default}, or the preset's",
            )
    flags = parser.parse_args(argv)
    given = {f.name: getattr(flags, f.name) for f in dataclasses.fields(Sizes)}
    given = {name: value for name, value in given.items() if value is not None}
    if "precision" in given:
        given.setdefault("pytorch_precision", given["precision"])
    return Sizes(**{**PRESETS[flags.preset], **defaults, **given}), flags


def write_sizes(sizes: Sizes, folder: pathlib.Path) -> None:
    """Leaves the sizes for the children."""
    (folder / "sizes.json").write_text(json.dumps(dataclasses.asdict(sizes)))


def read_sizes(folder: pathlib.Path) -> Sizes:
    """The sizes that the parent left."""
    return Sizes(**json.loads((folder / "sizes.json").read_text()))
