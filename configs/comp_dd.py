"""Comp-DD: eight categories of ImageNet, each an easy and a hard subset of ten classes, 128x128.

    python -m edf_jax.main --config=configs/comp_dd.py:bird_easy_ipc10 --config.data.path=FOLDER

Variants: <bird|car|dog|fish|snake|insect|round|music>_<easy|hard>_ipc<1|10|50>.

Unpublished settings: fish, snake and insect take bird's of the same half and IPC, round and music
car's. music_hard has nine classes, since its published list names one twice.

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: none was published with these settings in a form to compare with.
"""

from edf_jax.config import published


def get_config(variant: str = "bird_easy_ipc10"):
    return published.config("comp_dd", variant)
