"""Measurements: rates, baselines, stored labels, the teacher, figures that are kept."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edf_jax.distilled_set import LabelledImages
from edf_jax.evaluate import measure, protocols, stage
from edf_jax.evaluate.measure import Evaluation
from edf_jax.evaluate.measured import Measured
from edf_jax.evaluate.measurement import Measurement
from edf_jax.evaluate.teacher import get_teacher, read_teacher, teacher_network, write_teacher
from edf_jax.experts import difficulty
from edf_jax.methods import rded
from edf_jax.methods.parametrisation.multi_formation import multi_formation
from edf_jax.models.choose import MATCHED, POOLS, expand, network_for
from edf_jax.report import comparison, tables
from edf_jax.report.tables import result_table
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError
from edf_jax.training.trained import TrainedNetwork
from tests.evaluation_data import make_config, make_dataset, make_distilled, without_test_pixels


def _no_teacher():
    raise AssertionError("no teacher is needed here")


def _evaluation(config, dataset, folder, **options):
    return Evaluation(config, dataset, folder, **options)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


def _experts(config, dataset):
    network = network_for(config, dataset.info)
    return lambda early=False: [
        TrainedNetwork(network, *network.init(jax.random.key(k)), f"network {k}") for k in range(2)
    ]


def test_a_learned_rate_is_used_on_its_own_network_alone(dataset, tmp_path):
    config = make_config()
    evaluation = _evaluation(config, dataset, tmp_path, teacher=_no_teacher)
    own = make_distilled(dataset)
    assert evaluation._known_rate(Measurement(own)) == pytest.approx(0.05)
    assert evaluation._known_rate(Measurement(own, "MLP")) is None
    assert evaluation._known_rate(Measurement(own.with_hard_labels())) is None
    other = make_distilled(dataset)
    object.__setattr__(other, "config", {"model.width": 128})
    assert evaluation._known_rate(Measurement(other)) is None
    searching = _evaluation(make_config(**{"evaluate.rate": "search"}), dataset, tmp_path)
    assert searching._known_rate(Measurement(own)) is None
    everywhere = _evaluation(make_config(**{"evaluate.rate": "learned"}), dataset, tmp_path)
    assert everywhere._known_rate(Measurement(own, "MLP")) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("name", "student", "teacher", "settings"),
    [
        ("cifar100", "ConvNetD1W4", "ConvNetD1W4BN", (25, 2e-3)),
        ("cifar100", "MLP", "ConvNetD1W4BN", (100, 1e-3)),
        ("cifar100", "ConvNetD1W4", "MLP", (100, 1e-3)),
        ("cifar10", "ConvNetD1W4", "ConvNetD1W4BN", (100, 1e-3)),
        ("tiny_imagenet", "ConvNetD1W4", "ConvNetD1W4BN", (100, 1e-3)),
    ],
)
def test_rdeds_own_numbers_are_used_where_its_code_has_them(
    dataset, tmp_path, name, student, teacher, settings
):
    info = dataclasses.replace(dataset.info, name=name, class_names=tuple(map(str, range(100))))
    of = dataclasses.replace(dataset, info=info)
    taught = TrainedNetwork(network_for(make_config(), info, teacher), (), {}, "a teacher")
    evaluation = _evaluation(make_config(), of, tmp_path, teacher=lambda: taught)
    images = np.zeros((1000, *info.image_shape), np.float32)
    subject = LabelledImages(images, np.zeros((1000, 100), np.float32))
    one = Measurement(subject, student, "rded")
    special = evaluation._cifar100_convnets(one)
    rate = protocols.rate_of(evaluation.network(student, "rded"), cifar100_convnets=special)
    assert (evaluation._batch(one), rate) == settings


def test_the_search_for_a_rate_never_sees_test_images(dataset, tmp_path):
    """Other test images, and the same rates are chosen; held-out ones are not trained on."""
    config = make_config()
    found = []
    for data in (dataset, without_test_pixels(dataset)):
        evaluation = _evaluation(config, data, tmp_path, teacher=_no_teacher)
        subject = evaluation.baseline("random", 2)
        held_out = evaluation.held_out(subject)
        assert not set(held_out) & set(subject.positions)
        assert len(held_out) + len(subject.positions) == 60
        measurement = Measurement(subject)
        tested = []
        evaluator = evaluation.evaluator(measurement)
        test = evaluator.test
        evaluator.test = lambda states, *data, test=test, tested=tested: (
            tested.append(data) or test(states, *data)
        )
        found.append(evaluation._rate(measurement, evaluator, None))
        ((images, labels),) = tested
        np.testing.assert_array_equal(images, dataset.train.images[held_out])
        np.testing.assert_array_equal(labels, dataset.train.labels[held_out])
    assert found[0] == found[1]
    assert found[0][1] == "best of 2 on 54 held-out training images"


def test_shrunk_images_are_more_in_the_same_bytes(dataset, tmp_path):
    evaluation = _evaluation(make_config(), dataset, tmp_path, teacher=_no_teacher)
    whole, shrunk = (evaluation.baseline(name, 1) for name in ("random", "downsampled"))
    assert shrunk.stored_bytes.images == whole.stored_bytes.images
    assert shrunk.images.shape == (4 * len(whole.images), *whole.images.shape[1:])
    real = dataset.train.labels[shrunk.positions]
    np.testing.assert_array_equal(shrunk.classes, real)
    assert np.bincount(real).tolist() == [4, 4, 4]
    pixels = dataset.info.normalisation.apply(dataset.train.images[shrunk.positions])
    stored = multi_formation(2).encode(pixels)
    np.testing.assert_allclose(shrunk.parameters, stored, rtol=1e-6)


def test_baselines_are_real_images_of_each_class(dataset, tmp_path):
    config = make_config()
    evaluation = _evaluation(
        config, dataset, tmp_path, teacher=_no_teacher, networks=_experts(config, dataset)
    )
    for name in ("random", "herding", "k_centre", "el2n", "ccs", "real_soft"):
        subject = evaluation.baseline(name, 2)
        expected = dataset.train.labels[subject.positions]
        assert np.bincount(expected).tolist() == [2, 2, 2] and len(set(subject.positions)) == 6
        stored = dataset.info.normalisation.apply(dataset.train.images[subject.positions])
        np.testing.assert_allclose(subject.images, stored, rtol=1e-6)
        assert subject.has_soft_labels == (name == "real_soft")
        if name != "real_soft":
            np.testing.assert_array_equal(subject.classes, expected)
    assert evaluation.baseline("herding", 2) is evaluation.baseline("herding", 2)
    np.testing.assert_array_equal(
        evaluation.baseline("real_soft", 2).images, evaluation.baseline("random", 2).images
    )


def test_scores_are_of_early_experts_where_there_are_any(dataset, tmp_path, monkeypatch):
    config = make_config(**{"experts.difficulty_networks": 2})
    trained = _experts(config, dataset)()
    asked = []

    def experts(early=False):
        asked.append(early)
        return iter(trained)

    evaluation = _evaluation(config, dataset, tmp_path, teacher=_no_teacher, networks=experts)
    train = dataset.train
    inputs = jnp.asarray(dataset.info.normalisation.apply(train.images))
    scores = np.mean(
        [difficulty.el2n(one.logits(one.arrays, inputs), train.labels) for one in trained], axis=0
    )
    found = evaluation.baseline("el2n", 2)
    assert asked == [True] and "network 0 and others" in found.note
    for label in range(3):
        members = np.flatnonzero(train.labels == label)
        own = found.positions[2 * label : 2 * label + 2]
        assert set(own) == set(members[np.argsort(-scores[members])[:2]])
    covering = evaluation.baseline("ccs", 2)
    assert np.bincount(train.labels[covering.positions]).tolist() == [2, 2, 2]
    assert asked == [True]  # The scores are found once.


def test_scores_are_of_networks_trained_for_it_where_there_are_no_experts(dataset, tmp_path):
    config = make_config(
        **{"experts.difficulty_networks": 1, "experts.difficulty_epochs": 1, "experts.batch": 20}
    )
    evaluation = _evaluation(config, dataset, tmp_path, teacher=_no_teacher)
    found = evaluation.baseline("grand", 2)
    assert "1 networks trained 1 epochs" in found.note and len(set(found.positions)) == 6


@pytest.mark.parametrize("factor", [1, 2])
def test_rdeds_patches_are_crops_that_the_teacher_is_surest_of(
    dataset, tmp_path, monkeypatch, factor
):
    monkeypatch.setattr(rded, "factor_of", lambda size: factor)

    class Lightness:
        """Is the surer of every class the lighter the upper left of an image is."""

        name, arrays = "lightness", ()

        def logits(self, arrays, inputs):
            light = inputs[:, 2:4, 2:4].mean(axis=(1, 2, 3))
            return jnp.stack([light, light, light], axis=1) * jnp.eye(3)[1] * 5

    evaluation = _evaluation(make_config(), dataset, tmp_path, teacher=Lightness)
    found = evaluation.baseline("rded", 2)
    assert found.images.shape == (6, 8, 8, 3) and found.classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(found.positions) == 6 * factor**2 and not found.has_soft_labels
    np.testing.assert_array_equal(
        dataset.train.labels[found.positions], np.repeat(np.arange(3), 2 * factor**2)
    )
    # The teacher wants light images of class 1 and dark ones of the others.
    light = found.images.reshape(3, -1).mean(axis=1)
    everything = dataset.info.normalisation.apply(dataset.train.images)
    usual = [everything[dataset.train.labels == label].mean() for label in range(3)]
    assert light[1] > usual[1] and light[2] < usual[2]
    with pytest.raises(UserError, match="rded needs"):
        evaluation.baseline("rded", 21)


def _seen(evaluation, monkeypatch, measurements):
    """Measures; returns the labels' rows and what networks would have been trained on."""
    seen = []

    def run(one, on_epochs):
        seen.append(one)
        return {"mean": float(len(seen))}

    monkeypatch.setattr(evaluation, "run", run)
    return evaluation.measure(measurements), seen


