"""ImageMeow: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imagemeow.py:ipc10 --config.data.path=FOLDER

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 65.2):

    IPC  random   MTT   FTD  DATM   EDF
      1    11.2  30.7  33.8  34.0  34.5
     10    22.4  40.4  43.3  48.9  52.6
     50    38.0     -     -  56.8  58.2
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("imagemeow", variant)
