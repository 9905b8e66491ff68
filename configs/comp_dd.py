"""Comp-DD: eight categories of ImageNet, each an easy and a hard subset of ten classes, 128x128.

    python -m edf_jax.main --config=configs/comp_dd.py:bird_easy_ipc10 --config.data.path=FOLDER

Variants: <bird|car|dog|fish|snake|insect|round|music>_<easy|hard>_ipc<1|10|50>, and
<...>_laptop_ipc1, _laptop_ipc10 (some 20 minutes on two CPU cores, 32 pixels) and _gpu_ipc10 (an
hour of one GPU), which find their numbers from the data: docs/choosing-the-numbers.md.

Unpublished settings: fish, snake and insect take bird's of the same half and IPC, round and music
car's. music_hard has nine classes, since its published list names one twice.

Data: ILSVRC-2012 as train/<WordNet id>/* and val/<WordNet id>/*; only those classes are read.
TFDS: add --config.data.source=tfds --config.data.name=imagenet2012.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: none was published with these settings in a form to compare with.
"""

from edf_jax.config import found, parse_variant

_COMMON = {
    "data.source": "folder",
    "data.resolution": 128,
    "data.zca": False,
    "model.name": "ConvNetD5",
    "distill.iterations": 10000,
    "distill.eval_every": 500,
    "distill.syn_steps": 40,
    "distill.expert_epochs": 2,
    "distill.min_start_epoch": 0,
    "distill.lr_lr": 1e-5,
    "distill.lr_teacher": 0.01,
    "cam.beta": 1.0,
    "evaluate.batch": 128,
}
_IPCS = {
    1: {
        "distill.ipc": 1,
        "distill.batch_syn": 1000,
        "distill.current_max_start_epoch": 5,
        "distill.max_start_epoch": 10,
        "distill.expansion_end": 1000,
        "distill.lr_img": 10000.0,
        "distill.lr_y": 2.0,
        "distill.threshold": 2.0,
        "distill.drop": 0.0,
        "cam.every": 50,
    },
    10: {
        "distill.ipc": 10,
        "distill.batch_syn": 200,
        "distill.current_max_start_epoch": 10,
        "distill.max_start_epoch": 20,
        "distill.expansion_end": 1000,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 3.0,
        "distill.threshold": 2.0,
        "distill.drop": 0.25,
        "cam.every": 100,
    },
    50: {
        "distill.ipc": 50,
        "distill.batch_syn": 200,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 40,
        "distill.expansion_end": 2000,
        "distill.lr_img": 100.0,
        "distill.lr_y": 5.0,
        "distill.threshold": 1.0,
        "distill.drop": 0.375,
        "cam.every": 100,
    },
}
# What a subset has of its own.
_OWN = {
    "bird_easy": {1: {"distill.threshold": 1.7}, 50: {"distill.expansion_end": 1000}},
    "bird_hard": {1: {"distill.threshold": 1.5}, 50: {"distill.drop": 0.25}},
    "car_easy": {1: {"distill.lr_y": 3.0}},
    "car_hard": {1: {"distill.lr_y": 3.0}, 50: {"distill.threshold": 1.5}},
    "dog_easy": {10: {"distill.lr_y": 5.0, "distill.batch_syn": 250}},
    "dog_hard": {1: {"distill.threshold": 2.5}, 10: {"distill.lr_y": 2.0}},
}
# Whose settings a category has. Of those without, an animal has an animal's, a thing a thing's.
_SETTINGS_OF = {
    **{"bird": "bird", "car": "car", "dog": "dog"},
    **{"fish": "bird", "snake": "bird", "insect": "bird", "round": "car", "music": "car"},
}

VARIANTS = {
    f"{category}_{half}_ipc{ipc}": {
        **_COMMON,
        **values,
        **_OWN[f"{nearest}_{half}"].get(ipc, {}),
        "data.subset": f"{category}_{half}",
        "published": nearest == category,
        "settings_of": f"{nearest}_{half} ipc{ipc}",
    }
    for category, nearest in _SETTINGS_OF.items()
    for half in ("easy", "hard")
    for ipc, values in _IPCS.items()
}
VARIANTS |= {
    f"{category}_{half}_{name}": values
    for category in _SETTINGS_OF
    for half in ("easy", "hard")
    for name, values in found.variants(VARIANTS[f"{category}_{half}_ipc10"]).items()
}


def get_config(variant: str = "bird_easy_ipc10"):
    return parse_variant(variant, VARIANTS, "comp_dd")
