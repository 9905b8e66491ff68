"""ImageYellow: ten classes of ImageNet at 128x128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/imageyellow.py:ipc10 --config.data.path=FOLDER

`laptop_ipc1`, `laptop_ipc10` (some 20 minutes on two CPU cores, 32 pixels) and `gpu_ipc10` (an hour
of one GPU) find their numbers from the data: docs/choosing-the-numbers.md.

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.

Published accuracy (%, ConvNetD5, without a teacher; all data 83.2):

    IPC  random   MTT   FTD  DATM   EDF
      1    14.8  45.2  47.7  48.5  49.4
     10    41.8  60.0  62.8  65.1  68.2
     50    54.6     -     -  70.2  73.2
"""

from edf_jax.config import found, parse_variant

_COMMON = {
    "published": True,
    "data.source": "folder",
    "data.subset": "imageyellow",
    "data.resolution": 128,
    "data.zca": False,
    "model.name": "ConvNetD5",
    "distill.iterations": 10000,
    "distill.eval_every": 500,
    "distill.syn_steps": 40,
    "distill.expert_epochs": 2,
    "distill.min_start_epoch": 0,
    "distill.expansion_end": 1000,
    "distill.lr_lr": 1e-5,
    "distill.lr_teacher": 0.01,
    "cam.beta": 1.0,
    "evaluate.batch": 128,
}

VARIANTS = {
    "ipc1": {
        **_COMMON,
        "settings_of": "imageyellow ipc1",
        "distill.ipc": 1,
        "distill.batch_syn": 1000,
        "distill.current_max_start_epoch": 5,
        "distill.max_start_epoch": 10,
        "distill.lr_img": 10000.0,
        "distill.lr_y": 3.0,
        "distill.threshold": 1.5,
        "distill.drop": 0.0,
        "cam.every": 50,
    },
    "ipc10": {
        **_COMMON,
        "settings_of": "imageyellow ipc10",
        "distill.ipc": 10,
        "distill.batch_syn": 250,
        "distill.current_max_start_epoch": 10,
        "distill.max_start_epoch": 20,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 3.0,
        "distill.threshold": 2.0,
        "distill.drop": 0.25,
        "cam.every": 100,
    },
    "ipc50": {
        **_COMMON,
        "settings_of": "imageyellow ipc50",
        "distill.ipc": 50,
        "distill.batch_syn": 200,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 40,
        "distill.lr_img": 100.0,
        "distill.lr_y": 5.0,
        "distill.threshold": 1.5,
        "distill.drop": 0.375,
        "cam.every": 200,
    },
}
VARIANTS |= found.variants(VARIANTS["ipc10"])


def get_config(variant: str = "ipc10"):
    return parse_variant(variant, VARIANTS, "imageyellow")
