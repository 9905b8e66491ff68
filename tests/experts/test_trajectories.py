"""The store of expert snapshots: what it lacks, what it makes good, and pairs read ahead."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

from edf_jax.experts.trajectories import DamagedSnapshot, TrajectoryStore, Writer
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError

SETTINGS = {"seed": 0, "experts.lr": 0.1}


def _details(members):
    return {
        "test_accuracy": [50.0] * members, "loss": [1.0] * members,
        "settings": SETTINGS, "group_size": 2,
    }


def _snapshots(group, epoch, members):
    return np.float32([[group, epoch, member] for member in range(members)])


@pytest.fixture
def store(tmp_path):
    """Three experts in groups of two, epochs 0 to 3."""
    store = TrajectoryStore(tmp_path / "experts")
    store.open(SETTINGS, 3, 2)
    for group, members in ((0, 2), (1, 1)):
        for epoch in range(4):
            extra = {"optimiser.trace": np.zeros((members, 3), np.float32)}
            snapshots = _snapshots(group, epoch, members)
            store.write(group, epoch, snapshots, extra, _details(members))
    return store


def test_a_pair_is_two_snapshots_of_one_expert(store):
    pair = store.pair(2, 1, 2)
    assert (pair.expert, pair.start_epoch) == (2, 1)
    np.testing.assert_array_equal(pair.start, [1, 1, 0])
    np.testing.assert_array_equal(pair.target, [1, 3, 0])


def test_pairs_come_in_the_order_of_their_choices(store):
    choices = [(expert, start) for start in (1, 0) for expert in (2, 0, 1)]
    pairs = list(store.pairs(choices, 2, ahead=2))
    assert [(pair.expert, pair.start_epoch) for pair in pairs] == choices


def test_a_damaged_snapshot_is_named_when_its_turn_comes(store):
    store.remove(0, 2)
    pairs = store.pairs([(0, 0), (2, 0), (1, 0)], 1)
    assert next(pairs).expert == 0
    assert next(pairs).expert == 2
    pairs = store.pairs([(2, 0), (1, 1)], 1)
    next(pairs)
    with pytest.raises(DamagedSnapshot, match="epoch_0002") as raised:
        next(pairs)
    assert (raised.value.group, raised.value.epoch) == (0, 2)


def test_a_complete_store_trains_nothing(store, caplog):
    assert store.is_complete(3, range(4))
    assert [store.to_train(group, 2 - group, range(4)) for group in (0, 1)] == [[], []]
    assert caplog.text == ""


def test_what_is_missing_is_trained_from_the_epoch_before(store, caplog):
    store.remove(0, 2)
    assert not store.is_complete(3, range(4))
    assert store.is_complete(3, {0, 3})
    assert store.to_train(0, 2, range(4)) == [2]
    assert "epoch_0002 is missing" in caplog.text
    store.remove(0, 0)
    assert store.to_train(0, 2, range(4)) == [0, 2]
    store.remove(1, 3)
    caplog.clear()
    assert store.to_train(1, 1, range(4)) == [3]
    assert store.to_train(1, 1, range(6)) == [3, 4, 5]
    assert caplog.text == ""  # That is how a killed run looks.


def test_only_wanted_epochs_are_missed(store):
    store.remove(0, 1)
    store.remove(0, 2)
    assert store.to_train(0, 2, {0, 3}) == []
    assert store.to_train(0, 2, {0, 2, 3}) == [1, 2]


def test_a_damaged_newest_epoch_is_taken_away_and_trained_again(store, caplog):
    (store.path(1, 3) / "digests.json").write_text("{")
    assert store.to_train(1, 1, range(4)) == [3]
    assert "epoch_0003" in caplog.text and "trained again" in caplog.text
    assert store.epochs(1) == [0, 1, 2]


def test_a_group_that_was_the_last_is_trained_anew_when_experts_are_added(store):
    assert store.is_complete(3, range(4))
    store.open(SETTINGS, 4, 2)
    assert store.info()["num_experts"] == 4
    assert not store.is_complete(4, range(4))
    assert store.to_train(0, 2, range(4)) == []
    assert store.to_train(1, 2, range(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("content", [None, "", '{"settings": {}}'])
def test_a_damaged_record_is_made_again_from_the_snapshots(store, caplog, content):
    path = store.folder / "store.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    again = TrajectoryStore(store.folder)
    again.open(SETTINGS, 3, 5)
    assert "made again from the snapshots" in caplog.text
    assert again.info() == {"settings": SETTINGS, "group_size": 2, "num_experts": 3}


def test_a_damaged_record_hides_no_other_settings(store):
    (store.folder / "store.json").unlink()
    with pytest.raises(UserError, match="experts.lr=0.1, not 0.2"):
        TrajectoryStore(store.folder).open({**SETTINGS, "experts.lr": 0.2}, 3, 2)


@pytest.mark.parametrize("other", ["epoch", "group", "settings"])
def test_a_snapshot_of_another_place_is_noticed_and_trained_again(store, tmp_path, other):
    elsewhere = TrajectoryStore(tmp_path / "elsewhere")
    elsewhere.open({**SETTINGS, "seed": 1}, 3, 2)
    elsewhere.write(0, 3, _snapshots(7, 3, 2), {}, {})
    source = {
        "epoch": store.path(0, 2), "group": store.path(1, 3), "settings": elsewhere.path(0, 3),
    }[other]
    storage.remove(store.path(0, 3))
    shutil.copytree(source, store.path(0, 3))
    for read in (store.details, store.read_group):
        with pytest.raises(DamagedSnapshot, match="epoch_0003 was put there from elsewhere"):
            read(0, 3)
    with pytest.raises(DamagedSnapshot, match="elsewhere"):
        store.pair(1, 1, 2)
    assert store.to_train(0, 2, range(4)) == [3]


def test_parts_do_not_wait_to_open_a_store_that_is_open(store):
    assert store.is_open(SETTINGS, 3) and not store.is_open(SETTINGS, 4)
    with pytest.raises(UserError, match="seed=0, not 1"):
        store.is_open({**SETTINGS, "seed": 1}, 3)


def test_experts_trained_otherwise_are_refused(store):
    store.check(SETTINGS)
    with pytest.raises(UserError, match="seed=0, not 1"):
        store.check({**SETTINGS, "seed": 1})


def test_the_writer_waits_for_one_write_and_passes_on_its_failure(tmp_path):
    store = TrajectoryStore(tmp_path / "experts")
    release, written = threading.Event(), []

    def write(group, epoch):
        release.wait()
        written.append(epoch)
        if epoch == 1:
            raise storage.WriteFailed(store.path(group, epoch), "no space left on device")

    store.write = write
    with pytest.raises(storage.WriteFailed, match="epoch_0001"):
        with Writer(store) as writer:
            writer.write(0, 0)
            assert written == []
            release.set()
            writer.write(0, 1)
            assert written[0] == 0
            writer.write(0, 2)
    assert written == [0, 1]