@pytest.mark.parametrize("protocol", ["plain", "rded", "sre2l"])
def test_label_regimes_change_the_labels_and_what_decides_a_figure(
    dataset, tmp_path, monkeypatch, protocol
):
    config = make_config()
    teacher = _experts(config, dataset)()[0]
    evaluation = _evaluation(config, dataset, tmp_path, teacher=lambda: teacher)
    soft = make_distilled(dataset, soft=True)
    asked = [Measurement(soft, protocol=protocol, labels=x) for x in ("own", "hard", "teacher")]
    rows, seen = _seen(evaluation, monkeypatch, [*asked, Measurement(soft, protocol=protocol)])
    assert [row["labels"] for row in rows[:3]] == ["own", "hard", "teacher"]
    # `auto` is one of them, and not measured again.
    assert rows[3] == (rows[0] if protocol == "plain" else rows[2])
    assert len(seen) == 3 and len({row["mean"] for row in rows}) == 3
    own, hard, taught = (one.images for one in seen)
    assert own is soft and hard.alpha is None
    np.testing.assert_allclose(jax.nn.softmax(hard.labels), np.eye(3)[soft.classes], atol=1e-6)
    if protocol == "plain":
        expected = teacher.logits(teacher.arrays, jnp.asarray(soft.images))
        np.testing.assert_allclose(taught.labels, expected, rtol=1e-4, atol=1e-5)
        assert taught.alpha is None and "network 0" in taught.note
    else:
        assert taught is soft and seen[2].taught and not seen[1].taught


