"""ImageWoof: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imagewoof.py:ipc10 --config.data.path=FOLDER

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 66.5):

    IPC  random   MTT   FTD  DATM   EDF
      1    11.4  28.6  30.1  30.4  30.8
     10    20.2  35.8  38.8  40.5  41.8
     50    28.2     -     -  47.1  48.4
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("imagewoof", variant)
