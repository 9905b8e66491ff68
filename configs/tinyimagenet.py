"""Tiny-ImageNet: 200 classes at 64x64 with ZCA, ConvNetD4, IPC 1, 10, 50 and 100.

    python -m edf_jax.main --config=configs/tinyimagenet.py:ipc10 --config.data.path=FOLDER

Data: the unpacked cs231n.stanford.edu/tiny-imagenet-200.zip. The whitening matrix takes 604 MB.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: see DATM (2310.05773) and EDF (2410.17193); none is repeated here unmeasured.
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("tinyimagenet", variant)