def test_hard_labels_are_their_own_and_need_no_teacher(dataset, tmp_path, monkeypatch):
    evaluation = _evaluation(make_config(), dataset, tmp_path, teacher=_no_teacher)
    hard = make_distilled(dataset)
    for protocol in ("plain", "rded", "sre2l"):
        asked = [Measurement(hard, protocol=protocol, labels=labels) for labels in ("own", "hard")]
        rows, seen = _seen(evaluation, monkeypatch, asked)
        assert len(seen) == 1 and rows[0]["mean"] == rows[1]["mean"] and seen[0].images is hard


@pytest.mark.parametrize("protocol", ["rded", "sre2l"])
def test_the_protocols_run_on_a_sets_own_labels(dataset, tmp_path, protocol):
    config = make_config(**{"evaluate.kd_epochs": 30, "evaluate.kd_batch": 6})
    evaluation = _evaluation(config, dataset, tmp_path, teacher=_no_teacher)
    (row,) = evaluation.measure(
        [Measurement(make_distilled(dataset), "ConvNetD1W16BN", protocol, "hard", keep_labels=True)]
    )
    assert row["mean"] > 50 and "soft_label_file" not in row


def test_augmentation_is_switched_off_in_evaluation_alone(dataset, tmp_path, monkeypatch):
    config = make_config(**{"evaluate.augment": "none"})
    assert config.augment.strategy == "flip"
    evaluation = _evaluation(config, dataset, tmp_path, teacher=_no_teacher)
    one = Measurement(make_distilled(dataset))
    told = []
    monkeypatch.setattr(
        measure, "plain_evaluator", lambda *_, strategy, **options: told.append(strategy)
    )
    evaluation.evaluator(evaluation.ready(one))
    stage.periodic(config, dataset)
    measure.make_evaluator(config, None, None, epochs=1)
    assert told == ["none", "none", "flip"]
    as_usual = _evaluation(make_config(), dataset, tmp_path, teacher=_no_teacher)
    bare = dataclasses.replace(one, augmented=False)
    assert evaluation.identity(evaluation.ready(one)) == as_usual.identity(bare)
    with pytest.raises(UserError, match="evaluate.augment=none"):
        make_config(**{"evaluate.augment": "none", "evaluate.scores": True})


