"""Preparing a folder of JPEGs: ours against PyTorch's loader with Pillow, two workers each.

    python -m benchmarks.data --images=10000

Both decode the same 256x256 JPEGs with Pillow and shrink them to 128x128 (antialiased bilinear).
Ours runs threads, writes the result to disk with checksums and reads it back; the other runs
torch.utils.data.DataLoader with worker processes (what torchvision's ImageFolder does) and keeps
the images in memory. Each runs in a process of its own, in turn, so that a busy machine is busy for
both. Imports are not counted. The last line is `BENCH {json}`: seconds (medians), the ratio of the
other to ours (above 1: ours is faster), the same of CPU time, which other work on the machine
disturbs less, and the peak memory of ours in MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.harness import print_bench
from benchmarks.processes import ROOT, alternate

CLASSES = 10
SIDE = 256
RESOLUTION = 128
WORKERS = 2


def write_images(root: pathlib.Path, count: int) -> None:
    """Random crops of scikit-learn's photographs as JPEGs: train/<class>/*, one each in val/."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(p) for p in load_sample_images().images]
    generator = np.random.default_rng(0)
    for i in range(count + CLASSES):
        folder = root / ("train" if i < count else "val") / f"class_{i % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        photograph = photographs[generator.integers(len(photographs))]
        side = int(generator.integers(200, 420))
        left = int(generator.integers(0, photograph.width - side))
        top = int(generator.integers(0, photograph.height - side))
        crop = photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        crop.save(folder / f"{i}.JPEG", quality=90)


def ours(root: pathlib.Path) -> np.ndarray:
    from edf_jax.data import load_dataset

    with tempfile.TemporaryDirectory(dir=root.parent) as cache_dir:
        config = SimpleNamespace(
            source="folder",
            name="",
            path=str(root),
            subset="",
            class_list="",
            resolution=RESOLUTION,
            zca=False,
            resize="squash",
            antialias=True,
            cache_dir=cache_dir,
            workers=WORKERS,
            held_out=0.0,
        )
        return np.array(load_dataset(config).train.images[::97])


class Files:
    """A map-style PyTorch dataset of the training and validation images."""

    def __init__(self, root: pathlib.Path):
        self.files = [
            file
            for split in ("train", "val")
            for folder in sorted((root / split).iterdir())
            for file in sorted(map(str, folder.iterdir()))
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int):
        import torch
        from PIL import Image

        with Image.open(self.files[i]) as image:
            small = image.convert("RGB").resize((RESOLUTION, RESOLUTION), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small))


def pytorch(root: pathlib.Path) -> np.ndarray:
    import torch

    files: Any = Files(root)
    loader: Any = torch.utils.data.DataLoader(files, batch_size=256, num_workers=WORKERS)
    images = torch.cat(list(loader)).numpy()
    return images[: len(images) - CLASSES][::97]


def child(which: str, root: pathlib.Path) -> None:
    """Runs one of the two and prints seconds, peak MiB and a checksum of some pixels."""
    if which == "ours":
        import grain  # noqa: F401
        import PIL.Image  # noqa: F401

        import edf_jax.data  # noqa: F401
    else:
        import PIL.Image  # noqa: F401
        import torch  # noqa: F401
    start, start_cpu = time.perf_counter(), cpu_seconds()
    images = {"ours": ours, "pytorch": pytorch}[which](root)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"seconds": seconds, "cpu": cpu_seconds() - start_cpu, "peak_mib": peak}
    print(json.dumps(result | {"pixels": int(images.sum())}))


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", choices=("ours", "pytorch"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.root)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "images"
        write_images(root, arguments.images)
        print(f"{arguments.images} JPEGs of {SIDE}x{SIDE} to {RESOLUTION}x{RESOLUTION}")
        print(f"{WORKERS} workers, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")

        def run(which: str, _: int) -> dict:
            command = [sys.executable, "-m", "benchmarks.data", f"--child={which}"]
            output = subprocess.run(
                [*command, f"--root={root}"],
                check=True,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            return json.loads(output.stdout.splitlines()[-1])

        results = alternate(("ours", "pytorch"), arguments.repeats, run)
    assert len({r["pixels"] for rows in results.values() for r in rows}) == 1, "pixels differ"
    ours_seconds, other_seconds, ours_cpu, other_cpu = (
        statistics.median(row[what] for row in results[which])
        for what in ("seconds", "cpu")
        for which in ("ours", "pytorch")
    )
    summary = {
        "images": arguments.images,
        "ours_seconds": round(ours_seconds, 3),
        "pytorch_seconds": round(other_seconds, 3),
        "ratio": round(other_seconds / ours_seconds, 3),
        "ours_cpu_seconds": round(ours_cpu, 3),
        "pytorch_cpu_seconds": round(other_cpu, 3),
        "cpu_ratio": round(other_cpu / ours_cpu, 3),
        "ours_peak_mib": round(max(r["peak_mib"] for r in results["ours"])),
    }
    print_bench(summary)


if __name__ == "__main__":
    main()
