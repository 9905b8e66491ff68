"""ImageSquawk: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imagesquawk.py:ipc10 --config.data.path=FOLDER

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 86.4):

    IPC  random   MTT   FTD  DATM   EDF
      1    13.2  39.4  40.5  41.1  41.8
     10    29.6  52.3  58.4  61.8  65.4
     50    52.8     -     -  71.0  74.8
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("imagesquawk", variant)