def test_a_network_with_batch_norm_is_evaluated(dataset, tmp_path):
    config = make_config(**{"evaluate.epochs": 40, "evaluate.batch": 4})
    evaluation = _evaluation(config, dataset, tmp_path, teacher=_no_teacher)
    subject = make_distilled(dataset)
    figures = evaluation.run(Measurement(subject, "ConvNetD1W4BN"))
    assert figures["mean"] > 80 and figures["num_images"] == 30
    assert len(figures["accuracies"]) == 2 and figures["rate"] in (0.01, 0.1)


def test_protocols_with_a_teacher_run_from_one_teacher(dataset, tmp_path):
    config = make_config(**{"teacher.dir": str(tmp_path), "teacher.epochs": 8})
    evaluation = _evaluation(config, dataset, tmp_path)
    subject = make_distilled(dataset)
    teacher = evaluation.teacher
    assert teacher.accuracy > 80 and teacher.network.has_batch_stats
    rded = evaluation.run(Measurement(subject, protocol="rded"))
    assert evaluation.network(MATCHED, "rded").has_batch_stats
    assert rded["rate"] == 1e-3 and rded["last_epoch_mean"] == pytest.approx(rded["mean"])
    measurement = Measurement(subject, protocol="sre2l", keep_labels=True)
    stored = evaluation.run(measurement)
    (file,) = (tmp_path / "fkd").glob("*.safetensors")
    assert stored["soft_label_file"] == str(file)
    assert stored["image_bytes"] == subject.images.nbytes
    # order, crops, flips, partners, labels of 6 images of 3 classes, one box, 3 epochs; the batch
    assert stored["soft_label_bytes"] == 3 * (6 * (4 + 8 + 1 + 4 + 6) + 8) + 4
    assert evaluation.run(measurement)["accuracies"] == stored["accuracies"]  # from the file
    file.write_bytes(file.read_bytes()[:-3])
    assert evaluation.run(measurement)["accuracies"] == stored["accuracies"]


def test_a_teacher_is_found_by_its_settings(dataset, tmp_path, monkeypatch):
    from edf_jax.evaluate import teacher as teacher_module

    config = make_config(**{"teacher.dir": str(tmp_path / "cache")})
    first = get_teacher(config, dataset, tmp_path / "a")

    def train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(teacher_module, "_train", train)
    same = get_teacher(config, dataset, tmp_path / "b")
    assert same.digest == first.digest and same.accuracy == first.accuracy
    with pytest.raises(AssertionError, match="trained again"):
        get_teacher(make_config(**{"teacher.dir": str(tmp_path / "cache"), "teacher.lr": 0.1}),
                    dataset, tmp_path / "b")


