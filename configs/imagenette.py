"""ImageNette: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imagenette.py:ipc10 --config.data.path=FOLDER

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.
fast.ai's Imagenette (--config.data.source=tfds --config.data.name=imagenette) splits
differently: its results don't belong beside the published ones.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 87.8):

    IPC  random   MTT   FTD  DATM   EDF
      1    12.6  47.7  52.2  52.5  52.6
     10    44.8  63.0  67.7  68.9  71.0
     50    60.4     -     -  75.4  77.8
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("imagenette", variant)
