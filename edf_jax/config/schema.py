"""The keys of a config: their defaults, meanings, sources and ranges."""

from __future__ import annotations

from edf_jax.config.key import AUTO, Key, share
from edf_jax.data.coresets import BASELINES
from edf_jax.methods import dsa, gradcam
from edf_jax.methods.family import METHODS, PARAMETRISATIONS
from edf_jax.runtime.devices import PRECISIONS

_EDF = "EDF (2410.17193), official code"


_RUN = {
    "seed": Key(0, "fixes everything random", at_least=0, below=2**31),
    "method": Key(
        "edf", "fills every part that is 'auto', and sets its own numbers", choices=tuple(METHODS)
    ),
    "published": Key(
        False,
        "whether the settings were published for this dataset, IPC and method (a label for people)",
    ),
    "settings_of": Key(
        "", "the published dataset and IPC that the settings are those of (a label for people)"
    ),
    "precision": Key("float32", "what networks compute products in", choices=PRECISIONS),
    "deterministic": Key(False, "bit-identical runs on a GPU, somewhat slower"),
}

_DATA = {
    "data.source": Key(
        "cluttered_digits",
        "where images come from",
        choices=("cluttered_digits", "tfds", "folder", "idx", "npz"),
    ),
    "data.name": Key("", "the set's name, as its source knows it"),
    "data.path": Key("", "folder or file that holds it; '' looks where its source keeps it"),
    "data.subset": Key(
        "", "a named choice of ImageNet classes, such as 'imagenette' or 'bird_easy'; '' is all"
    ),
    "data.class_list": Key(
        "", "a text file with a WordNet id or ImageNet class index a line, instead of data.subset"
    ),
    "data.resolution": Key(
        32, "side of the square images, pixels; 0 keeps theirs", at_least=0, auto=32
    ),
    "data.zca": Key(False, "ZCA whitening instead of mean and deviation"),
    "data.resize": Key("squash", "how other shapes become square", _EDF, ("squash", "crop")),
    "data.antialias": Key(True, "antialiased bilinear resizing; False is the older codes'", _EDF),
    "data.cache_dir": Key("", "where prepared images lie; '' is the user's cache folder"),
    "data.held_out": share(
        0.0, "share of each class's training images that nothing is trained on, to choose sets by"
    ),
    "data.workers": Key(0, "threads that decode or gather; 0 is one per core", at_least=0),
    "data.on_device": Key(
        AUTO,
        "whether real images are held on the device, or streamed to it from the host; auto streams "
        "a split that would take a third of its memory",
        choices=(AUTO, "yes", "no"),
    ),
    "data.seed": Key(0, "cluttered digits: fixes the composites", at_least=0),
    "data.difficulty": Key(
        0.5, "cluttered digits: 0 large on plain, 1 small on busy", at_least=0, at_most=1
    ),
    "data.composites": Key(1, "cluttered digits: training images per digit sample", at_least=1),
    "data.test_composites": Key(1, "cluttered digits: test images per sample", at_least=1),
}

# The network that experts, students and evaluation share.
_MODEL = {
    "model.name": Key("ConvNet", "network of experts and students, from the registry", _EDF),
    "model.width": Key(
        0,
        "channels of each block; 0 is the network's own (128 for ConvNet)",
        _EDF,
        at_least=0,
        auto=32,
    ),
    "model.depth": Key(
        0,
        "blocks; 0 is the name's own, for ConvNet by the resolution (3 at 32, 4 at 64, 5 at 128)",
        "MTT (2203.11932)",
        at_least=0,
        at_most=100,
    ),
    "model.norm": Key("", "normalisation; '' is the name's own (instance for ConvNet)", _EDF),
    "model.activation": Key("", "activation; '' is the name's own (relu)", _EDF),
    "model.pooling": Key("", "pooling; '' is the name's own (avg)", _EDF),
    "model.convolution": Key(
        AUTO,
        "how convolutions are computed; auto is 'matmul' on a CPU, else the platform's own",
        choices=(AUTO, "platform", "matmul"),
    ),
}

_AUGMENT = {
    "augment.strategy": Key(
        dsa.FULL_STRATEGY,
        "DSA's ops joined by underscores, of which a minibatch gets one; 'none' is none",
        "DSA (2102.08259)",
    ),
    "augment.crop_ratio": share(0.25, "largest shift over the side, student and evaluation", _EDF),
}

