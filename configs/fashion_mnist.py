"""Fashion-MNIST: grey 28x28, ConvNet of three blocks of 128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/fashion_mnist.py:ipc1

Unpublished: the settings are CIFAR-10's of the same IPC, without ZCA and with three blocks.

Data: the four idx files (Debian's package dataset-fashion-mnist is found by itself, else
--config.data.path), or --config.data.source=tfds.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy of other methods (%, the same network) at IPC 1, 10, 50: DC 70.5, 82.3, 83.6;
DSA 70.6, 84.6, 88.7. Ours is to be above.
"""

from edf_jax import published


def get_config(variant: str = "ipc10"):
    return published.config("fashion_mnist", variant)
