"""Experts: trained, continued, shared between runs, taken from elsewhere."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

from edf_jax.experts import find as expert_stores
from edf_jax.experts import train as experts
from edf_jax.experts.settings import check_part, needed_epochs, part_of, settings, wanted_epochs
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models import build_network
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import locks, preemption, storage
from edf_jax.runtime.errors import Preempted, UserError
from tests import tiny

_FEW = {"experts.num": 2, "experts.epochs": 3, "distill.max_start_epoch": 2}


def _config(method="datm", **values):
    return tiny.config(method, **{**_FEW, **values})


def _train(config, workdir, data=None):
    """Runs the experts' stage as a run in `workdir` does; returns the store and the accuracies."""
    data = data or tiny.dataset()
    store = experts.open_experts(config, data, workdir)
    with MetricsWriter(workdir, tensorboard=False) as metrics:
        return store, experts.train_experts(config, data, store, metrics)


def _contents(store, groups=1, epochs=4):
    """Every array of a store, by group and epoch."""
    found = {}
    for group in range(groups):
        for epoch in range(epochs):
            theta, extra = store.read_group(group, epoch)
            found[group, epoch] = [theta, *(extra[name] for name in sorted(extra))]
    return found


def _assert_same(one, other):
    assert one.keys() == other.keys()
    for key, arrays in one.items():
        for a, b in zip(arrays, other[key], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with finished experts: its folder, the store, the accuracies."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, *_train(_config(), workdir)


# Training.


def test_snapshots_are_those_of_every_epoch_and_learn(trained):
    _, store, accuracies = trained
    assert store.epochs(0) == [0, 1, 2, 3]
    losses = [np.mean(store.details(0, epoch)["loss"]) for epoch in (1, 2, 3)]
    assert losses[2] < losses[0]
    assert accuracies == store.details(0, 3)["test_accuracy"] and len(accuracies) == 2
    thetas, _ = store.read_group(0, 3)
    assert not np.array_equal(thetas[0], thetas[1])


class _Killed(BaseException):
    pass


def test_killed_training_continues_bit_identically(trained, tmp_path, monkeypatch):
    workdir, store, _ = trained
    config = _config(**{"experts.share": False})
    write = TrajectoryStore.write

    def killed_before_epoch_2(self, group, epoch, *arguments):
        if epoch == 2:
            raise _Killed
        write(self, group, epoch, *arguments)

    monkeypatch.setattr(TrajectoryStore, "write", killed_before_epoch_2)
    with pytest.raises(_Killed):
        _train(config, tmp_path)
    monkeypatch.undo()
    assert TrajectoryStore(tmp_path / "experts").epochs(0) == [0, 1]
    continued, _ = _train(config, tmp_path)
    _assert_same(_contents(continued), _contents(store))
    assert tiny.rows(tmp_path, "experts") == tiny.rows(workdir, "experts")


def test_a_missing_epoch_is_trained_again_bit_identically(trained, tmp_path):
    _, store, _ = trained
    shutil.copytree(store.folder, tmp_path / "experts")
    shutil.rmtree(TrajectoryStore(tmp_path / "experts").path(0, 2))
    continued, _ = _train(_config(), tmp_path)
    _assert_same(_contents(continued), _contents(store))


def test_sgd_and_gsam_take_other_ways_from_one_start(trained, tmp_path):
    _, gsam, _ = trained
    sgd, _ = _train(_config("mtt"), tmp_path)
    np.testing.assert_array_equal(sgd.snapshot(0, 0), gsam.snapshot(0, 0))
    assert not np.array_equal(sgd.snapshot(0, 1), gsam.snapshot(0, 1))


def test_the_experts_seed_is_the_runs_unless_given(trained, tmp_path):
    _, store, _ = trained
    other, _ = _train(_config(seed=7, **{"experts.share": False}), tmp_path / "other")
    assert not np.array_equal(other.snapshot(0, 0), store.snapshot(0, 0))
    same, _ = _train(
        _config(seed=7, **{"experts.seed": 0, "experts.share": False}), tmp_path / "same"
    )
    np.testing.assert_array_equal(same.snapshot(1, 3), store.snapshot(1, 3))


def test_pads_experts_never_see_what_an_epoch_leaves_out(tmp_path, monkeypatch):
    data = tiny.dataset()
    hardest_last = np.arange(len(data.train.labels), dtype=np.float32)
    monkeypatch.setattr(experts.difficulty, "mean_scores", lambda *_, **__: hardest_last)
    config = _config("pad")
    plain, _ = _train(config, tmp_path / "plain", data)
    # Epoch 0 shows the easiest three quarters of each class of 13 or 14: 9 or 10.
    left_out = np.concatenate(
        [np.flatnonzero(data.train.labels == label)[9 + (label == 0) :] for label in range(3)]
    )
    images = data.train.images.copy()
    images[left_out] = 0
    changed = type(data)(type(data.train)(images, data.train.labels), data.test, data.info)
    other, _ = _train(config, tmp_path / "changed", changed)
    np.testing.assert_array_equal(other.snapshot(0, 1), plain.snapshot(0, 1))
    everything, _ = _train(_config("datm"), tmp_path / "all", data)
    assert not np.array_equal(everything.snapshot(0, 1), plain.snapshot(0, 1))


def test_difficulty_is_scored_once_a_store(tmp_path, caplog):
    config = _config("pad", **{"experts.difficulty_networks": 1, "experts.difficulty_epochs": 1})
    with caplog.at_level(logging.INFO, "edf_jax"):
        store, _ = _train(config, tmp_path)
        shutil.rmtree(store.path(0, 3))
        _train(config, tmp_path)
    assert sum("scoring" in line for line in tiny.messages(caplog, logging.INFO)) == 1
    assert storage.load_arrays(store.folder / "difficulty")["scores"].shape == (40,)


# What makes experts the same.


def _settings(config, data=None):
    return settings(config, data or tiny.dataset(), tiny.network())


def test_what_the_experts_never_read_is_no_setting():
    base = _settings(_config("mtt"))
    same = {
        "experts.num": 1,
        "experts.epochs": 4,
        "experts.rho": 0.5,
        "experts.difficulty": "el2n",
        "distill.lr_img": 1.0,
        "evaluate.num": 9,
    }
    for key, value in same.items():
        assert _settings(_config("mtt", **{key: value})) == base, key
    others = {"experts.lr": 0.2, "experts.batch": 8, "seed": 1, "precision": "tf32"}
    for key, value in others.items():
        assert _settings(_config("mtt", **{key: value})) != base, key
    assert _settings(_config("mtt"), tiny.dataset(seed=1)) != base
    assert _settings(_config("datm", **{"experts.rho": 0.5})) != _settings(_config("datm"))


def test_methods_share_where_their_experts_are_alike():
    assert _settings(_config("ftd")) == _settings(_config("datm")) == _settings(_config("edf"))
    assert _settings(_config("mtt")) == _settings(_config("tesla"))
    assert len({json.dumps(_settings(_config(m))) for m in ("mtt", "edf", "pad")}) == 3


def test_wanted_epochs_are_all_or_those_that_distillation_asks_for():
    assert wanted_epochs(_config()) == {0, 1, 2, 3}
    config = tiny.config("datm", **{"distill.min_start_epoch": 0, "distill.max_start_epoch": 1})
    assert needed_epochs(config) == {0, 2, 4}


# Sharing.


@pytest.fixture
def never_trains(monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("trained experts that are there")

    monkeypatch.setattr(TrajectoryStore, "write", refuse)


def test_a_run_takes_the_experts_of_its_neighbour(trained, never_trains, caplog):
    first, store, accuracies = trained
    second = first.parent / "second"
    with caplog.at_level(logging.INFO, "edf_jax"):
        shared, same = _train(_config("edf"), second)
    assert shared.folder == second / "experts" and same == accuracies
    assert any(str(store.folder) in line for line in tiny.messages(caplog, logging.INFO))
    _assert_same(_contents(shared), _contents(store))
    assert tiny.rows(second, "experts") == tiny.rows(first, "experts")
    shutil.rmtree(second)


def test_shared_experts_outlive_the_run_that_trained_them(trained, tmp_path, never_trains):
    _, store, _ = trained
    shutil.copytree(store.folder, tmp_path / "first" / "experts")
    shared, _ = _train(_config(), tmp_path / "second")
    file = next(p for p in shared.path(0, 3).rglob("*") if p.is_file())
    assert file.stat().st_nlink > 1
    shutil.rmtree(tmp_path / "first")
    _assert_same(_contents(shared), _contents(store))


def test_where_links_are_impossible_experts_are_read_in_place(trained, tmp_path, monkeypatch):
    _, store, _ = trained
    shutil.copytree(store.folder, tmp_path / "first" / "experts")

    def no_links(*arguments, **settings):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(expert_stores.os, "link", no_links)
    shared, _ = _train(_config(), tmp_path / "second")
    assert shared.folder == tmp_path / "first" / "experts"
    assert not (tmp_path / "second" / "experts").exists()
    assert not list((tmp_path / "second").glob(".experts*"))


@pytest.mark.parametrize(
    "values", [{"experts.share": False}, {"experts.lr": 0.2}, {"experts.num": 3}, {"seed": 1}]
)
def test_other_experts_are_not_taken(trained, tmp_path, values):
    _, store, _ = trained
    shutil.copytree(store.folder, tmp_path / "first" / "experts")
    found = experts.open_experts(_config(**values), tiny.dataset(), tmp_path / "second")
    assert found.folder == tmp_path / "second" / "experts" and not found.folder.exists()


def test_unfinished_experts_are_not_taken(trained, tmp_path):
    _, store, _ = trained
    shutil.copytree(store.folder, tmp_path / "first" / "experts")
    shutil.rmtree(TrajectoryStore(tmp_path / "first" / "experts").path(0, 3))
    found = experts.open_experts(_config(), tiny.dataset(), tmp_path / "second")
    assert not found.folder.exists()


def test_a_folder_of_stores_has_one_for_each_settings(trained, tmp_path, monkeypatch):
    _, store, _ = trained
    pool = tmp_path / "pool"
    config = _config(**{"experts.dir": str(pool)})
    first, _ = _train(config, tmp_path / "a" / "run")
    other = experts.open_experts(
        _config("mtt", **{"experts.dir": str(pool)}), tiny.dataset(), tmp_path / "a" / "run"
    )
    assert first.folder.parent == other.folder.parent == pool and first.folder != other.folder
    _assert_same(_contents(first), _contents(store))
    monkeypatch.setattr(TrajectoryStore, "write", None)
    again, _ = _train(config, tmp_path / "b" / "run")
    assert again.folder == first.folder


def test_a_store_grows_to_more_experts_and_keeps_those_it_has(trained, tmp_path):
    _, store, _ = trained
    shutil.copytree(store.folder, tmp_path / "store")
    config = _config(**{"experts.dir": str(tmp_path / "store"), "experts.num": 3})
    grown, accuracies = _train(config, tmp_path / "run")
    assert len(accuracies) == 3
    for expert in range(2):
        np.testing.assert_array_equal(grown.snapshot(expert, 3), store.snapshot(expert, 3))
    assert not np.array_equal(grown.snapshot(2, 3), grown.snapshot(1, 3))


def test_a_named_store_of_other_settings_is_refused(trained, tmp_path):
    _, store, _ = trained
    config = _config(**{"experts.dir": str(store.folder), "experts.lr": 0.2})
    with pytest.raises(UserError, match="experts.lr=0.1, not 0.2"):
        _train(config, tmp_path)


def test_a_second_process_waits_and_then_finds_the_experts(trained, tmp_path, monkeypatch, caplog):
    _, store, _ = trained
    monkeypatch.setattr(expert_stores, "_SECONDS_BETWEEN_LOOKS", 0.02)
    pool = tmp_path / "store"
    pool.mkdir()
    waiting = threading.Event()
    monkeypatch.setattr(expert_stores.preemption, "stop_if_asked", waiting.set)

    def other_process():
        with TrajectoryStore(pool).lock():
            locked.set()
            waiting.wait(30)
            for path in store.folder.iterdir():
                if path.name != ".lock":
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, pool / path.name)

    locked = threading.Event()
    other = threading.Thread(target=other_process)
    other.start()
    assert locked.wait(30)
    # Not complete when it first looks.
    with caplog.at_level(logging.INFO, "edf_jax"):
        with expert_stores.lock_when_free(TrajectoryStore(pool)):
            assert TrajectoryStore(pool).is_complete(2, {0, 1, 2, 3})
    other.join()
    told = [line for line in tiny.messages(caplog, logging.INFO) if "waiting" in line]
    assert len(told) == 1


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_who_waits_for_anothers_experts_hears_signals(tmp_path, number, error):
    with TrajectoryStore(tmp_path).lock(), preemption.listening():
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        with pytest.raises(error):
            with expert_stores.lock_when_free(TrajectoryStore(tmp_path)):
                pass
    with expert_stores.lock_when_free(TrajectoryStore(tmp_path)):
        pass


# In parts.


def test_parts_trained_beside_each_other_make_the_whole(trained, tmp_path):
    _, store, _ = trained
    pool = {"experts.dir": str(tmp_path / "pool"), "experts.group": 1}
    both = threading.Barrier(2)
    made: dict[str, list[float]] = {}

    def job(part: str) -> None:
        both.wait(30)
        _, made[part] = _train(_config(**pool, **{"experts.part": part}), tmp_path / part[0])

    jobs = [threading.Thread(target=job, args=(part,)) for part in ("1/2", "2/2")]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    whole, accuracies = _train(_config(**pool), tmp_path / "whole")
    assert accuracies == made["1/2"] + made["2/2"]
    for expert in range(2):
        one, other = whole.snapshot(expert, 3), store.snapshot(expert, 3)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert [row["step"] for row in tiny.rows(tmp_path / "2", "experts")] == [4, 5, 6]
    assert len(tiny.rows(tmp_path / "whole", "experts")) == 6


def test_parts_and_the_whole_keep_each_other_out(tmp_path):
    store = TrajectoryStore(tmp_path)
    with store.lock_groups([0]):
        with store.lock_groups([1]):
            pass
        for other in (store.lock, lambda: store.lock_groups([0, 1])):
            with pytest.raises(locks.Busy), other():
                pass
    with store.lock(), pytest.raises(locks.Busy), store.lock_groups([1]):
        pass


@pytest.mark.parametrize(
    ("part", "stage", "told"),
    [
        ("2", "experts", "write I/N"),
        ("0/2", "experts", "write I/N"),
        ("3/2", "experts", "write I/N"),
        ("1/2", "experts", "1 groups"),
        ("1/1", "all", "add --stage=experts"),
    ],
)
def test_parts_that_can_not_be_are_told(part, stage, told):
    with pytest.raises(UserError, match=told):
        check_part(_config(**{"experts.part": part}), stage)


def test_parts_are_all_the_groups():
    parts = [part_of(_config(**{"experts.part": f"{i}/3"}), 8) for i in (1, 2, 3)]
    assert sorted(group for part in parts for group in part) == list(range(8))


# From elsewhere.


@pytest.fixture
def imported(tmp_path) -> pathlib.Path:
    """A store as `edf_jax.convert` makes it: parameters, and little else."""
    store = TrajectoryStore(tmp_path / "imported")
    made = tiny.made_up_experts(tmp_path / "made", num=2, epochs=3)
    info = {"imported": True, "num_params": tiny.network().num_params, "experts.epochs": 3}
    details = {"settings": info, "group_size": 2}
    store.create({"settings": info, "num_experts": 2, "group_size": 2})
    for epoch in range(4):
        store.write(0, epoch, made.read_group(0, epoch)[0], {}, details)
    return store.folder


def test_imported_experts_are_taken_where_they_fit(imported, tmp_path, never_trains):
    config = _config(**{"experts.dir": str(imported)})
    store, accuracies = _train(config, tmp_path / "run")
    assert store.folder == imported
    assert len(accuracies) == 2 and all(0 <= value <= 100 for value in accuracies)


@pytest.mark.parametrize(
    "values, told",
    [
        ({"model.width": 8}, "parameters"),
        ({"experts.num": 3}, "experts.num=2 or lower"),
        ({"experts.epochs": 4}, "epoch 4 is needed"),
        ({"model.norm": "batch"}, "batch-norm"),
    ],
)
def test_imported_experts_that_do_not_fit_are_refused(imported, tmp_path, values, told):
    config = _config(**{"experts.dir": str(imported), **values})
    with pytest.raises(UserError, match=told):
        _train(config, tmp_path / "run")


def test_an_expert_comes_with_the_statistics_of_its_epoch():
    network = build_network(
        "ConvNet", num_classes=2, image_shape=(8, 8, 3), width=4, depth=1, norm="batch"
    )
    theta, stats = network.init(jax.random.key(0))
    names = [name.removeprefix("batch_stats.") for name in experts._named("batch_stats", stats)]

    class Store:
        def snapshot(self, expert, epoch):
            return np.asarray(theta) + epoch

        def batch_stats(self, expert, epoch):
            return {name: np.full(4, 10.0 * expert + epoch) for name in names}

    found, of_epoch = experts.expert_after(network, Store(), 1, 3)
    np.testing.assert_array_equal(found, theta + 3)
    assert jax.tree.structure(of_epoch) == jax.tree.structure(stats)
    assert all((leaf == 13).all() for leaf in jax.tree.leaves(of_epoch))
