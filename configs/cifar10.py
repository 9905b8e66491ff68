"""CIFAR-10 at 32x32 with ZCA, IPC 1, 10, 50, 500 and 1000.

    python -m edf_jax.main --config=configs/cifar10.py:ipc10_d3

`laptop_ipc1` and `laptop_ipc10` (some 20 minutes on two CPU cores) and `gpu_ipc10` (an hour of one
GPU) find their numbers from the data: docs/choosing-the-numbers.md.

`ipc1`, `ipc10` and `ipc50` are the official files' with ConvNetD5; `ipc1_d3`, `ipc10_d3` and
`ipc50_d3` have the papers' ConvNet of three blocks. IPC 500 and 1000 have three blocks anyway.

Other methods take the settings that were published for them, with three blocks: `method=datm` and
`method=pad` at every IPC, `method=mtt` at 1, 10 and 50, `method=ftd` at 10, `method=tesla` at 1;
where there are none, EDF's. Sources:
DATM (2310.05773)   the YAML files of GzyAftermath/DATM
PAD (2408.03360)    the YAML files of NUS-HPC-AI-Lab/PAD
MTT (2203.11932)    methods/tm/readme.md of justincui03/dc_benchmark, whose numbers are from MTT's
                    author; the table in MTT's own README has another `lr_img` at IPC 10, which he
                    calls a typo (its issue 31)
FTD (2211.11004)    distill/run_distill.sh of AngusDujw/FTD-distillation; its other settings are
                    published as a picture, which was not read
TESLA (2211.10586)  the README of justincui03/tesla, which has hard labels here

Data: TensorFlow Datasets' cifar10, prepared as array_record (the command says how), or
--config.data.source=npz --config.data.path=/path/to/it.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: see DATM (2310.05773) and EDF (2410.17193); none is repeated here unmeasured.
"""

from edf_jax.config import found, parse_variant

_COMMON = {
    "published": True,
    "data.source": "tfds",
    "data.name": "cifar10",
    "data.resolution": 32,
    "data.zca": True,
    "distill.iterations": 10000,
    "distill.batch_syn": 1000,
    "distill.expert_epochs": 2,
    "distill.lr_teacher": 0.01,
    "evaluate.batch": 128,
}

VARIANTS = {
    "ipc1": {
        **_COMMON,
        "settings_of": "cifar-10 ipc1",
        "distill.ipc": 1,
        "model.name": "ConvNetD5",
        "distill.eval_every": 500,
        "distill.syn_steps": 40,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 0,
        "distill.max_start_epoch": 4,
        "distill.lr_img": 10000.0,
        "distill.lr_y": 5.0,
        "distill.lr_lr": 1e-7,
        "distill.threshold": 1.5,
        "distill.drop": 0.0,
    },
    "ipc10": {
        **_COMMON,
        "settings_of": "cifar-10 ipc10",
        "distill.ipc": 10,
        "model.name": "ConvNetD5",
        "distill.eval_every": 500,
        "distill.syn_steps": 40,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 10,
        "distill.max_start_epoch": 20,
        "distill.expansion_end": 1000,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 2.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.0,
        "distill.drop": 0.0,
    },
    "ipc50": {
        **_COMMON,
        "settings_of": "cifar-10 ipc50",
        "distill.ipc": 50,
        "model.name": "ConvNetD5",
        "distill.eval_every": 500,
        "distill.syn_steps": 40,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 40,
        "distill.expansion_end": 2000,
        "distill.lr_img": 100.0,
        "distill.lr_y": 2.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.0,
        "distill.drop": 0.0,
    },
    "ipc500": {
        **_COMMON,
        "settings_of": "cifar-10 ipc500",
        "distill.ipc": 500,
        "model.name": "ConvNet",
        "distill.eval_every": 1000,
        "distill.syn_steps": 80,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 20,
        "distill.current_max_start_epoch": 40,
        "distill.max_start_epoch": 60,
        "distill.expansion_end": 1000,
        "distill.lr_img": 50.0,
        "distill.lr_y": 10.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 2.0,
        "distill.drop": 0.0,
    },
    "ipc1000": {
        **_COMMON,
        "settings_of": "cifar-10 ipc1000",
        "distill.ipc": 1000,
        "model.name": "ConvNet",
        "distill.eval_every": 1000,
        "distill.syn_steps": 80,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 40,
        "distill.max_start_epoch": 60,
        "distill.lr_img": 100.0,
        "distill.lr_y": 10.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.5,
        "distill.drop": 0.25,
        "cam.network": "expert",
        "cam.every": 200,
        "cam.threshold": 0.5,
    },
}
for name in ("ipc1", "ipc10", "ipc50"):
    VARIANTS[f"{name}_d3"] = {**VARIANTS[name], "model.name": "ConvNetD3"}

