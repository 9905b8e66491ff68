"""PyTorch's side of the benchmarks, written as the field's code is."""

from __future__ import annotations

import torch

from benchmarks.pytorch_common import peak_bytes, reset_peak
from benchmarks.pytorch_maps import Maps
from benchmarks.pytorch_matching import Matching
from benchmarks.pytorch_training import Evaluation, Experts
from benchmarks.sizes import Sizes

__all__ = ["TASKS", "device_name", "peak_bytes", "reset_peak", "set_up", "versions"]

TASKS = {"matching": Matching, "experts": Experts, "evaluation": Evaluation, "gradcam": Maps}


def set_up(sizes: Sizes) -> None:
    """Threads, device and what float32 products are computed in."""
    if sizes.device == "gpu":
        torch.cuda.init()
        # Shapes don't change: let cuDNN measure its algorithms.
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(sizes.threads)
    reduced = sizes.pytorch_precision != "float32"
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    torch.backends.cudnn.allow_tf32 = reduced


def device_name() -> str:
    """The device's name as PyTorch gives it."""
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu"


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"torch": torch.__version__}