_EXPERTS = {
    "experts.num": Key(100, "K, how many", _EDF, at_least=1, auto=4),
    "experts.epochs": Key(100, "E, epochs of each", _EDF, at_least=1, auto=24),
    "experts.batch": Key(256, "batch size", _EDF, at_least=1, auto=256),
    "experts.lr": Key(0.01, "learning rate", _EDF, positive=True, auto=0.1),
    "experts.momentum": share(0.0, "SGD momentum", _EDF),
    "experts.weight_decay": Key(0.0, "SGD weight decay", _EDF, at_least=0),
    "experts.optimizer": Key(AUTO, "the step", "the method", (AUTO, "sgd", "gsam")),
    "experts.schedule": Key(
        AUTO,
        "training images of each epoch: all, or PAD's from easy to hard",
        "the method",
        (AUTO, "all", "pad"),
    ),
    "experts.difficulty": Key(
        "grand", "pad: the score that images are ordered by", "PAD (2408.03360)", ("grand", "el2n")
    ),
    "experts.difficulty_networks": Key(
        5, "pad: networks that the score is averaged over", at_least=1
    ),
    "experts.difficulty_epochs": Key(10, "pad: epochs that they are trained", at_least=0),
    "experts.rho": Key(0.01, "GSAM's ascent radius", _EDF, at_least=0),
    "experts.gsam_alpha": Key(0.3, "GSAM's alpha", _EDF, at_least=0),
    "experts.adaptive": Key(True, "GSAM's ascent scaled by the weights", _EDF),
    "experts.crop_ratio": share(0.125, "largest shift over the side in expert training", _EDF),
    "experts.group": Key(0, "experts trained at once; 0 chooses", at_least=0),
    "experts.keep": Key(
        "all", "snapshots kept on disk: all epochs, or those needed", choices=("all", "needed")
    ),
    "experts.part": Key(
        "", "I/N trains the I-th of N parts of the experts, for jobs beside each other; '' all"
    ),
    "experts.seed": Key(
        -1, "fixes the experts alone; -1 is the run's seed", at_least=-1, below=2**31
    ),
    "experts.dir": Key(
        "", "a store of experts, or a folder that holds many; '' is in the run's folder"
    ),
    "experts.share": Key(
        True, "take finished experts of runs in the same folder where they are the same"
    ),
}

_DISTILL = {
    "distill.ipc": Key(10, "synthetic images per class, as they are stored", at_least=1),
    "distill.parametrisation": Key(
        "pixels",
        "how they are stored, and into how many images each is decoded: as pixels; as a grid of "
        "smaller ones; as low frequencies of several; beside their mirror images",
        "IDC (2205.14959), FreD (2311.08819), FYI (2407.08113)",
        tuple(PARAMETRISATIONS),
    ),
    "distill.parametrisation_factor": Key(
        2,
        "multi_formation: small images in a row and a column of a stored one; frequency: images "
        "that share the coefficients of one; the others have none",
        "IDC (2205.14959)",
        at_least=1,
    ),
    "distill.iterations": Key(
        10000, "last outer iteration, where they start from 0", _EDF, at_least=0, auto=300
    ),
    "distill.syn_steps": Key(40, "N, the student's steps", _EDF, at_least=1, auto=20),
    "distill.batch_syn": Key(1000, "synthetic images in a student's batch", _EDF, at_least=1),
    "distill.expert_epochs": Key(2, "M, epochs from start to target", _EDF, at_least=1, auto=2),
    "distill.min_start_epoch": Key(0, "earliest start epoch", _EDF, at_least=0, auto=0),
    "distill.current_max_start_epoch": Key(
        20,
        "start epochs stay below it at the first iteration (sequential)",
        _EDF,
        at_least=1,
        auto=4,
    ),
    "distill.max_start_epoch": Key(
        40, "start epochs stay below it at the end", _EDF, at_least=1, auto=12
    ),
    "distill.expansion_end": Key(
        3000, "iteration from which the last bound holds (sequential)", _EDF, at_least=1, auto=200
    ),
    "distill.start_schedule": Key(
        AUTO, "whether the bound grows", "the method", (AUTO, "sequential", "fixed")
    ),
    "distill.lr_img": Key(1000.0, "rate of the images", _EDF, at_least=0, auto=1000.0),
    "distill.lr_y": Key(2.0, "rate of the label logits", _EDF, at_least=0, auto=2.0),
    "distill.lr_lr": Key(1e-5, "rate of the student's rate", _EDF, at_least=0, auto=0.02),
    "distill.lr_teacher": Key(
        0.01, "alpha, the student's rate, at the start", _EDF, positive=True, auto=0.04
    ),
    "distill.alpha_step": Key(
        AUTO,
        "what of alpha is learned: 'plain' itself, as published; 'log' its logarithm, which keeps "
        "it positive; auto is log where distill.lr_lr is auto",
        choices=(AUTO, "plain", "log"),
    ),
    "distill.momentum_img": share(0.5, "momentum of the images", _EDF),
    "distill.momentum_y": share(0.9, "momentum of the labels", _EDF),
    "distill.momentum_lr": share(0.5, "momentum of alpha", _EDF),
    "distill.threshold": Key(
        1.5, "matching losses over it change nothing; 0 is no gate", _EDF, at_least=0, auto=1.5
    ),
    "distill.clip": Key(
        0.0,
        "an iteration whose images' gradient is longer counts for as much less; 0 is no limit",
        at_least=0,
        auto=0.0,
    ),
    "distill.loss_mask": Key(
        AUTO, "which parameters count", "the method", (AUTO, "none", "cpd", "deep_layers")
    ),
    "distill.drop": share(0.25, "CPD's share of smallest losses left out", _EDF),
    "distill.depth_ratio": share(
        0.5, "deep_layers' share of first parameters left out", "PAD (2408.03360)"
    ),
    "distill.labels": Key(
        AUTO,
        "what labels are; soft_target: what the matched snapshot says of the images",
        "the method",
        (AUTO, "hard", "soft_fixed", "soft_target", "soft_learned"),
    ),
    "distill.pixel_weight": Key(
        AUTO, "weight of pixel gradients", "the method", (AUTO, "none", "dae")
    ),
    "distill.gradient": Key(
        AUTO, "through the student's steps", "the method", (AUTO, "exact", "tesla")
    ),
    "distill.average": share(
        0.0,
        "decay of the images' moving average, evaluated beside them; 0 is none",
        "FTD (2211.11004)",
    ),
    "distill.init": Key(
        AUTO,
        "first images",
        "the method",
        (AUTO, "predicted_correctly", "real", "noise", "centres"),
    ),
    "distill.trajectories": Key(
        1, "expert trajectories whose gradients an iteration averages", _EDF, at_least=1
    ),
    "distill.store": Key(
        AUTO,
        "what the backward sweep finds stored of a step instead of computing it again; auto is "
        "nothing, which is faster on a CPU and moves fewer bytes on a GPU",
        choices=(AUTO, "nothing", "products", "everything"),
    ),
    "distill.on_nan": Key(
        "skip",
        "after a matching loss over 1000, or a loss, gradient or step that isn't finite: 'skip' "
        "the iteration, or 'stop' the run; nothing moves either way",
        choices=("skip", "stop"),
    ),
    "distill.eval_every": Key(500, "iterations between evaluations", _EDF, at_least=1),
    "distill.save_every": Key(100, "iterations between resumable checkpoints", at_least=1),
    "distill.select": Key(
        "last",
        "the set that the result is about: the last, or that of the evaluation which was best on "
        "test images or on held-out training images (data.held_out)",
        choices=("last", "test", "heldout"),
    ),
}

