"""CIFAR-100 at 32x32 with ZCA, ConvNet of three blocks, IPC 1, 10, 50 and 100.

    python -m edf_jax.main --config=configs/cifar100.py:ipc10

`laptop_ipc1` and `laptop_ipc10` (some 20 minutes on two CPU cores) and `gpu_ipc10` (an hour of one
GPU) find their numbers from the data: docs/choosing-the-numbers.md.

Other methods take the settings that were published for them: `method=datm` and `method=pad` at
every IPC, `method=mtt` at 1, 10 and 50, `method=ftd` at 10, `method=tesla` at 50; where there are
none, EDF's. Sources:
DATM (2310.05773)   the YAML files of GzyAftermath/DATM
PAD (2408.03360)    the YAML files of NUS-HPC-AI-Lab/PAD
MTT (2203.11932)    methods/tm/readme.md of justincui03/dc_benchmark, whose numbers are from MTT's
                    author
FTD (2211.11004)    distill/run_distill.sh of AngusDujw/FTD-distillation; its other settings are
                    published as a picture, which was not read
TESLA (2211.10586)  the README of justincui03/tesla, which has hard labels here

Data: TensorFlow Datasets' cifar100, prepared as array_record (the command says how), or
--config.data.source=npz --config.data.path=/path/to/it.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: see DATM (2310.05773) and EDF (2410.17193); none is repeated here unmeasured.
"""

from edf_jax.config import found, parse_variant

_COMMON = {
    "published": True,
    "data.source": "tfds",
    "data.name": "cifar100",
    "data.resolution": 32,
    "data.zca": True,
    "model.name": "ConvNet",
    "distill.iterations": 10000,
    "distill.eval_every": 500,
    "distill.batch_syn": 1000,
    "distill.lr_y": 10.0,
    "distill.lr_lr": 1e-5,
    "distill.lr_teacher": 0.01,
    "distill.drop": 0.0,
    "evaluate.batch": 128,
}

VARIANTS = {
    "ipc1": {
        **_COMMON,
        "settings_of": "cifar-100 ipc1",
        "distill.ipc": 1,
        "distill.syn_steps": 40,
        "distill.expert_epochs": 3,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 30,
        "distill.expansion_end": 1000,
        "distill.lr_img": 1000.0,
        "distill.threshold": 1.0,
    },
    "ipc10": {
        **_COMMON,
        "settings_of": "cifar-100 ipc10",
        "distill.ipc": 10,
        "distill.syn_steps": 80,
        "distill.expert_epochs": 2,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 40,
        "distill.expansion_end": 2000,
        "distill.lr_img": 1000.0,
        "distill.threshold": 1.0,
    },
    "ipc50": {
        **_COMMON,
        "settings_of": "cifar-100 ipc50",
        "distill.ipc": 50,
        "distill.init": "real",
        "distill.syn_steps": 80,
        "distill.expert_epochs": 2,
        "distill.min_start_epoch": 40,
        "distill.current_max_start_epoch": 60,
        "distill.max_start_epoch": 80,
        "distill.expansion_end": 1000,
        "distill.lr_img": 1000.0,
        "distill.threshold": 2.0,
    },
    "ipc100": {
        **_COMMON,
        "settings_of": "cifar-100 ipc100",
        "distill.ipc": 100,
        "distill.syn_steps": 80,
        "distill.expert_epochs": 2,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 30,
        "distill.max_start_epoch": 70,
        "distill.lr_img": 50.0,
        "distill.threshold": 1.0,
    },
}

