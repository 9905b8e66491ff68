"""Fashion-MNIST: grey 28x28, ConvNet of three blocks of 128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/fashion_mnist.py:ipc1

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

from edf_jax.config import published

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
    "1": {"distill.max_start_epoch": 4, "distill.current_max_start_epoch": 4},
    "10": {},
    "50": {"distill.max_start_epoch": 28},
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
    "1": {"distill.max_start_epoch": 3, "distill.lr_img": 1000.0},
    "10": {},
}


def _variants():
    base = published.variants("fashion_mnist")
    return {
        **{
            f"gpu_{name}": {**values, **_GPU, **_GPU_BY_IPC[name.removeprefix("ipc")]}
            for name, values in base.items()
        },
        **{f"cpu_ipc{ipc}": {**base[f"ipc{ipc}"], **_CPU, **v} for ipc, v in _CPU_BY_IPC.items()},
    }


def get_config(variant: str = "ipc10"):
    return published.config("fashion_mnist", variant, _variants())
