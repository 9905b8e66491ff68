"""Tiny-ImageNet: 200 classes at 64x64 with ZCA, ConvNetD4, IPC 1, 10, 50 and 100.

    python -m edf_jax.main --config=configs/tinyimagenet.py:ipc10 --config.data.path=FOLDER

Other methods take the settings that were published for them: `method=datm`, `method=pad` and
`method=mtt` at IPC 1, 10 and 50 (MTT's without ZCA); where there are none, EDF's. Sources:
DATM (2310.05773)   the YAML files of GzyAftermath/DATM
PAD (2408.03360)    the YAML files of NUS-HPC-AI-Lab/PAD
MTT (2203.11932)    methods/tm/readme.md of justincui03/dc_benchmark, whose numbers are from MTT's
                    author

Data: the unpacked cs231n.stanford.edu/tiny-imagenet-200.zip. The whitening matrix takes 604 MB.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: see DATM (2310.05773) and EDF (2410.17193); none is repeated here unmeasured.
"""

from edf_jax.config import parse_variant

_COMMON = {
    "published": True,
    "data.source": "folder",
    "data.name": "tiny_imagenet",
    "data.resolution": 64,
    "data.zca": True,
    "model.name": "ConvNetD4",
    "distill.iterations": 10000,
    "distill.expert_epochs": 2,
    "distill.lr_y": 10.0,
    "distill.lr_lr": 1e-4,
    "distill.lr_teacher": 0.01,
    "evaluate.batch": 128,
}

VARIANTS = {
    "ipc1": {
        **_COMMON,
        "settings_of": "tinyimagenet ipc1",
        "distill.ipc": 1,
        "distill.eval_every": 500,
        "distill.syn_steps": 40,
        "distill.batch_syn": 1000,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 15,
        "distill.max_start_epoch": 20,
        "distill.expansion_end": 2000,
        "distill.lr_img": 10000.0,
        "distill.threshold": 1.0,
        "distill.drop": 0.0,
    },
    "ipc10": {
        **_COMMON,
        "settings_of": "tinyimagenet ipc10",
        "distill.ipc": 10,
        "distill.eval_every": 500,
        "distill.syn_steps": 60,
        "distill.batch_syn": 250,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 10,
        "distill.max_start_epoch": 50,
        "distill.lr_img": 100.0,
        "distill.threshold": 1.1,
        "distill.drop": 0.5,
        "cam.every": 100,
    },
    "ipc50": {
        **_COMMON,
        "settings_of": "tinyimagenet ipc50",
        "distill.ipc": 50,
        "distill.eval_every": 500,
        "distill.syn_steps": 80,
        "distill.batch_syn": 250,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 40,
        "distill.max_start_epoch": 70,
        "distill.expansion_end": 1,
        "distill.lr_img": 100.0,
        "distill.threshold": 1.1,
        "distill.drop": 0.5,
        "cam.every": 100,
        "cam.threshold": 0.5,
    },
    "ipc100": {
        **_COMMON,
        "settings_of": "tinyimagenet ipc100",
        "distill.ipc": 100,
        "distill.eval_every": 1000,
        "distill.syn_steps": 40,
        "distill.batch_syn": 600,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 30,
        "distill.max_start_epoch": 80,
        "distill.expansion_end": 1,
        "distill.lr_img": 1000.0,
        "distill.threshold": 1.1,
        "distill.drop": 0.5,
        "cam.every": 200,
        "cam.threshold": 0.5,
    },
}

_DATM_COMMON = {
    "model.name": "ConvNetD4",
    "data.zca": True,
    "distill.iterations": 10000,
    "distill.eval_every": 500,
    "distill.expert_epochs": 2,
    "distill.lr_y": 10.0,
    "distill.lr_lr": 1e-4,
    "distill.lr_teacher": 0.01,
    "distill.momentum_y": 0.9,
    "distill.threshold": 1.0,
    "evaluate.batch": 128,
}
_DATM = {
    "ipc1": {
        **_DATM_COMMON,
        "distill.syn_steps": 40,
        "distill.batch_syn": 1000,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 15,
        "distill.max_start_epoch": 20,
        "distill.expansion_end": 2000,
        "distill.lr_img": 10000.0,
    },
    "ipc10": {
        **_DATM_COMMON,
        "distill.syn_steps": 40,
        "distill.batch_syn": 500,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 10,
        "distill.max_start_epoch": 50,
        "distill.lr_img": 100.0,
    },
    "ipc50": {
        **_DATM_COMMON,
        "distill.syn_steps": 20,
        "distill.batch_syn": 1000,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 40,
        "distill.max_start_epoch": 70,
        "distill.expansion_end": 1,
        "distill.lr_img": 100.0,
    },
}

# DATM's but for these.
_PAD = {
    "ipc1": {**_DATM["ipc1"], "distill.depth_ratio": 0.5},
    "ipc10": {**_DATM["ipc10"], "distill.depth_ratio": 0.5},
    "ipc50": {**_DATM["ipc50"], "distill.depth_ratio": 0.5},
}

_MTT_COMMON = {
    "model.name": "ConvNetD4",
    "data.zca": False,
    "experts.epochs": 50,
    "distill.iterations": 5000,
    "distill.eval_every": 100,
    "distill.expert_epochs": 2,
    "distill.lr_img": 10000.0,
    "distill.lr_lr": 1e-4,
    "distill.lr_teacher": 0.01,
    "evaluate.batch": 256,
    "evaluate.during_num": 5,
}
_MTT = {
    "ipc1": {
        **_MTT_COMMON,
        "distill.syn_steps": 10,
        "distill.batch_syn": 200,
        "distill.max_start_epoch": 10,
    },
    "ipc10": {
        **_MTT_COMMON,
        "distill.syn_steps": 20,
        "distill.batch_syn": 200,
        "distill.max_start_epoch": 40,
    },
    "ipc50": {
        **_MTT_COMMON,
        "distill.syn_steps": 20,
        "distill.batch_syn": 300,
        "distill.max_start_epoch": 40,
    },
}

_OF_METHODS = {"datm": _DATM, "pad": _PAD, "mtt": _MTT}


def get_config(variant: str = "ipc10"):
    return parse_variant(variant, VARIANTS, "tinyimagenet", _OF_METHODS)
