"""MNIST: grey 28x28, ConvNet of three blocks of 128, IPC 1, 10 and 50.

    python -m edf_jax.main --config=configs/mnist.py:ipc1

`laptop_ipc1` and `laptop_ipc10` (some 20 minutes on two CPU cores) and `gpu_ipc10` (an hour of one
GPU) find their numbers from the data: docs/choosing-the-numbers.md.

Unpublished: the settings are CIFAR-10's of the same IPC, without ZCA, with three blocks and
without flipping in the augmentation.

Data: TensorFlow Datasets' mnist, prepared as array_record (the command says how), or
--config.data.source=idx --config.data.path=/path/to/it.

Hardware and time: not measured yet; --dry_run prints the memory that each stage needs.
Accuracy: not published for this method, not measured.
"""

from edf_jax.config import found, parse_variant

_COMMON = {
    "published": False,
    "data.source": "tfds",
    "data.name": "mnist",
    "data.resolution": 28,
    "data.zca": False,
    "model.name": "ConvNet",
    # Mirrored digits are not digits.
    "augment.strategy": "color_crop_cutout_scale_rotate",
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
VARIANTS |= found.variants(VARIANTS["ipc10"])


def get_config(variant: str = "ipc10"):
    return parse_variant(variant, VARIANTS, "mnist")