def test_a_teacher_is_imported_from_a_state_dict(dataset, tmp_path):
    config = make_config()
    network = teacher_network(config, dataset.info)
    theta, batch_stats = network.init(jax.random.key(3))
    path = tmp_path / "weights.safetensors"
    write_teacher(path, network, theta, batch_stats, {})
    found = get_teacher(make_config(**{"teacher.weights": str(path)}), dataset, tmp_path)
    np.testing.assert_array_equal(found.theta, theta)
    assert "weights.safetensors" in found.name and 0 <= found.accuracy <= 100
    _, stats, _ = read_teacher(path, network)
    assert jax.tree.structure(stats) == jax.tree.structure(batch_stats)
    wrong = make_config(**{"teacher.weights": str(path), "teacher.width": 8})
    with pytest.raises(UserError, match="weights.safetensors"):
        get_teacher(wrong, dataset, tmp_path)


def test_an_imagenet_teacher_labels_a_subset_of_its_classes(dataset, tmp_path):
    indices = (5, 900, 7)
    info = dataclasses.replace(dataset.info, imagenet_indices=indices)
    config = make_config(**{"teacher.weights": str(tmp_path / "imagenet.safetensors")})
    network = teacher_network(config, info, num_classes=1000)
    theta, batch_stats = network.init(jax.random.key(3))
    write_teacher(tmp_path / "imagenet.safetensors", network, theta, batch_stats, {})
    data = dataclasses.replace(dataset, info=info)
    found = get_teacher(config, data, tmp_path)
    inputs = jnp.asarray(info.normalisation.apply(dataset.test.images))
    expected = network.apply(theta, inputs, batch_stats)[:, list(indices)]
    np.testing.assert_allclose(found.logits(found.arrays, inputs), expected, atol=1e-5)
    right = (np.argmax(expected, axis=1) == dataset.test.labels).mean()
    assert found.accuracy == pytest.approx(100 * right)
    evaluation = _evaluation(config, data, tmp_path, teacher=lambda: found)
    assert evaluation.baseline("real_soft", 2).labels.shape == (6, 3)
    with pytest.raises(UserError, match="1000 classes"):
        get_teacher(config, dataset, tmp_path)


def test_a_killed_training_of_a_teacher_goes_on(dataset, tmp_path, monkeypatch):
    from edf_jax.evaluate import teacher as teacher_module

    config = make_config(**{"teacher.dir": str(tmp_path / "cache"), "teacher.epochs": 4})
    network = teacher_network(config, dataset.info)
    whole = teacher_module._train(config, dataset, network, tmp_path / "whole", "key", None)
    monkeypatch.setattr(teacher_module, "_SECONDS_BETWEEN_SAVES", -1.0)

    class Killed(Exception):
        pass

    class Metrics:
        def truncate_after(self, *_):
            pass

        def write(self, step, *_, **__):
            if step == 3:
                raise Killed

    with pytest.raises(Killed):
        teacher_module._train(config, dataset, network, tmp_path / "cut", "key", Metrics())
    assert storage.load_details(tmp_path / "cut" / "teacher")["epoch"] == 2
    theta, _ = teacher_module._train(config, dataset, network, tmp_path / "cut", "key", None)
    np.testing.assert_array_equal(theta, whole[0])


def test_pools_are_networks_that_fit_a_32_pixel_image():
    info = make_dataset().info
    info = type(info)(**{**info.__dict__, "image_shape": (32, 32, 3)})
    config = make_config(**{"model.depth": 0})
    for names in POOLS.values():
        for name in names:
            assert network_for(config, info, name, width=8).num_params > 0
    assert expand(["norm", "ConvNetBN", "MLP"])[-1] == "MLP"
    assert expand(["ConvNetBN", "norm"])[:2] == ("ConvNetBN", "ConvNetNN")


def test_figures_are_kept_with_what_made_them(tmp_path):
    path, made = tmp_path / "evaluation.json", []

    def make():
        made.append(1)
        return {"mean": 5.0}

    first = Measured(path, {"command": "a", "seed": 3}).need({"x": 1}, make)
    again = Measured(path, {"command": "b", "seed": 3}).need({"x": 1}, make)
    assert first == again and len(made) == 1
    assert again["provenance"] == {"command": "a", "seed": 3} and again["mean"] == 5.0
    other = Measured(path, {"command": "b"}).need({"x": 2}, make)
    assert len(made) == 2 and other["provenance"] == {"command": "b"}
    path.write_text(path.read_text().replace("5.0", "6.0"))
    assert Measured(path, {}).find({"x": 1}) is None  # damaged: measured again


