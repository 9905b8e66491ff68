"""Fashion-MNIST: grey 28x28, ConvNet of three blocks of 128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/fashion_mnist.py:ipc1

`laptop_ipc1` and `laptop_ipc10` (some 20 minutes on two CPU cores) find their
numbers from the data: docs/choosing-the-numbers.md.

ipc1, ipc10, ipc50     unpublished: the settings are CIFAR-10's of the same IPC, without ZCA and
                       with three blocks.
gpu_ipc1, gpu_ipc10, gpu_ipc50
                       the same with 20 experts of 30 epochs, for some hours of one GPU.
cpu_ipc1, cpu_ipc10    width 32, 2 experts of 8 epochs, 300 iterations: a quarter and half an hour
                       on two CPU cores.

Data: the four idx files (Debian's package dataset-fashion-mnist is found by itself, else
--config.data.path), or --config.data.source=tfds.

Measured: docs/results.md; --dry_run prints the memory that each stage needs.

Published accuracy of other methods (%, width 128) at IPC 1, 10, 50: DC 70.5, 82.3, 83.6;
DSA 70.6, 84.6, 88.7.
"""

from edf_jax.config import found, parse_variant

_COMMON = {
    "published": False,
    "data.source": "idx",
    "data.name": "fashion_mnist",
    "data.resolution": 28,
    "data.zca": False,
    "model.name": "ConvNet",
    "distill.iterations": 10000,
    "distill.eval_every": 500,
    "distill.syn_steps": 40,
    "distill.batch_syn": 1000,
    "distill.expert_epochs": 2,
    "distill.min_start_epoch": 0,
    "distill.lr_teacher": 0.01,
    "distill.drop": 0.0,
    "evaluate.batch": 128,
}

VARIANTS = {
    "ipc1": {
        **_COMMON,
        "settings_of": "cifar-10 ipc1",
        "distill.ipc": 1,
        "distill.start_schedule": "fixed",
        "distill.max_start_epoch": 4,
        "distill.lr_img": 10000.0,
        "distill.lr_y": 5.0,
        "distill.lr_lr": 1e-7,
        "distill.threshold": 1.5,
    },
    "ipc10": {
        **_COMMON,
        "settings_of": "cifar-10 ipc10",
        "distill.ipc": 10,
        "distill.current_max_start_epoch": 10,
        "distill.max_start_epoch": 20,
        "distill.expansion_end": 1000,
        "distill.lr_img": 1000.0,
        "distill.lr_y": 2.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.0,
    },
    "ipc50": {
        **_COMMON,
        "settings_of": "cifar-10 ipc50",
        "distill.ipc": 50,
        "distill.current_max_start_epoch": 20,
        "distill.max_start_epoch": 40,
        "distill.expansion_end": 2000,
        "distill.lr_img": 100.0,
        "distill.lr_y": 2.0,
        "distill.lr_lr": 1e-5,
        "distill.threshold": 1.0,
    },
}

_GPU = {
    "experts.num": 20,
    "experts.epochs": 30,
    "experts.lr": 0.02,
    "distill.max_start_epoch": 20,
    "distill.current_max_start_epoch": 10,
    "distill.expansion_end": 2000,
    "distill.iterations": 5000,
    "evaluate.during_epochs": 300,
}
_GPU_BY_IPC = {
    "ipc1": {"distill.max_start_epoch": 4, "distill.current_max_start_epoch": 4},
    "ipc10": {},
    "ipc50": {"distill.max_start_epoch": 28},
}
_CPU = {
    "model.width": 32,
    "experts.num": 2,
    "experts.epochs": 8,
    "experts.batch": 512,
    "experts.lr": 0.05,
    "distill.iterations": 300,
    "distill.syn_steps": 30,
    "distill.batch_syn": 50,
    "distill.expert_epochs": 1,
    "distill.current_max_start_epoch": 2,
    "distill.max_start_epoch": 6,
    "distill.expansion_end": 200,
    "distill.lr_lr": 1e-4,
    "distill.lr_teacher": 0.08,
    "distill.threshold": 1.5,
    "distill.eval_every": 100,
    "distill.save_every": 25,
    "cam.every": 20,
    "evaluate.epochs": 200,
    "evaluate.during_epochs": 50,
}
_CPU_BY_IPC = {
    "ipc1": {"distill.max_start_epoch": 3, "distill.lr_img": 1000.0},
    "ipc10": {},
}
VARIANTS |= {
    **{f"gpu_{name}": {**VARIANTS[name], **_GPU, **own} for name, own in _GPU_BY_IPC.items()},
    **{f"cpu_{name}": {**VARIANTS[name], **_CPU, **own} for name, own in _CPU_BY_IPC.items()},
}
VARIANTS = {**found.variants(VARIANTS["ipc10"]), **VARIANTS}


def get_config(variant: str = "ipc10"):
    return parse_variant(variant, VARIANTS, "fashion_mnist")
