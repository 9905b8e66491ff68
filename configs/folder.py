"""Your own images: a folder with train/<class>/* and val/<class>/* (or test/<class>/*).

    python -m edf_jax.main --config=configs/folder.py:auto --config.data.path=/path/to/photos

The classes are the folders in train/, as many as there are. Images become squares of
`data.resolution` pixels, which also decides the network's depth: three blocks at 32, four at 64,
five at 128.

`auto` (`laptop` is another name for it): every number is found from the images and from the speed
of this machine, so that the run takes about 20 minutes; docs/choosing-the-numbers.md says how.
Behind it may stand what you want otherwise, such as `:auto,minutes=60,ipc=10,resolution=64`.
`few_photos`: numbers chosen by hand for some 40 photos a class. On the 200 photos in four classes
of docs/make_photos.py it took 114 s of CPU time.
`ipc1`, `ipc10`, `ipc50`: 128x128 with ImageNette's settings of the same IPC, for a GPU and a
thousand photos or more; memory is in the plan, time not measured.

Unpublished, so no accuracy to expect; the result puts random real images beside. By `few_photos`,
those 160 training photos gave 46.1% on 600 others of the same making, random real images 32.6%;
crops of that making overlap, so this says nothing of real photos.
"""

from edf_jax.config import found, parse_variant

_COMMON = {
    "published": False,
    "data.source": "folder",
    "data.resolution": 128,
    "data.zca": False,
    "model.name": "ConvNet",
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
    "few_photos": {
        "data.source": "folder",
        "data.resolution": 32,
        "data.resize": "crop",
        "model.width": 32,
        "experts.num": 4,
        "experts.epochs": 16,
        "experts.batch": 16,
        "experts.lr": 0.05,
        "distill.ipc": 1,
        "distill.iterations": 200,
        "distill.syn_steps": 20,
        "distill.current_max_start_epoch": 2,
        "distill.max_start_epoch": 8,
        "distill.expansion_end": 150,
        "distill.drop": 0.0,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 2.0,
        "distill.lr_teacher": 0.02,
        "distill.eval_every": 100,
        "distill.save_every": 25,
        "cam.every": 25,
        "evaluate.num": 3,
        "evaluate.epochs": 300,
    },
}
VARIANTS["auto"] = found.of(
    {"data.source": "folder", "data.resize": "crop"}, ipc=1, minutes=20
)
VARIANTS["laptop"] = VARIANTS["auto"]


def get_config(variant: str = "auto"):
    return parse_variant(variant, VARIANTS, "folder")
