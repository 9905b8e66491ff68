"""CIFAR-10 at 32x32 with ZCA, IPC 1, 10, 50, 500 and 1000.

    python -m edf_jax.main --config=configs/cifar10.py:ipc10_d3

`ipc1`, `ipc10` and `ipc50` are the official files' with ConvNetD5; `ipc1_d3`, `ipc10_d3` and
`ipc50_d3` have the papers' ConvNet of three blocks. IPC 500 and 1000 have three blocks anyway.

Data: TensorFlow Datasets' cifar10, prepared as array_record (the command says how), or
--config.data.source=npz --config.data.path=/path/to/it.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: see DATM (2310.05773) and EDF (2410.17193); none is repeated here unmeasured.
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("cifar10", variant)
