"""ImageSquawk: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imagesquawk.py:ipc10 --config.data.path=FOLDER

`laptop_ipc1`, `laptop_ipc10` (some 20 minutes on two CPU cores, 32 pixels) and `gpu_ipc10` (an hour
of one GPU) find their numbers from the data: docs/choosing-the-numbers.md.

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 86.4):

    IPC  random   MTT   FTD  DATM   EDF
      1    13.2  39.4  40.5  41.1  41.8
     10    29.6  52.3  58.4  61.8  65.4
     50    52.8     -     -  71.0  74.8
"""

from edf_jax.config import found, parse_variant

_COMMON = {
    "published": True,
    "data.source": "folder",
    "data.subset": "imagesquawk",
    "data.resolution": 128,
    "data.zca": False,
    "model.name": "ConvNetD5",
    "distill.iterations": 10000,
    "distill.eval_every": 500,
    "distill.expert_epochs": 2,
    "distill.min_start_epoch": 0,
    "distill.expansion_end": 1000,
    "distill.lr_lr": 1e-5,
    "cam.beta": 1.0,
    "evaluate.batch": 128,
}

VARIANTS = {
    "ipc1": {
        **_COMMON,
        "settings_of": "imagesquawk ipc1",
        "distill.ipc": 1,
        "distill.syn_steps": 40,
        "distill.batch_syn": 1000,
        "distill.current_max_start_epoch": 5,
        "distill.max_start_epoch": 10,
        "distill.lr_img": 10000.0,
        "distill.lr_y": 3.0,
        "distill.lr_teacher": 0.01,
        "distill.threshold": 1.5,
        "distill.drop": 0.0,
        "cam.every": 50,
    },
    "ipc10": {
        **_COMMON,
        "settings_of": "imagesquawk ipc10",
        "distill.ipc": 10,
        "distill.syn_steps": 40,
        "distill.batch_syn": 250,
        "distill.current_max_start_epoch": 10,
        "distill.max_start_epoch": 20,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 3.0,
        "distill.lr_teacher": 0.01,
        "distill.threshold": 2.0,
        "distill.drop": 0.25,
        "cam.every": 100,
    },
    "ipc50": {
        **_COMMON,
        "settings_of": "imagesquawk ipc50",
        "distill.ipc": 50,
        "distill.syn_steps": 80,
        "distill.batch_syn": 128,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 40,
        "distill.lr_img": 100.0,
        "distill.lr_y": 5.0,
        "distill.lr_teacher": 0.005,
        "distill.threshold": 1.1,
        "distill.drop": 0.5,
        "cam.every": 100,
    },
}
VARIANTS |= found.variants(VARIANTS["ipc10"])


def get_config(variant: str = "ipc10"):
    return parse_variant(variant, VARIANTS, "imagesquawk")
