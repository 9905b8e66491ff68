"""Cluttered digits: the built-in complex scenes, no download.

    python -m edf_jax.main --config=configs/cluttered_digits.py:demo --workdir=runs/demo

`demo` takes under 5 minutes and 4 GiB on 2 CPU cores.
"""

from edf_jax.config import parse_variant

_SMALL = {
    "data.source": "cluttered_digits",
    "data.resolution": 32,
    "model.width": 32,
    "experts.batch": 64,
    "experts.lr": 0.05,
    "evaluate.batch": 128,
}

_DEMO = {
    **_SMALL,
    "data.difficulty": 0.3,
    "data.composites": 1,
    "model.width": 16,
    "experts.num": 4,
    "experts.epochs": 16,
    "distill.ipc": 1,
    "distill.iterations": 200,
    "distill.syn_steps": 20,
    "distill.batch_syn": 100,
    "distill.min_start_epoch": 0,
    "distill.current_max_start_epoch": 2,
    "distill.max_start_epoch": 8,
    "distill.expansion_end": 150,
    "distill.threshold": 1.5,
    "distill.drop": 0.0,
    "distill.lr_img": 100.0,
    "distill.lr_y": 1.0,
    "distill.lr_lr": 1e-5,
    "distill.lr_teacher": 0.02,
    "distill.eval_every": 100,
    "distill.save_every": 25,
    "cam.every": 25,
    "evaluate.num": 3,
    "evaluate.epochs": 300,
}

VARIANTS = {"demo": _DEMO}


def get_config(variant: str = "demo"):
    return parse_variant(variant, VARIANTS, "cluttered_digits")