# Class activation maps.
_CAM = {
    "cam.network": Key(
        AUTO,
        "whose maps: of the first expert, averaged over all experts, of teacher.network trained on "
        "the real data, or of cam.weights; auto is 'imported' where those are given, else "
        "'experts' with cam.method=auto, else 'expert'",
        choices=(AUTO, "expert", "experts", "trained", "imported"),
    ),
    "cam.weights": Key("", "file with a ResNet-18's weights (.pth, .safetensors)"),
    "cam.classes": Key(
        "own",
        "which classes an ImageNet network is asked for: the images' own, or 0, 1, 2, ... for the "
        "labels 0, 1, 2, ..., as EDF's official code asks",
        choices=("own", "official"),
    ),
    "cam.method": Key(
        "grad_cam",
        "how maps are made; auto is 'layer_cam', which finds objects best (docs/results.md)",
        "EDF (2410.17193), paper",
        (AUTO, *gradcam.METHODS),
    ),
    "cam.every": Key(100, "iterations between maps (the paper's interval)", _EDF, at_least=1),
    "cam.beta": Key(1.0, "DAE's addition where the map is high", _EDF, at_least=0),
    "cam.threshold": share(0.0, "DAE's fixed threshold; 0 is each map's mean", _EDF),
}

_EVALUATE = {
    "evaluate.networks": Key(
        "",
        "comma-separated names, 'matched' (the distilling network, as is ''), or pools: "
        "architectures, width, depth, norm, activation, pooling",
    ),
    "evaluate.width": Key(
        0, "channels of other networks whose names leave them open; 0 is their own", at_least=0
    ),
    "evaluate.protocol": Key(
        "plain", "how networks are trained on a set", choices=("plain", "rded", "sre2l")
    ),
    "evaluate.labels": Key(
        AUTO,
        "comma-separated: whose labels networks are trained on, the set's 'own', its 'hard' "
        "classes, or a 'teacher''s; results are named after the first; auto is the protocol's, "
        "which is own for plain and teacher for the others",
    ),
    "evaluate.augment": Key(
        AUTO,
        "'none' trains every network on the images as they are, while distillation augments; auto "
        "is the protocol's, for plain augment.strategy",
        choices=(AUTO, "none"),
    ),
    "evaluate.distilled": Key(
        "", "a set to evaluate instead of the run's: a run, zoo:NAME, .safetensors, .pt, .npz, PNGs"
    ),
    "evaluate.baselines": Key(
        "random", f"comma-separated: {', '.join(BASELINES)}; '' is none"
    ),
    "evaluate.scores": Key(
        False, "DD-Ranking's label- and augmentation-robust scores; four more trainings each"
    ),
    "evaluate.rate": Key(
        AUTO,
        "plain protocol: 'learned' with the set or by 'search' over evaluate.baseline_rates; auto "
        "is learned on the network it was learned with",
        choices=(AUTO, "learned", "search"),
    ),
    "evaluate.kd_epochs": Key(
        300, "epochs of the protocols with a teacher", "RDED (2312.03526)", at_least=1
    ),
    "evaluate.kd_batch": Key(
        0, "their batch size; 0 is the protocol's own", "RDED (2312.03526)", at_least=0
    ),
    "evaluate.bn_updates": Key(
        1,
        "rded protocol: how often a step moves batch-norm statistics; 2 as the official code does, "
        "which shows the unmixed batch first",
        at_least=1,
        at_most=2,
    ),
    "evaluate.num": Key(5, "networks trained from scratch", at_least=1),
    "evaluate.epochs": Key(1000, "E_eval; one more is run", _EDF, at_least=1),
    "evaluate.batch": Key(128, "batch size", _EDF, at_least=1),
    "evaluate.momentum": share(0.9, "SGD momentum", _EDF),
    "evaluate.weight_decay": Key(5e-4, "SGD weight decay", _EDF, at_least=0),
    "evaluate.during_num": Key(
        1, "networks of the evaluations during distillation", _EDF, at_least=1
    ),
    "evaluate.during_fresh": Key(
        False,
        "whether each of them has networks of its own, as papers' have; the largest of their "
        "accuracies is then told as 'paper_statistic' beside the result",
    ),
    "evaluate.during_epochs": Key(0, "their E_eval; 0 is evaluate.epochs", at_least=0),
    "evaluate.baseline_rates": Key(
        "0.001,0.003,0.01,0.03",
        "rates tried where none was learned, on held-out training images",
    ),
    "evaluate.full_epochs": Key(
        0,
        "epochs on all real data for the upper reference; 0 takes the experts' last accuracy",
        at_least=0,
    ),
}

