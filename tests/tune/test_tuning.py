"""Numbers found from data: by the run's own parts, kept, taken again, pinned by flags."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.config.resolve import autos, flatten, resolve
from edf_jax.distill.initial_set import initialise
from edf_jax.experts.train import open_experts
from edf_jax.matching.gradient import matching_loss, student_batches
from edf_jax.matching.iteration import Student
from edf_jax.matching.placement import Placement
from edf_jax.runs.diagnosis import Finding
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runs.tuned import flags
from edf_jax.runtime import randomness
from edf_jax.runtime.errors import UserError
from edf_jax.tune import measure
from edf_jax.tune.distillation import for_distillation
from edf_jax.tune.tuning import Tuning
from tests import tiny

EXPERTS = ("experts.batch", "experts.lr", "experts.epochs")
DISTILL = (
    "distill.syn_steps", "distill.expert_epochs", "distill.lr_teacher", "distill.threshold",
    "distill.min_start_epoch", "distill.current_max_start_epoch", "distill.max_start_epoch",
    "distill.expansion_end", "distill.lr_img", "distill.lr_y", "distill.lr_lr",
)  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return tiny.dataset(train=120)


def config(*keys: str, **values):
    """The tiny config with some numbers left to the data."""
    return tiny.config("edf", **dict.fromkeys(keys, "auto"), **values)


def tune(asked, data, workdir) -> Tuning:
    tuning = Tuning(asked, workdir)
    tuning.for_experts(data)
    store = open_experts(tuning.config, data, workdir)
    with MetricsWriter(workdir, tensorboard=False) as metrics:
        tuning.train_experts(data, store, metrics)
    for_distillation(
        tuning, data, store, lambda c: initialise(c, data, tiny.network(), store), lambda: 0.0
    )
    return tuning


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned")
    return tune(config(*EXPERTS, *DISTILL, **{"distill.iterations": 40}), data, workdir), workdir


def test_everything_is_found_and_fits_together(tuned):
    tuning, _ = tuned
    assert autos(flatten(tuning.config)) == ()
    distill = tuning.config.distill
    assert distill.alpha_step == "log"
    assert distill.min_start_epoch < distill.current_max_start_epoch <= distill.max_start_epoch
    last = distill.max_start_epoch - 1 + distill.expert_epochs
    assert last <= tuning.config.experts.epochs
    assert distill.lr_teacher > 0 and distill.lr_img > 0 and distill.lr_y > 0


def test_another_sitting_takes_what_was_found(tuned, data, monkeypatch):
    tuning, workdir = tuned

    def never(*arguments, **options):
        raise AssertionError("measured again")

    for name in ("expert_losses", "expert_curve"):
        monkeypatch.setattr(f"edf_jax.tune.tuning.{name}", never)
    for name in ("student_probe", "Gradients"):
        monkeypatch.setattr(f"edf_jax.tune.distillation.{name}", never)
    again = tune(tuning.asked, data, workdir)
    assert flatten(again.config) == flatten(tuning.config)


def test_the_record_says_why_and_what_was_tried(tuned):
    tuning, workdir = tuned
    record = json.loads((workdir / "tuned.json").read_text())
    assert set(record["chosen"]) == {*EXPERTS, *DISTILL} == set(record["told"])
    assert len(record["told"]["experts.lr"]["tried"]) >= 3
    assert len(record["told"]["distill.lr_img"]["tried"]) == 4
    assert tuning.figures() == {"tuned": record["chosen"]}


def test_the_flags_pin_what_was_found(tuned):
    tuning, _ = tuned
    pinned = dict(
        flag.removeprefix("--config.").split("=")
        for flag in flags(tuning.figures()["tuned"], tuning.config.distill.alpha_step)
    )
    kinds = {k: v if k == "distill.alpha_step" else float(v) for k, v in pinned.items()}
    whole = {k: int(v) if type(flatten(tuning.config)[k]) is int else v for k, v in kinds.items()}
    assert flatten(resolve(tuning.asked, **whole)) == flatten(tuning.config)


def test_given_values_stand(data, tmp_path):
    asked = config(
        "distill.lr_teacher", "distill.lr_img", **{"distill.syn_steps": 3, "distill.lr_y": 0.5}
    )
    found = tune(asked, data, tmp_path).config
    before, after = flatten(asked), flatten(found)
    changed = {k for k in before if before[k] != after[k]}
    assert changed == {"distill.lr_teacher", "distill.lr_img"}


def test_nothing_is_written_where_nothing_is_left_open(data, tmp_path):
    asked = tiny.config("edf")
    assert Tuning(asked, tmp_path).config == asked
    assert list(tmp_path.iterdir()) == []


def test_test_images_decide_nothing(tuned, data, tmp_path):
    tuning, _ = tuned
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 256, data.test.images.shape, np.uint8)
    other = dataclasses.replace(data, test=dataclasses.replace(data.test, images=noise))
    again = tune(tuning.asked, other, tmp_path)
    assert again.figures() == tuning.figures()


def test_a_mending_is_kept_and_not_endless(tuned, data, tmp_path):
    asked = tuned[0].asked
    tuning = Tuning(asked, tmp_path)
    finding = Finding("it rises", ("--config.distill.lr_img=1",), "distill.lr_img", 12.3)
    tuning.choose("distill.lr_img", 50.0, "a race")
    for _ in range(2):
        assert tuning.can_mend(finding)
        tuning.mend(finding)
    assert not tuning.can_mend(finding)
    assert Tuning(asked, tmp_path).config.distill.lr_img == 12.0
    given = Tuning(tiny.config("edf"), tmp_path / "given")
    assert not given.can_mend(finding)


def test_probes_are_the_students_own_unrolls(data, tmp_path):
    """Against the matching loss of an unroll written out step by step."""
    asked = tiny.config("mtt", **{"augment.strategy": "none"})
    store = tiny.made_up_experts(tmp_path / "experts")
    initial, network = tiny.initial_set(), tiny.network()
    probe = measure.student_probe(asked, network, initial, store, [0, 1], [2, 3], [1, 2])
    probes = probe(0.05)
    images, labels = jnp.asarray(initial.images), jnp.asarray(initial.labels)
    student = Student(asked, network, len(images), Placement(asked.distill.batch_syn))
    drawn = student_batches(
        jax.random.fold_in(randomness.stream(asked.seed, "tried students"), 1),
        len(images), asked.distill.batch_syn, 3,
    )  # fmt: skip
    start, target = store.snapshot(1, 1), store.snapshot(1, 3)
    theta = jnp.asarray(start)
    for i in range(3):
        rows = drawn.indices[i]
        mask = None if drawn.mask is None else drawn.mask[i]
        theta -= 0.05 * jax.grad(student.loss)(theta, images[rows], labels[rows], mask)
    assert probes.loss[1, 1, 1] == pytest.approx(float(matching_loss(theta, start, target)), 1e-4)


def test_a_command_that_finds_nothing_asks_for_numbers(data, tmp_path):
    with pytest.raises(UserError, match="experts.lr=auto"):
        open_experts(config("experts.lr"), data, tmp_path)
