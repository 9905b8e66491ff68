"""ImageNette: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imagenette.py:ipc10 --config.data.path=FOLDER

`laptop_ipc1`, `laptop_ipc10` (some 20 minutes on two CPU cores, 32 pixels) and `gpu_ipc10` (an hour
of one GPU) find their numbers from the data: docs/choosing-the-numbers.md.

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

from edf_jax.config import found, parse_variant

_COMMON = {
    "published": True,
    "data.source": "folder",
    "data.subset": "imagenette",
    "data.resolution": 128,
    "data.zca": False,
    "model.name": "ConvNetD5",
    "distill.iterations": 10000,
    "distill.eval_every": 500,
    "distill.expert_epochs": 2,
    "distill.min_start_epoch": 0,
    "distill.lr_lr": 1e-5,
    "distill.lr_teacher": 0.01,
    "distill.threshold": 1.5,
    "cam.beta": 1.0,
    "evaluate.batch": 128,
}

VARIANTS = {
    "ipc1": {
        **_COMMON,
        "settings_of": "imagenette ipc1",
        "distill.ipc": 1,
        "distill.syn_steps": 40,
        "distill.batch_syn": 1000,
        "distill.current_max_start_epoch": 5,
        "distill.max_start_epoch": 10,
        "distill.expansion_end": 1000,
        "distill.lr_img": 10000.0,
        "distill.lr_y": 2.0,
        "distill.drop": 0.0,
        "cam.every": 50,
    },
    "ipc10": {
        **_COMMON,
        "settings_of": "imagenette ipc10",
        "distill.ipc": 10,
        "distill.syn_steps": 40,
        "distill.batch_syn": 200,
        "distill.current_max_start_epoch": 10,
        "distill.max_start_epoch": 20,
        "distill.expansion_end": 1000,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 2.0,
        "distill.drop": 0.25,
        "cam.every": 100,
    },
    "ipc50": {
        **_COMMON,
        "settings_of": "imagenette ipc50",
        "distill.ipc": 50,
        "distill.syn_steps": 80,
        "distill.batch_syn": 128,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 40,
        "distill.expansion_end": 2000,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 5.0,
        "distill.drop": 0.375,
        "cam.every": 200,
    },
}
VARIANTS |= found.variants(VARIANTS["ipc10"])


def get_config(variant: str = "ipc10"):
    return parse_variant(variant, VARIANTS, "imagenette")
