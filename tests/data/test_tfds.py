"""TFDS sets prepared as array_record, without TensorFlow."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edf_jax.data import describe_dataset, load_dataset, normalisation
from edf_jax.data import tfds as our_tfds
from edf_jax.data.subsets import find_subset, imagenet_classes
from edf_jax.runtime.errors import UserError
from tests.data_layouts import data_config, marked, marks, write_tfds

pytest.importorskip("tensorflow_datasets")


def _config(tmp_path, **changes):
    usual = {"source": "tfds", "path": tmp_path / "tfds", "cache_dir": str(tmp_path / "cache")}
    return data_config(**usual | changes)


def _write_imagenette(tmp_path):
    wnids = find_subset("imagenette").wnids
    labels = {"train": np.arange(30) % 10, "validation": np.arange(20)[::-1] % 10}
    write_tfds(tmp_path / "tfds", "imagenette", labels, wnids, config="full-size-v2")
    return labels


def test_imagenette_is_named_by_its_own_split(tmp_path):
    labels = _write_imagenette(tmp_path)
    dataset = load_dataset(_config(tmp_path, name="imagenette"))
    assert dataset.info.name == "imagenette_fastai"
    assert dataset.info.class_names == find_subset("imagenette").class_names
    assert dataset.info.imagenet_indices == find_subset("imagenette").indices
    for split, name in ((dataset.train, "train"), (dataset.test, "validation")):
        np.testing.assert_array_equal(split.labels, labels[name])
        np.testing.assert_array_equal(marks(split.images), np.arange(len(split)) % 10)


def test_a_subset_of_imagenet2012_by_wordnet_id_and_by_index_agree(tmp_path):
    subset = find_subset("imageyellow")
    generator = np.random.default_rng(0)
    others = [i for i in range(1000) if i not in subset.indices]
    labels = generator.permutation([*subset.indices, *subset.indices, *others[:40]])
    wnids = [c.wnid for c in imagenet_classes()]  # a label is a class index
    splits = {"train": labels, "validation": labels, "test": np.full(4, -1)}
    write_tfds(tmp_path / "tfds", "imagenet2012", splits, wnids)
    dataset = load_dataset(_config(tmp_path, name="imagenet2012", subset="imageyellow"))
    assert dataset.info.name == "imageyellow"
    assert dataset.info.imagenet_indices == subset.indices
    kept = [i for i, label in enumerate(labels) if label in subset.indices]
    expected = [subset.indices.index(labels[i]) for i in kept]
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(split.labels, expected)
        np.testing.assert_array_equal(marks(split.images), np.array(kept) % 10)


def test_the_labels_are_read_once_and_nothing_is_decoded_for_it(tmp_path, monkeypatch):
    _write_imagenette(tmp_path)
    config = _config(tmp_path, name="imagenette")
    from edf_jax.data import load, preprocess

    cache_dir = load.find_cache_dir(config)
    monkeypatch.setattr(preprocess, "decode", None)
    first = our_tfds.open_tfds(config, cache_dir)
    assert len(list(cache_dir.glob("tfds_labels_*.npz"))) == 2
    monkeypatch.setattr(our_tfds, "in_workers", None)
    second = our_tfds.open_tfds(config, cache_dir)
    np.testing.assert_array_equal(first.train.labels, second.train.labels)
    assert first.train.identity == second.train.identity


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_grey_sets(tmp_path, name):
    labels = {"train": np.arange(20) % 10, "test": np.arange(10)}
    write_tfds(tmp_path / "tfds", name, labels, [str(i) for i in range(10)], grey=True)
    info = load_dataset(_config(tmp_path, name=name, resolution=0)).info
    assert info.image_shape == (28, 28, 1)
    assert info.normalisation == getattr(normalisation, name.upper())
    plan = describe_dataset(_config(tmp_path, name=name, resolution=0))
    assert plan.available and (plan.num_train, plan.num_test) == (20, 10)


@pytest.mark.parametrize(
    ("name", "classes", "constants"),
    [("CIFAR-10", 10, "CIFAR"), ("cifar100", 100, "CIFAR"), ("svhn", 10, "SVHN")],
)
def test_small_colour_sets(tmp_path, name, classes, constants):
    labels = {"train": np.arange(classes), "test": np.arange(classes)}
    tfds_name = our_tfds.tfds_name(_config(tmp_path, name=name))
    write_tfds(tmp_path / "tfds", tfds_name, labels, [str(i) for i in range(classes)])
    dataset = load_dataset(_config(tmp_path, name=name, resolution=32))
    assert dataset.info.name == tfds_name and dataset.info.num_classes == classes
    assert dataset.info.normalisation == getattr(normalisation, constants)
    assert dataset.train.images.shape == (classes, 32, 32, 3)


def test_a_set_of_ones_own(tmp_path):
    labels = {"train": [0, 1, 0], "validation": [1, 0]}
    write_tfds(tmp_path / "tfds", "pets", labels, ["cat", "dog"])
    dataset = load_dataset(_config(tmp_path, name="pets"))
    assert dataset.info.class_names == ("cat", "dog") and dataset.info.imagenet_indices is None
    plan = describe_dataset(_config(tmp_path, name="pets"))
    assert (plan.num_train, plan.num_test, plan.class_names) == (3, 2, ("cat", "dog"))


def _prepare(data_dir, name, label_names, *, grey):
    """TFDS itself prepares a set: image i is marked i % 10 and of class i % 10.

    Images are given as encoded files, for TFDS encodes arrays by TensorFlow.
    """
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(
            shape=(28, 28, 1) if grey else (None, None, 3),
            encoding_format="png" if grey else "jpeg",
        ),
        "label": tfds.features.ClassLabel(names=label_names),
    }

    def file(i):
        image = Image.fromarray(marked(i % 10, i))
        buffer = io.BytesIO()
        if grey:
            image.convert("L").resize((28, 28)).save(buffer, "PNG")
        else:
            image.save(buffer, "JPEG", quality=95)
        buffer.seek(0)
        return buffer

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(20)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": file(i), "label": i % 10}

    Prepared.name = name
    Prepared.code_path = None  # whose checksums it would look for
    Prepared(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.mark.parametrize(
    ("name", "expected", "grey"), [("mnist", "mnist", True), ("imagewoof", "imagewoof_fastai", 0)]
)
def test_sets_that_tfds_itself_prepared(tmp_path, name, expected, grey):
    names = [str(i) for i in range(10)] if grey else list(find_subset(name).wnids)
    _prepare(tmp_path / "tfds", name, names, grey=grey)
    config = _config(tmp_path, name=name, resolution=28)
    plan, dataset = describe_dataset(config), load_dataset(config)
    assert plan.name == dataset.info.name == expected
    assert plan.available and (plan.num_train, plan.num_test) == (30, 20)
    assert dataset.info.class_names == plan.class_names
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(marks(split.images), split.labels)
        # TFDS shuffles what it prepares.
        assert (np.diff(split.labels) != 1).any()
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [3] * 10)


@pytest.mark.parametrize("test", ["n1_1", "ILSVRC2012_val_1"])
def test_fastais_split_is_known_by_the_files_that_a_set_names(tmp_path, test):
    wnids = find_subset("imagewoof").wnids
    labels = {"train": np.arange(20) % 10, "test": np.arange(10)}
    files = {"train": [f"ILSVRC2012_val_{i}.JPEG" for i in range(20)], "test": [test] * 10}
    write_tfds(tmp_path / "tfds", "my_dogs", labels, wnids, files=files)
    config = _config(tmp_path, name="my_dogs")
    if test == "n1_1":
        assert load_dataset(config).info.name == "imagewoof_fastai"
        assert describe_dataset(config).name == "imagewoof_fastai"
    else:
        with pytest.raises(UserError, match="1 of the test images are in train/ too"):
            load_dataset(config)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    for number, label in enumerate((-1, 2, 2**40)):
        labels = {"train": [0, 1, label], "test": [0, 1]}
        write_tfds(tmp_path / "tfds", f"pets{number}", labels, ["cat", "dog"])
        with pytest.raises(UserError, match=f"Label {label} in the train split"):
            load_dataset(_config(tmp_path, name=f"pets{number}"))


def test_damaged_labels_in_the_cache_are_read_again(tmp_path):
    labels = _write_imagenette(tmp_path)
    config = _config(tmp_path, name="imagenette")
    load_dataset(config)
    for path in (tmp_path / "cache").glob("tfds_labels_*.npz"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    np.testing.assert_array_equal(load_dataset(config).train.labels, labels["train"])


def test_unprepared_and_tfrecord_sets_end_in_the_preparing_command(tmp_path):
    def refused(match, **changes):
        with pytest.raises(UserError, match=match) as refusal:
            load_dataset(_config(tmp_path, **changes))
        assert "\n" not in str(refusal.value)

    command = f"tfds build %s --file_format=array_record --data_dir={tmp_path}/tfds"
    refused(command % "cifar10", name="cifar10")
    refused(command % "imagenet2012" + ".*manual.*folder", subset="bird_hard")
    _write_imagenette(tmp_path)
    (record,) = (tmp_path / "tfds").glob("**/dataset_info.json")
    content = json.loads(record.read_text())
    del content["fileFormat"]  # as sets were written before there was a choice
    record.write_text(json.dumps(content))
    refused("prepared as tfrecord.*" + command % "imagenette", name="imagenette")


def test_sets_that_lack_what_is_asked_for_are_named(tmp_path):
    _write_imagenette(tmp_path)
    with pytest.raises(UserError, match="lacks 10 of 10 classes of imagefruit"):
        load_dataset(_config(tmp_path, name="imagenette", subset="imagefruit"))
    write_tfds(tmp_path / "tfds", "cifar10", {"train": [0], "test": [0]}, ["a"])
    with pytest.raises(UserError, match="has 1 classes, but cifar10 has 10"):
        load_dataset(_config(tmp_path, name="cifar10"))
    write_tfds(tmp_path / "tfds", "solo", {"train": [0, 1]}, ["a", "b"])
    with pytest.raises(UserError, match="no test split"):
        load_dataset(_config(tmp_path, name="solo"))
    write_tfds(tmp_path / "tfds", "gap", {"train": [0, 1], "test": [1]}, ["a", "b"])
    with pytest.raises(UserError, match="No images of class a in the test split"):
        load_dataset(_config(tmp_path, name="gap"))


def test_reading_needs_no_tensorflow(tmp_path):
    _write_imagenette(tmp_path)
    code = (
        "import sys\n"
        "from edf_jax.data import load_dataset\n"
        "from tests.data_layouts import data_config\n"
        f"c = data_config(source='tfds', name='imagenette', path={str(tmp_path / 'tfds')!r},\n"
        f"                cache_dir={str(tmp_path / 'cache')!r})\n"
        "assert len(load_dataset(c).train) == 30\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
