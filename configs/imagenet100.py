"""ImageNet100: a hundred classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imagenet100.py:ipc10 --config.data.path=FOLDER

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Unpublished: neither class list nor settings were published for ImageNet100. The list is
edf_jax/data/imagenet100.txt; --config.data.class_list=FILE takes another. The settings are
ImageNette's of the same IPC.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 56.4):

    IPC  random   MTT   FTD  DATM   EDF
      1     2.4     -     -   9.8  11.5
     10    15.2     -     -  20.9  21.9
     50    29.7     -     -  42.7  44.2

To be expected only with the authors' own classes and settings.
"""

from edf_jax.config import published


def get_config(variant: str = "ipc10"):
    return published.config("imagenet100", variant)