# The network that labels images in the protocols that have one, trained on the real data.
_TEACHER = {
    "teacher.network": Key("", "a name; '' is the distilling network, with batch norm"),
    "teacher.width": Key(0, "its channels, where its name leaves them open", at_least=0),
    "teacher.weights": Key("", "file with its weights (.safetensors, .pth) instead of training"),
    "teacher.dir": Key("", "where trained teachers are kept; '' is the data's cache folder"),
    "teacher.epochs": Key(60, "epochs on the real data", at_least=1),
    "teacher.batch": Key(128, "batch size", at_least=1),
    "teacher.lr": Key(0.05, "first learning rate; falls to 0 along half a cosine", positive=True),
    "teacher.momentum": share(0.9, "SGD momentum"),
    "teacher.weight_decay": Key(5e-4, "SGD weight decay", at_least=0),
    "teacher.smallest_crop": Key(
        0.25, "least area of its random crops over the image's", positive=True, at_most=1
    ),
}

_REST = {
    "budget.minutes": Key(
        0.0,
        "what the whole run may take, about; what is auto of resolution, width, experts, epochs "
        "and iterations goes by it",
        at_least=0,
    ),
    "log.tensorboard": Key(True, "write TensorBoard events"),
    "log.wandb_project": Key("", "Weights & Biases project; '' is none"),
    "parallel.trajectory": Key(1, "devices over which trajectories are spread", at_least=1),
    "parallel.together": Key(
        0,
        "trajectories that a device matches at once (vmap); 0 is all on a TPU, elsewhere one",
        at_least=0,
    ),
    "parallel.data": Key(
        0,
        "devices over which a student's batch is split; 0 takes all cores of a CPU, else one",
        at_least=0,
    ),
}

SCHEMA: dict[str, Key] = {
    **_RUN,
    **_DATA,
    **_MODEL,
    **_AUGMENT,
    **_EXPERTS,
    **_DISTILL,
    **_CAM,
    **_EVALUATE,
    **_TEACHER,
    **_REST,
}

# Keys that may change between sittings of one run.
FREE = (
    "evaluate.",
    "teacher.",
    "log.",
    "distill.iterations",
    "distill.on_nan",
    "distill.select",
    "experts.part",
    "parallel.",
    "data.workers",
    "data.on_device",
)
