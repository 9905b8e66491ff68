"""A kept teacher is the one of its settings, or is trained again."""

from __future__ import annotations

import jax

from edf_jax.evaluate import teacher
from tests.evaluation_data import make_config, make_dataset


def test_a_teacher_of_other_settings_under_this_name_is_taken_away(tmp_path, caplog):
    dataset = make_dataset()
    config = make_config(**{"teacher.dir": str(tmp_path), "teacher.epochs": 1})
    network = teacher.teacher_network(config, dataset.info)
    path, wanted = tmp_path / "t.safetensors", teacher.settings(config, dataset)
    theta, batch_stats = network.init(jax.random.key(0))
    teacher.write_teacher(path, network, theta, batch_stats, {**wanted, "accuracy": 5.0})
    assert teacher._is_intact(path, network, wanted)
    assert not teacher._is_intact(path, network, {**wanted, "seed": 9})
    assert "put there from elsewhere: it is of seed 0, not 9: trained again" in caplog.text
    assert not path.exists()
