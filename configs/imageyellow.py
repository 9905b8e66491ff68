"""ImageYellow: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imageyellow.py:ipc10 --config.data.path=FOLDER

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 83.2):

    IPC  random   MTT   FTD  DATM   EDF
      1    14.8  45.2  47.7  48.5  49.4
     10    41.8  60.0  62.8  65.1  68.2
     50    54.6     -     -  70.2  73.2
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("imageyellow", variant)