_DATM_COMMON = {
    "model.name": "ConvNetD3",
    "data.zca": True,
    "distill.iterations": 10000,
    "distill.expert_epochs": 2,
    "distill.lr_teacher": 0.01,
    "distill.momentum_y": 0.9,
    "evaluate.batch": 128,
}
_DATM = {
    "ipc1": {
        **_DATM_COMMON,
        "distill.eval_every": 500,
        "distill.syn_steps": 80,
        "distill.batch_syn": 10,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 0,
        "distill.max_start_epoch": 4,
        "distill.lr_img": 100.0,
        "distill.lr_y": 5.0,
        "distill.lr_lr": 1e-7,
        "distill.threshold": 1.1,
    },
    "ipc10": {
        **_DATM_COMMON,
        "distill.eval_every": 500,
        "distill.syn_steps": 80,
        "distill.batch_syn": 100,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 10,
        "distill.max_start_epoch": 20,
        "distill.expansion_end": 1000,
        "distill.lr_img": 100.0,
        "distill.lr_y": 2.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.0,
    },
    "ipc50": {
        **_DATM_COMMON,
        "distill.eval_every": 500,
        "distill.syn_steps": 80,
        "distill.batch_syn": 500,
        "distill.min_start_epoch": 0,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 40,
        "distill.expansion_end": 2000,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 2.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.0,
    },
    "ipc500": {
        **_DATM_COMMON,
        "distill.eval_every": 1000,
        "distill.syn_steps": 40,
        "distill.batch_syn": 1000,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 40,
        "distill.max_start_epoch": 60,
        "distill.lr_img": 50.0,
        "distill.lr_y": 10.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.0,
    },
    "ipc1000": {
        **_DATM_COMMON,
        "distill.eval_every": 1000,
        "distill.syn_steps": 100,
        "distill.batch_syn": 1000,
        "distill.start_schedule": "fixed",
        "distill.min_start_epoch": 40,
        "distill.max_start_epoch": 60,
        "distill.lr_img": 50.0,
        "distill.lr_y": 10.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.0,
    },
}

# DATM's but for these.
_PAD = {
    "ipc1": {**_DATM["ipc1"], "distill.batch_syn": 1000, "distill.depth_ratio": 0.0},
    "ipc10": {**_DATM["ipc10"], "distill.batch_syn": 500, "distill.depth_ratio": 0.5},
    "ipc50": {
        **_DATM["ipc50"],
        "distill.batch_syn": 1000,
        "distill.expert_epochs": 3,
        "distill.depth_ratio": 0.25,
    },
    "ipc500": {
        **_DATM["ipc500"],
        "distill.start_schedule": "sequential",
        "distill.current_max_start_epoch": 60,
        "distill.max_start_epoch": 70,
        "distill.expansion_end": 2000,
        "distill.depth_ratio": 0.5,
    },
    "ipc1000": {**_DATM["ipc1000"], "distill.depth_ratio": 0.5},
}

_MTT_COMMON = {
    "model.name": "ConvNetD3",
    "experts.epochs": 50,
    "distill.iterations": 5000,
    "distill.eval_every": 100,
    "distill.expert_epochs": 2,
    "evaluate.batch": 256,
    "evaluate.during_num": 5,
}
_MTT = {
    "ipc1": {
        **_MTT_COMMON,
        "data.zca": True,
        "distill.syn_steps": 50,
        "distill.batch_syn": 10,
        "distill.max_start_epoch": 2,
        "distill.lr_img": 100.0,
        "distill.lr_lr": 1e-7,
        "distill.lr_teacher": 0.01,
    },
    "ipc10": {
        **_MTT_COMMON,
        "data.zca": True,
        "distill.syn_steps": 30,
        "distill.batch_syn": 100,
        "distill.max_start_epoch": 20,
        "distill.lr_img": 100.0,
        "distill.lr_lr": 1e-5,
        "distill.lr_teacher": 0.001,
    },
    "ipc50": {
        **_MTT_COMMON,
        "data.zca": False,
        "distill.syn_steps": 30,
        "distill.batch_syn": 500,
        "distill.max_start_epoch": 40,
        "distill.lr_img": 1000.0,
        "distill.lr_lr": 1e-5,
        "distill.lr_teacher": 0.001,
    },
}

_FTD = {
    "ipc10": {
        "model.name": "ConvNetD3",
        "data.zca": True,
        "experts.epochs": 50,
        "distill.iterations": 5000,
        "distill.eval_every": 100,
        "distill.syn_steps": 30,
        "distill.batch_syn": 100,
        "distill.expert_epochs": 2,
        "distill.max_start_epoch": 20,
        "distill.lr_img": 100.0,
        "distill.lr_lr": 1e-5,
        "distill.lr_teacher": 0.001,
        "distill.average": 0.9995,
        "evaluate.batch": 256,
        "evaluate.during_num": 5,
    },
}

_TESLA = {
    "ipc1": {
        "model.name": "ConvNetD3",
        "data.zca": False,
        "experts.epochs": 50,
        "distill.labels": "hard",
        "distill.iterations": 10000,
        "distill.eval_every": 100,
        "distill.syn_steps": 50,
        "distill.batch_syn": 10,
        "distill.expert_epochs": 2,
        "distill.max_start_epoch": 5,
        "distill.lr_img": 1000.0,
        "distill.lr_lr": 1e-7,
        "distill.lr_teacher": 0.01,
        "evaluate.batch": 256,
        "evaluate.during_num": 3,
    },
}

_OF_METHODS = {"datm": _DATM, "pad": _PAD, "mtt": _MTT, "ftd": _FTD, "tesla": _TESLA}
for settings in _OF_METHODS.values():
    settings |= {f"{name}_d3": values for name, values in settings.items()}
VARIANTS |= found.variants(VARIANTS["ipc10"])


def get_config(variant: str = "ipc10"):
    return parse_variant(variant, VARIANTS, "cifar10", _OF_METHODS)