@pytest.fixture
def run(dataset, tmp_path):
    """A run's folder with a distilled set."""
    distilled = make_distilled(dataset, soft=True)
    for name in ("last", "best_on_test"):
        distilled.save(tmp_path / "distilled" / f"{name}.safetensors")
    initial = dataclasses.replace(distilled, parameters=distilled.images / 2, alpha=0.02, step=0)
    initial.save(tmp_path / "distilled" / "step_0.safetensors")
    return tmp_path


def test_a_run_is_judged_by_each_label_regime(dataset, run):
    config = make_config(**{"evaluate.labels": "hard,own,teacher"})
    teacher = dataclasses.replace(_experts(config, dataset)()[0], accuracy=50.0)
    result = stage.evaluate_run(config, dataset, [90.0], run, teacher=lambda: teacher)
    assert result["labels"] == "hard" and result["teacher"]["accuracy"] == 50.0
    found = {row.get("labels"): row for row in result["rows"] if row["kind"] == "distilled"}
    assert list(found) == ["hard", "own", "teacher"]
    assert result["distilled_accuracies"] == found["hard"]["accuracies"]
    assert found["own"]["rate_from"] == "learned" and "best of" in found["hard"]["rate_from"]
    text = result_table(result)
    assert "Distilled, last, ConvNet, teacher labels" in text and "Random real images " in text
    assert "hard labels; teacher: network 0, 50.0% on test images" in text
    assert (result["distilled_epochs"], result["distilled_steps"]) == (5, 1)
    beside = comparison._by_labels([result], "distilled")
    assert {k: figure.by_seed[0] for k, figure in beside.items()} == {
        k: tuple(found[k]["accuracies"]) for k in ("own", "teacher")
    }


def test_a_run_is_judged_beside_its_references(dataset, run, monkeypatch):
    config = make_config(
        **{
            "evaluate.networks": "matched,MLP",
            "evaluate.width": 4,
            "evaluate.scores": True,
            "evaluate.full_epochs": 1,
        }
    )
    origin = {"command": "edf", "versions": {"jax": "1"}, "hardware": {"cpu": "x"}}

    def evaluate(provenance):
        return stage.evaluate_run(
            config, dataset, [90.0, 92.0], run, networks=_experts(config, dataset),
            teacher=_no_teacher, provenance=provenance,
        )

    result = evaluate(origin)
    assert result["network"] == "ConvNet" and result["protocol"] == "plain"
    for kind in ("initial", "distilled", "best_on_test", "random", "full"):
        assert 0 <= result[f"{kind}_mean"] <= 100 and len(result[f"{kind}_interval"]) == 2
    assert result["distilled_mean"] == result["best_on_test_mean"]
    # The images that distillation started from: by the same networks, at the rate they start at.
    assert (result["initial_step"], result["initial_rate"]) == (0, pytest.approx(0.02))
    assert result["initial_rate_from"] == "as it started"
    assert result["initial_num_eval"] == result["distilled_num_eval"] == 2
    assert result["num_test_images"] == 30 and result["distilled_rate_from"] == "learned"
    for row in result["rows"]:
        assert row["provenance"] == {"seed": 0, **origin}
        assert row["num_images"] == 30 and row["num_eval"] == 2
    assert {row["network"] for row in result["rows"]} == {"ConvNet", "MLP (width 4)"}
    scores = {row["network"]: row for row in result["scores"]}
    mean = {(r["network"], r["kind"]): r["mean"] for r in result["rows"]}
    own = scores["ConvNet"]
    assert own["hlr"] == pytest.approx(mean["ConvNet", "full"] - mean["ConvNet", "distilled_hard"])
    assert own["ior"] == pytest.approx(
        mean["ConvNet", "distilled"] - mean["ConvNet", "same_labels"]
    )
    assert {"lrs", "ars", "gain", "gain_no_augmentation"} <= set(scores["MLP (width 4)"])
    assert "same_labels_mean" not in result
    json.dumps(result)

    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("measured again"))
    assert evaluate({"command": "another"})["rows"] == result["rows"]


