"""The plan of a dataset, with and without its images."""

from __future__ import annotations

import numpy as np
import pytest

from edf_jax.data import describe_dataset, load_dataset, normalisation
from edf_jax.data.subsets import find_subset, subset_names
from edf_jax.runtime.errors import UserError
from tests.data_layouts import data_config, write_folder


def test_cluttered_digits_are_always_there_and_exact():
    config = data_config(source="cluttered_digits", composites=3, test_composites=2)
    plan, dataset = describe_dataset(config), load_dataset(config)
    assert plan.available and plan.counts == "exact" and plan.advice == ""
    assert (plan.num_train, plan.num_test) == (len(dataset.train), len(dataset.test))
    assert plan.image_shape == dataset.info.image_shape
    assert plan.class_names == dataset.info.class_names
    assert plan.normalisation == dataset.info.normalisation


@pytest.mark.filterwarnings("ignore:music_hard")
@pytest.mark.parametrize("name", subset_names())
def test_every_subset_has_a_plan_without_its_images(name):
    plan = describe_dataset(data_config(subset=name, resolution=128, path="/nowhere"))
    classes = len(find_subset(name).indices)
    assert plan.num_classes == len(plan.class_names) == classes
    assert (plan.num_train, plan.num_test) == (1300 * classes, 50 * classes)
    assert plan.counts == "approximate" and not plan.available
    assert plan.image_shape == (128, 128, 3) and plan.normalisation == normalisation.IMAGENET
    for said in ("/nowhere", "train/<WordNet id>/*", "image-net.org", "tfds build imagenet2012"):
        assert said in plan.advice


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("tfds", "imagenette", ("imagenette_fastai", 10, 9_469, 3_925, (64, 64, 3))),
        ("tfds", "imagenet2012", ("imagenet2012", 1000, 1_300_000, 50_000, (64, 64, 3))),
        ("tfds", "cifar10", ("cifar10", 10, 50_000, 10_000, (64, 64, 3))),
        ("tfds", "svhn", ("svhn_cropped", 10, 73_257, 26_032, (64, 64, 3))),
        ("idx", "mnist", ("mnist", 10, 60_000, 10_000, (64, 64, 1))),
        ("folder", "tiny_imagenet", ("tiny_imagenet", 200, 100_000, 10_000, (64, 64, 3))),
        ("npz", "cifar100", ("cifar100", 100, 50_000, 10_000, (64, 64, 3))),
    ],
)
def test_published_numbers_stand_in_for_absent_images(source, name, expected):
    config = data_config(source=source, name=name, resolution=64, path="/nowhere")
    plan = describe_dataset(config)
    found = (plan.name, plan.num_classes, plan.num_train, plan.num_test, plan.image_shape)
    assert found == expected
    assert not plan.available and "/nowhere" in plan.advice
    with pytest.raises(UserError, match="/nowhere") as refusal:
        load_dataset(config)
    assert "\n" not in plan.advice + str(refusal.value)


def test_native_resolution_is_the_published_one():
    plan = describe_dataset(data_config(source="idx", name="mnist", resolution=0, path="/no"))
    assert plan.image_shape == (28, 28, 1)


def test_images_that_are_there_are_counted_but_not_opened(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", find_subset("imagewoof").wnids)
    config = data_config(subset="imagewoof", path=tmp_path / "in")
    cache = tmp_path / "cache"
    config.cache_dir = str(cache)
    plan = describe_dataset(config)
    assert plan.available and plan.counts == "counted" and plan.advice == ""
    assert (plan.num_train, plan.num_test) == (30, 20)
    assert not cache.exists()


def test_ones_own_photographs_need_to_be_there(tmp_path):
    with pytest.raises(UserError, match="data.path is not set"):
        describe_dataset(data_config())
    write_folder(tmp_path / "pets", ["cat", "dog"])
    config = data_config(path=tmp_path / "pets", resolution=0)
    plan = describe_dataset(config)
    assert plan.class_names == ("cat", "dog") and plan.image_shape == (20, 26, 3)
    np.testing.assert_equal((plan.num_train, plan.num_test), (6, 4))


def test_with_zca_the_normalisation_is_not_known_before():
    config = data_config(source="tfds", name="cifar10", zca=True, path="/nowhere")
    assert describe_dataset(config).normalisation is None
