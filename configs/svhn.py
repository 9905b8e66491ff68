"""SVHN (cropped digits): 32x32, ConvNet of three blocks of 128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/svhn.py:ipc1

Unpublished: the settings are CIFAR-10's of the same IPC, without ZCA, with three blocks and
without flipping in the augmentation.

Data: TensorFlow Datasets' svhn_cropped, prepared as array_record (the command says how), or
--config.data.source=npz --config.data.path=/path/to/it.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: not published for this method, not measured.
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("svhn", variant)