def test_evaluations_while_distilling_share_their_networks_unless_each_is_to_have_its_own(dataset):
    distilled = make_distilled(dataset)

    def accuracies(**values):
        evaluate = stage.periodic(make_config(**{"evaluate.during_num": 2, **values}), dataset)
        return [evaluate(distilled, iteration).values for iteration in (0, 5, 5)]

    first, second, again = accuracies()
    assert first == second == again
    first, second, again = accuracies(**{"evaluate.during_fresh": True})
    assert first != second and second == again


def test_the_papers_statistic_stands_beside_the_result(dataset, run):
    with MetricsWriter(run, tensorboard=False) as metrics:
        metrics.write(0, "evaluate", accuracy_mean=61.0, num_networks=1)
    config = make_config(**{"evaluate.baselines": ""})

    def result():
        return stage.evaluate_run(config, dataset, [], run, teacher=_no_teacher)

    honest = result()
    assert not any(name.startswith("paper_statistic") for name in honest)
    with MetricsWriter(run, tensorboard=False) as metrics:
        own = {"paper_statistic": 63.0, "paper_statistic_of": 21, "num_networks": 1}
        metrics.write(5, "evaluate", accuracy_mean=60.0, **own)
    found = result()
    assert honest.items() <= found.items() and found["paper_statistic_mean"] == 63.0
    line = {row.kind: row for row in tables.accuracies(found)}["paper_statistic"]
    assert line.text == "63.0" and "the largest of 21 evaluations" in line.note


def test_a_set_from_elsewhere_needs_no_run(dataset, tmp_path):
    distilled = make_distilled(dataset)
    distilled.save(tmp_path / "elsewhere.safetensors")
    path = str(tmp_path / "elsewhere.safetensors")
    config = make_config(**{"evaluate.distilled": path})
    result = stage.evaluate_run(config, dataset, [], tmp_path / "new", teacher=_no_teacher)
    assert not {"best_on_test_mean", "initial_mean", "full_mean"} & set(result)
    assert result["distilled_mean"] >= 0 and path in result["distilled_note"]
    scored = make_config(**{"evaluate.distilled": path, "evaluate.scores": True})
    with pytest.raises(UserError, match="evaluate.full_epochs"):
        stage.evaluate_run(scored, dataset, [], tmp_path / "new", teacher=_no_teacher)


def test_one_baseline_is_measured_by_itself(dataset, tmp_path):
    config = make_config(**{"evaluate.networks": "MLP", "evaluate.width": 4})
    figures = stage.measure_baseline(config, dataset, tmp_path, "random", teacher=_no_teacher)
    assert figures["network"] == "MLP (width 4)"
    assert figures["random_num_eval"] == len(figures["random_accuracies"]) == 2


def test_full_data_networks_learn(dataset):
    config = make_config(**{"evaluate.full_epochs": 6, "experts.lr": 0.1, "experts.batch": 16})
    network = network_for(config, dataset.info)
    assert stage.full_data(config, dataset, network).mean > 80


def test_wrong_names_are_refused():
    with pytest.raises(UserError, match="'herdng' is none of random, herding"):
        make_config(**{"evaluate.baselines": "random,herdng"})
    with pytest.raises(UserError, match="evaluate.networks"):
        make_config(**{"evaluate.networks": "matched,ConvNetQ"})
    with pytest.raises(UserError, match="evaluate.protocol"):
        make_config(**{"evaluate.protocol": "kd"})


def test_rates_of_a_search_are_all_tried(dataset, tmp_path):
    evaluation = _evaluation(make_config(), dataset, tmp_path, teacher=_no_teacher)
    subject = evaluation.baseline("random", 2)
    evaluator = evaluation.evaluator(Measurement(subject))
    seen = []
    train = evaluator.train
    evaluator.train = lambda *a, **k: seen.append(np.asarray(a[2])) or train(*a, **k)
    best, how = evaluation._rate(Measurement(subject), evaluator, None)
    np.testing.assert_allclose(seen, [[0.01, 0.1]])
    assert best in (0.01, 0.1) and how.startswith("best of 2")
