"""CIFAR-100 at 32x32 with ZCA, ConvNet of three blocks, IPC 1, 10, 50 and 100.

    python -m edf_jax.main --config=configs/cifar100.py:ipc10

Data: TensorFlow Datasets' cifar100, prepared as array_record (the command says how), or
--config.data.source=npz --config.data.path=/path/to/it.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: see DATM (2310.05773) and EDF (2410.17193); none is repeated here unmeasured.
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("cifar100", variant)
