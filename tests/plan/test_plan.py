"""The plan of a run: counts, memory against XLA's own figure, hours, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from edf_jax.config import load
from edf_jax.config.resolve import default_config, resolve
from edf_jax.data import describe_dataset
from edf_jax.matching.placement import place
from edf_jax.models import build_network
from edf_jax.plan import costs, hours, memory, plan
from edf_jax.runtime import devices
from edf_jax.runtime.errors import UserError

SMALL = {
    "model.width": 16,
    "experts.num": 3,
    "experts.epochs": 6,
    "distill.ipc": 2,
    "distill.batch_syn": 10,
    "distill.syn_steps": 5,
    "distill.iterations": 30,
    "distill.eval_every": 20,
    "distill.current_max_start_epoch": 2,
    "distill.max_start_epoch": 3,
}


def planned(**values):
    config = resolve(default_config(**{**SMALL, **values}))
    return plan.make_plan(config, describe_dataset(config.data))


def test_counts_are_those_of_the_config():
    made = planned()
    assert made.num_images == 20
    assert made.snapshots == 3 * 7
    assert made.experts_bytes == 3 * 7 * 4 * made.network.num_params
    text = plan.to_text(made)
    assert "7,754 parameters" in text
    assert "30 iterations of 5 student steps in batches of 10, 3 evaluations" in text
    assert "20 synthetic images" in text


def test_what_students_see_is_what_stored_images_decode_into():
    grids = {"distill.parametrisation": "multi_formation"}
    made, plain = planned(**grids), planned(**{"distill.ipc": 8})
    assert made.num_images == plain.num_images == 80
    text = plan.to_text(made)
    assert "20 synthetic images" in text and "multi_formation: 80 for students" in text
    # Images and their momentum, in and out, are those of 60 fewer.
    spared = plain.memory["iteration"] - made.memory["iteration"]
    assert spared == 4 * 60 * 4 * 32 * 32 * 3
    with pytest.raises(UserError, match="makes 1089 images of one of 32 pixels a side: lower it"):
        planned(**grids, **{"distill.parametrisation_factor": 33})
    with pytest.raises(UserError, match="ipc=60 times 16 real images in each in 10 classes"):
        planned(**{**grids, "distill.ipc": 60, "distill.parametrisation_factor": 4})


def test_only_needed_snapshots_count_on_disk_where_only_those_are_kept():
    made = planned(**{"experts.keep": "needed"})
    # Starts 0 to 2, their targets two epochs on, and the last of six epochs.
    assert made.experts_bytes == 3 * len({0, 1, 2, 3, 4, 6}) * 4 * made.network.num_params
    assert made.experts_peak_bytes == 3 * 7 * 4 * made.network.num_params


def test_evaluations_are_at_the_start_at_every_interval_and_at_the_end():
    for iterations, expected in ((0, 1), (19, 2), (20, 2), (21, 3), (40, 3)):
        options = default_config(
            **{"distill.iterations": iterations, "distill.eval_every": 20}
        ).distill
        at = {*range(0, iterations + 1, 20), iterations}
        assert hours.evaluations(options) == len(at) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"augment.strategy": "color_flip"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"distill.syn_steps": 40, "model.width": 64}, marks=pytest.mark.slow),
        pytest.param({"data.resolution": 64, "model.depth": 5}, marks=pytest.mark.slow),
        pytest.param({"model.norm": "none"}, marks=pytest.mark.slow),
        pytest.param({"model.name": "ConvNetBN", "distill.batch_syn": 20}, marks=pytest.mark.slow),
        pytest.param({"distill.trajectories": 3}, marks=pytest.mark.slow),
        pytest.param({"model.width": 0, "model.name": "ResNet18"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_estimate_of_an_iteration_is_within_a_quarter_of_xla(values):
    made = planned(**values)
    measured = memory.compiled_iteration_bytes(made.config, made.network, made.num_images)
    assert made.memory["iteration"] == pytest.approx(measured, rel=0.25)


def test_the_estimate_grows_with_what_takes_memory():
    base = planned().memory
    assert planned(**{"distill.batch_syn": 20}).memory["iteration"] > base["iteration"]
    assert planned(**{"distill.trajectories": 4}).memory["iteration"] > base["iteration"]
    longer = planned(**{"distill.syn_steps": 25})
    extra = longer.memory["iteration"] - base["iteration"]
    assert extra == 20 * 4 * longer.network.num_params
    assert planned(**{"experts.batch": 512}).memory["experts"] > base["experts"]
    assert planned(method="datm").memory["maps"] == 0 < base["maps"]


def on(made: plan.Plan, bytes_of_memory: int) -> plan.Plan:
    """The same plan for a device of another size."""
    device = devices.Device("toy", 1, bytes_of_memory)
    made = dataclasses.replace(made, device=device)
    return dataclasses.replace(made, warnings=tuple(plan._warnings(made)))


def test_what_does_not_fit_is_refused_with_the_setting_that_would():
    made = planned(**{"distill.ipc": 20, "distill.batch_syn": 200})
    room = made.memory["iteration"] // 2
    small = on(made, room)
    batch = memory.fitting_batch(made.config, made.network, made.num_images, room)
    placement = place(made.config, made.network, made.num_images, batch)
    assert f"set distill.batch_syn={batch}" in plan.to_text(small)
    assert memory.iteration_bytes(made.config, made.network, made.num_images, placement) <= room
    with pytest.raises(UserError, match="fit into"):
        plan.check_memory(small)
    plan.check_memory(on(made, 2 * max(made.memory.values())))
    plan.check_memory(dataclasses.replace(made, device=devices.Device("toy", 1, None)))


def test_more_devices_than_there_are_are_refused():
    made = planned(**{"parallel.data": 64})
    assert "needs 64 devices" in plan.to_text(made)
    with pytest.raises(UserError, match="parallel.data=64"):
        plan.check_memory(made)


def test_a_device_of_unknown_size_is_said_to_be():
    made = dataclasses.replace(planned(), device=devices.Device("toy", 2, None))
    assert "each of 2 x toy doesn't say how much it has" in plan.to_text(made)


def test_experts_that_do_not_fit_on_the_disk_are_told():
    made = dataclasses.replace(planned(), disk_free=1000)
    assert any("don't fit on the disk" in warning for warning in plan._warnings(made))


def test_zca_is_counted(monkeypatch):
    """Its matrix has a row and a column for each number of an image."""
    made = planned(**{"data.zca": True, "data.resolution": 32})
    size = (32 * 32 * 3) ** 2
    assert f"fitting takes {plan._size(42 * size)} of the host's memory" in plan.to_text(made)
    assert f"the matrix and its inverse {plan._size(8 * size)} on disk" in plan.to_text(made)
    assert not any("ZCA" in told for told in made.warnings)
    large = planned(**{"data.zca": True, "data.resolution": 512})
    assert any(told.startswith("ZCA doesn't fit into the host's") for told in large.warnings)
    monkeypatch.setattr(plan, "_disk_free", lambda folder: 7 * size)
    made = planned(**{"data.zca": True, "data.resolution": 32})
    assert any("ZCA matrices don't fit on the data cache's disk" in w for w in made.warnings)


def test_another_split_than_the_published_is_said_to_be(tmp_path):
    config = load("imagenette", "ipc10")
    config.data.source, config.data.name, config.data.path = "tfds", "imagenette", str(tmp_path)
    config = resolve(config)
    text = plan.to_text(plan.make_plan(config, describe_dataset(config.data)))
    assert "imagenette_fastai: 10 classes" in text and "here with another split" in text
    assert "split as fast.ai does: not to be set beside figures of the published set" in text
    assert "9,469 training and 3,925 test images (946 and 392 a class; exact)" in text


def test_students_that_go_further_than_experts_are_told():
    def told(**values) -> bool:
        return any("experts.batch" in warning for warning in planned(**values).warnings)

    near = {"distill.expert_epochs": 1, "experts.batch": 10**6, "experts.lr": 0.01}
    assert told(**near, **{"distill.syn_steps": 3, "distill.lr_teacher": 0.01})
    assert not told(**near, **{"distill.syn_steps": 2, "distill.lr_teacher": 0.01})
    assert not told(**near, **{"distill.syn_steps": 3, "distill.lr_teacher": 0.005})
    assert not told(**{**near, "experts.batch": 8, "distill.lr_teacher": 0.01})


def test_more_synthetic_than_real_images_are_refused():
    with pytest.raises(UserError, match="distill.ipc=200"):
        planned(**{"distill.ipc": 200})


def test_batches_that_a_student_cannot_have_are_refused_before_experts_are_trained():
    with pytest.raises(UserError, match="batch norm.*distill.batch_syn that divides the"):
        planned(**{"model.norm": "batch", "distill.batch_syn": 3})
    with pytest.raises(UserError, match="distill.store=products is for a batch on one device"):
        planned(**{"parallel.data": 2, "distill.store": "products"})


def test_a_network_that_the_images_are_too_small_for_is_refused():
    with pytest.raises(UserError, match="too small"):
        planned(**{"model.depth": 6})
    with pytest.raises(UserError, match="too small"):
        planned(**{"model.name": "LeNet", "model.width": 0, "data.resolution": 8})
    with pytest.raises(UserError, match="no width to set"):
        planned(**{"model.name": "LeNet"})


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="cam.weights"):
        planned(**{"cam.weights": str(tmp_path / "none.pth")})
    (tmp_path / "some.pth").write_bytes(b"")
    made = planned(**{"cam.weights": str(tmp_path / "some.pth")})
    assert "imported weights" in plan.to_text(made)


def test_settings_that_were_changed_are_named():
    config = resolve(load("svhn", "ipc1,distill.lr_y=1"))
    text = plan.to_text(plan.make_plan(config, describe_dataset(config.data)))
    assert "settings of cifar-10 ipc1, changed in distill.lr_y" in text


def test_hours_are_unknown_on_a_device_without_rates():
    made = planned()
    work = hours.Work(1e12, 1e12, 1e12)
    unknown = hours.estimate(work, 10**7, "toy", "float32")
    assert set(unknown.values()) == {None}
    assert "unknown: no rates" in plan.to_text(dataclasses.replace(made, hours=unknown))


def test_hours_scale_with_the_work():
    once, twice = (
        hours.estimate(hours.Work(x, x, x), 10**7, "cpu", "float32") for x in (1e12, 2e12)
    )
    for stage, value in once.items():
        assert twice[stage] == pytest.approx(2 * value) and value > 0


def test_a_finished_run_gives_its_rates(tmp_path, capsys):
    config = resolve(default_config(**SMALL))
    (tmp_path / "config.json").write_text(config.to_json())
    stages = {"experts": 10.0, "distill": 20.0, "evaluate": 5.0}
    hardware = {"device": "1 x toy", "cores": "2"}
    (tmp_path / "result.json").write_text(json.dumps({"stages": stages, "hardware": hardware}))
    assert hours.main([str(tmp_path)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["stage"] for r in records] == ["experts", "distillation", "evaluation"]
    assert all(r["device"] == "toy" and r["gflops"] > 0 for r in records)
    assert hours.main([str(tmp_path / "none")]) == 2


def test_the_arithmetic_of_a_network_is_counted():
    network = build_network("ConvNetD1", num_classes=10, image_shape=(8, 8, 3), width=16)
    convolution = 2 * 8 * 8 * 16 * 3 * 3 * 3
    linear = 2 * 4 * 4 * 16 * 10
    assert hours.forward_flops(network) == convolution + linear


def test_elementwise_work_between_products_takes_no_memory():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def chain(x):
        return jnp.sum(jnp.tanh(jnp.exp(x) * 2) @ x)

    # The product's left operand, and its result.
    assert costs.peak_bytes(chain, x) == 2 * 64 * 64 * 4


def test_a_loop_takes_what_its_body_takes_once():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def power(x, steps):
        return jax.lax.scan(lambda y, _: (jnp.sin(y @ x) @ x, None), x, length=steps)[0]

    assert costs.peak_bytes(lambda x: power(x, 3), x) == costs.peak_bytes(lambda x: power(x, 9), x)
    body = costs.peak_bytes(lambda y, x: jnp.sin(y @ x) @ x, x, x)
    assert costs.peak_bytes(lambda x: power(x, 3), x) >= body


def test_what_no_result_needs_is_not_counted():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def wasteful(x):
        (x @ x) @ (x @ x)
        return jnp.sum(x)

    assert costs.peak_bytes(wasteful, x) == 4


def test_the_plan_of_the_published_configs_compiles_nothing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    config = resolve(load("imagenette", "ipc10"))
    text = plan.to_text(plan.make_plan(config, describe_dataset(config.data)))
    assert "615,690 parameters" in text and "10,100 snapshots" in text and "not there" in text