_DATM_COMMON = {
    "model.name": "ConvNetD3",
    "data.zca": True,
    "distill.iterations": 10000,
    "distill.eval_every": 500,
    "distill.batch_syn": 1000,
    "distill.lr_y": 10.0,
    "distill.lr_lr": 1e-5,
    "distill.lr_teacher": 0.01,
    "distill.momentum_y": 0.9,
    "distill.threshold": 1.0,
    "evaluate.batch": 128,
}
_DATM = {
    "ipc1": {
        **_DATM_COMMON,
        "distill.syn_steps": 40,
        "distill.expert_epochs": 3,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 10,
        "distill.max_start_epoch": 20,
        "distill.expansion_end": 1000,
        "distill.lr_img": 1000.0,
    },
    "ipc10": {
        **_DATM_COMMON,
        "distill.syn_steps": 80,
        "distill.expert_epochs": 2,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 30,
        "distill.max_start_epoch": 50,
        "distill.expansion_end": 2000,
        "distill.lr_img": 1000.0,
    },
    "ipc50": {
        **_DATM_COMMON,
        "distill.init": "real",
        "distill.syn_steps": 80,
        "distill.expert_epochs": 2,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 20,
        "distill.max_start_epoch": 70,
        "distill.lr_img": 1000.0,
    },
    "ipc100": {
        **_DATM_COMMON,
        "distill.syn_steps": 80,
        "distill.expert_epochs": 2,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 30,
        "distill.max_start_epoch": 70,
        "distill.lr_img": 50.0,
    },
}

# DATM's but for these.
_PAD = {
    "ipc1": {
        **_DATM["ipc1"],
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 30,
        "distill.depth_ratio": 0.5,
    },
    "ipc10": {**_DATM["ipc10"], "distill.depth_ratio": 0.5},
    "ipc50": {**_DATM["ipc50"], "distill.depth_ratio": 0.0},
    "ipc100": {**_DATM["ipc100"], "distill.depth_ratio": 0.5},
}

_MTT_COMMON = {
    "model.name": "ConvNetD3",
    "experts.epochs": 50,
    "distill.iterations": 5000,
    "distill.eval_every": 100,
    "distill.lr_img": 1000.0,
    "distill.lr_lr": 1e-5,
    "distill.lr_teacher": 0.01,
    "evaluate.batch": 256,
    "evaluate.during_num": 5,
}
_MTT = {
    "ipc1": {
        **_MTT_COMMON,
        "data.zca": True,
        "distill.syn_steps": 20,
        "distill.batch_syn": 100,
        "distill.expert_epochs": 3,
        "distill.max_start_epoch": 20,
    },
    "ipc10": {
        **_MTT_COMMON,
        "data.zca": False,
        "distill.syn_steps": 20,
        "distill.batch_syn": 1000,
        "distill.expert_epochs": 2,
        "distill.max_start_epoch": 20,
    },
    "ipc50": {
        **_MTT_COMMON,
        "data.zca": True,
        "distill.syn_steps": 80,
        "distill.batch_syn": 125,
        "distill.expert_epochs": 2,
        "distill.max_start_epoch": 40,
    },
}

_FTD = {
    "ipc10": {
        "model.name": "ConvNetD3",
        "data.zca": True,
        "experts.epochs": 50,
        "distill.iterations": 5000,
        "distill.eval_every": 100,
        "distill.syn_steps": 20,
        "distill.batch_syn": 1000,
        "distill.expert_epochs": 2,
        "distill.max_start_epoch": 40,
        "distill.lr_img": 1000.0,
        "distill.lr_lr": 1e-5,
        "distill.lr_teacher": 0.01,
        "distill.average": 0.9995,
        "evaluate.batch": 256,
        "evaluate.during_num": 5,
    },
}

_TESLA = {
    "ipc50": {
        "model.name": "ConvNetD3",
        "data.zca": True,
        "experts.epochs": 50,
        "distill.labels": "hard",
        "distill.iterations": 10000,
        "distill.eval_every": 100,
        "distill.syn_steps": 80,
        "distill.batch_syn": 125,
        "distill.expert_epochs": 2,
        "distill.max_start_epoch": 40,
        "distill.lr_img": 1000.0,
        "distill.lr_lr": 1e-5,
        "distill.lr_teacher": 0.01,
        "evaluate.batch": 256,
        "evaluate.during_num": 3,
    },
}

_OF_METHODS = {"datm": _DATM, "pad": _PAD, "mtt": _MTT, "ftd": _FTD, "tesla": _TESLA}
VARIANTS |= found.variants(VARIANTS["ipc10"])


def get_config(variant: str = "ipc10"):
    return parse_variant(variant, VARIANTS, "cifar100", _OF_METHODS)
