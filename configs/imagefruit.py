"""ImageFruit: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imagefruit.py:ipc10 --config.data.path=FOLDER

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 64.4):

    IPC  random   MTT   FTD  DATM   EDF
      1    12.4  26.6  29.1  30.9  32.8
     10    20.0  40.3  44.9  45.5  46.2
     50    33.6     -     -  50.2  53.2
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("imagefruit", variant)
