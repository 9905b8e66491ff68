"""One dataset and one config, on which any labelled images are measured by any protocol."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from edf_jax.config.resolve import baseline_rates, flatten
from edf_jax.data import Dataset
from edf_jax.distilled_set import LabelledImages
from edf_jax.evaluate import protocols, stored_labels
from edf_jax.evaluate.from_scratch import FromScratch, OnEpochs, RealTestData
from edf_jax.evaluate.measured import Measured
from edf_jax.evaluate.measurement import Measurement
from edf_jax.evaluate.plain import plain_evaluator
from edf_jax.evaluate.real_baselines import Networks, RealImages
from edf_jax.evaluate.teacher import get_teacher, teacher_network
from edf_jax.models import Network, open_options
from edf_jax.models.choose import MATCHED, network_for
from edf_jax.runtime import randomness, storage
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training.streaming import place
from edf_jax.training.trained import TrainedNetwork

# Real training images that choose a rate, at most.
_MOST_HELD_OUT = 2000
# What plain training depends on beside the set.
_PLAIN_KEYS = (
    "augment.strategy",
    "augment.crop_ratio",
    "evaluate.epochs",
    "evaluate.batch",
    "evaluate.momentum",
    "evaluate.weight_decay",
)


def test_data(config, dataset: Dataset) -> RealTestData:
    """A dataset's test images, where the config wants them."""
    test, normalisation = dataset.test, dataset.info.normalisation
    images, prepare = place(test.images, normalisation, config.data.on_device)
    return RealTestData(images, jnp.asarray(test.labels), prepare)


def make_evaluator(
    config, network: Network, test: RealTestData, *, epochs: int, augmented: bool = True
) -> FromScratch:
    """The plain protocol with a config's settings."""
    options = config.evaluate
    return plain_evaluator(
        network,
        test,
        epochs=epochs,
        batch=options.batch,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        strategy=config.augment.strategy if augmented else "none",
        crop_ratio=config.augment.crop_ratio,
    )


class Evaluation:
    """Makes measurements; each program is compiled once, each figure kept as soon as it is there.

    Args:
        config: resolved.
        dataset: the real images.
        workdir: figures are kept in its `evaluation.json`, stored soft labels in its `fkd/`.
        teacher: called when a measurement first needs the teacher; `get_teacher` where None.
        networks: what baselines' features, soft labels and scores are from; the teacher, and for
            scores networks trained for them, where None.
        provenance: command, versions and hardware, kept beside every figure.
    """

    def __init__(
        self,
        config,
        dataset: Dataset,
        workdir: pathlib.Path,
        *,
        teacher: Callable[[], TrainedNetwork] | None = None,
        networks: Networks | None = None,
        provenance: Mapping[str, Any] | None = None,
    ):
        self.config, self.dataset = config, dataset
        self.measured = Measured(
            workdir / "evaluation.json", {"seed": config.seed, **(provenance or {})}
        )
        self._folder = workdir / "fkd"
        self._get_teacher = functools.cache(
            teacher or functools.partial(get_teacher, config, dataset, workdir)
        )
        real = RealImages(config, dataset, lambda: self.teacher, networks)
        # (name of `coresets.BASELINES`, images per class) -> real images
        self.baseline = functools.cache(real.choose)
        self._evaluators: dict[tuple, FromScratch] = {}
        self._test = test_data(config, dataset)

    def ready(self, one: Measurement) -> Measurement:
        """A measurement whose images have their regime's labels, with no more augmentation than
        `evaluate.augment` allows."""
        augmented = one.augmented and self.config.evaluate.augment != "none"
        return dataclasses.replace(one.labelled(lambda: self.teacher), augmented=augmented)

    @property
    def teacher(self) -> TrainedNetwork:
        """The teacher, trained now if it has to be."""
        return self._get_teacher()

    def network(self, name: str, protocol: str = "plain") -> Network:
        """The architecture that is trained; RDED's has batch norm where it can choose."""
        width = 0 if name == MATCHED else self.config.evaluate.width
        return network_for(
            self.config, self.dataset.info, name, width=width, batch_norm=protocol == "rded"
        )

    def measure(
        self, measurements: Sequence[Measurement], *, title: str = "evaluate"
    ) -> list[dict[str, Any]]:
        """The figures of each, measured now where they aren't known.

        Returns:
            Each with its network's name, its protocol, whose labels, what the images are and their
            bytes, and the epochs and steps of each that a network is trained.
        """
        measurements = [self.ready(one) for one in measurements]
        identities = [self.identity(one) for one in measurements]
        left = {
            storage.digest_of_record(identity): self.epochs(one)
            for one, identity in zip(measurements, identities)
            if self.measured.find(identity) is None
        }
        rows = []
        with Progress(title, sum(left.values()), "epoch") as bar:

            def on_epochs(count: int, loss: float) -> None:
                bar.update(count, loss=loss)

            for one, identity in zip(measurements, identities):
                make = functools.partial(self.run, one, on_epochs)
                row = {
                    "network": self.label(one.network),
                    "protocol": one.protocol,
                    "labels": one.regime,
                    "epochs": self._epochs(one),
                    "steps": -(-len(one.images.images) // self._batch(one)),
                }
                note = {"note": one.images.note} if one.images.note else {}
                sizes = one.images.stored_bytes.figures()
                rows.append({**row, **note, **sizes, **self.measured.need(identity, make)})
        return rows

    def label(self, name: str) -> str:
        """What a network is called in results."""
        own = self.network(MATCHED).name
        if name == MATCHED:
            return own
        width = self.config.evaluate.width
        if width and "width" in open_options(name):
            return f"{name} (width {width})"
        return f"{name} (its own width)" if name == own else name

    def evaluator(self, one: Measurement) -> FromScratch:
        """The programs of a measurement's network and protocol."""
        batch = self._batch(one)
        # A table says all that differs without augmentation.
        augmented = one.augmented or one.protocol == "sre2l"
        key = (one.network, one.protocol, one.taught, augmented, batch)
        if key not in self._evaluators:
            self._evaluators[key] = self._make_evaluator(one, batch)
        return self._evaluators[key]

    def _make_evaluator(self, one: Measurement, batch: int) -> FromScratch:
        network, options = self.network(one.network, one.protocol), self.config.evaluate
        sizes = {"epochs": options.kd_epochs, "batch": batch}
        if one.protocol == "rded":
            return protocols.rded_evaluator(
                network,
                self.teacher if one.taught else None,
                self._test,
                augmented=one.augmented,
                bn_updates=options.bn_updates,
                **sizes,
            )
        if one.protocol == "sre2l":
            return protocols.sre2l_evaluator(network, self._test, taught=one.taught, **sizes)
        return make_evaluator(
            self.config, network, self._test, epochs=options.epochs, augmented=one.augmented
        )

    def _batch(self, one: Measurement) -> int:
        options, count = self.config.evaluate, len(one.images.labels)
        if one.protocol == "plain":
            return options.batch
        num_classes = self.dataset.info.num_classes
        own = protocols.SRE2L_BATCH
        if one.protocol == "rded":
            own = protocols.rded_batch(
                count // num_classes,
                num_classes,
                self.dataset.info.name,
                cifar100_convnets=self._cifar100_convnets(one),
            )
        return min(options.kd_batch or own, count)

    def _cifar100_convnets(self, one: Measurement) -> bool:
        """Whether it is the one case to which RDED's code gives a batch size and a rate."""
        info = self.dataset.info
        if one.protocol != "rded" or info.name != "cifar100":
            return False
        # No teacher is trained only to know what it would be.
        teacher = self.teacher.network if one.taught else teacher_network(self.config, info)
        both = self.network(one.network, one.protocol), teacher
        return all(network.name.startswith("ConvNet") for network in both)

    def epochs(self, one: Measurement) -> int:
        """How many epochs a measurement trains, the search for a rate included."""
        searched = one.protocol == "plain" and self._known_rate(one) is None
        return self._epochs(one) * (1 + searched)

    def _epochs(self, one: Measurement) -> int:
        options = self.config.evaluate
        return options.epochs + 1 if one.protocol == "plain" else options.kd_epochs

    def identity(self, one: Measurement) -> dict[str, Any]:
        """Everything that decides a measurement's figures."""
        flat = flatten(self.config)
        options = self.config.evaluate
        identity: dict[str, Any] = {
            "subject": one.images.digest,
            "dataset": self.dataset.info.fingerprint,
            "network": one.network,
            "params": self.network(one.network, one.protocol).num_params,
            "protocol": one.protocol,
            "augmented": one.augmented,
            "batch": self._batch(one),
            "num": options.num,
            "seed": self.config.seed,
            "precision": self.config.precision,
        }
        if one.network == MATCHED:
            identity |= {name: value for name, value in flat.items() if name.startswith("model.")}
        if one.protocol == "plain":
            identity |= {name: flat[name] for name in _PLAIN_KEYS}
            known = self._known_rate(one)
            identity["rate"] = options.baseline_rates if known is None else known
        else:
            identity["epochs"] = options.kd_epochs
            identity |= {"teacher": self.teacher.digest} if one.taught else {"labels": "given"}
        if one.protocol == "rded" and options.bn_updates != 1:
            identity["bn_updates"] = options.bn_updates
        return identity

    def _known_rate(self, one: Measurement) -> float | None:
        """The rate of a plain measurement that needs no search: the learned one, or the only one.

        A learned rate fits the network it was learned with, and the labels.
        """
        rates = baseline_rates(self.config.evaluate.baseline_rates)
        policy, alpha = self.config.evaluate.rate, one.images.alpha
        if alpha is not None and policy != "search":
            own = one.images.config
            matched = one.network == MATCHED and all(
                own.get(name, value) == value
                for name, value in flatten(self.config).items()
                if name.startswith("model.") and name != "model.convolution"
            )
            if matched or policy == "learned":
                return alpha
        return rates[0] if len(rates) == 1 else None

    def run(self, one: Measurement, on_epochs: OnEpochs | None = None) -> dict[str, Any]:
        """A measurement's figures: accuracies, the rate and where it is from."""
        evaluator = self.evaluator(one)
        images = one.images.images
        targets: Any = one.images.labels
        extra: dict[str, Any] = {}
        if one.protocol == "plain":
            rate, how = self._rate(one, evaluator, on_epochs)
        else:
            special = self._cifar100_convnets(one)
            rate = protocols.rate_of(evaluator.network, cifar100_convnets=special)
            how = "the protocol's"
        if one.protocol == "rded":
            if one.taught:
                targets = np.zeros(len(images), np.int32)
            checks = ", ".join(str(e + 1) for e in protocols.rded_checks(evaluator.total))
            extra["chosen"] = f"the best on test images after epochs {checks}"
        elif one.protocol == "sre2l":
            targets, sizes = self._table(one)
            extra |= sizes
        key = randomness.stream(self.config.seed, "evaluation")
        num = self.config.evaluate.num
        accuracies = evaluator(images, targets, rate, key, num=num, on_epochs=on_epochs)
        return {**accuracies.figures(), "rate": float(rate), "rate_from": how, **extra}

    def _rate(
        self, one: Measurement, evaluator: FromScratch, on_epochs: OnEpochs | None
    ) -> tuple[float, str]:
        """A plain measurement's rate and where it is from.

        Where it isn't known, one network is trained with each of `evaluate.baseline_rates`, and
        that of the best on real training images wins; never on test images.
        """
        known = self._known_rate(one)
        if known is not None:
            return known, "learned" if known == one.images.alpha else "given"
        rates = baseline_rates(self.config.evaluate.baseline_rates)
        held_out = self.held_out(one.images)
        if not len(held_out):
            return rates[0], "the first, since no training images are left to choose on"
        train = self.dataset.train
        images, _ = place(train.images[held_out], self.dataset.info.normalisation, "yes")
        key = randomness.stream(self.config.seed, "random baseline")
        states = evaluator.train(
            jnp.asarray(one.images.images),
            one.images.labels,
            jnp.asarray(rates),
            key,
            on_epochs=on_epochs,
        )
        right = evaluator.test(states, images, jnp.asarray(train.labels[held_out]))
        best = rates[int(np.argmax(right.values))]
        return best, f"best of {len(rates)} on {len(held_out)} held-out training images"

    def held_out(self, images: LabelledImages) -> np.ndarray:
        """Positions of training images that a rate is chosen on; none is among the images."""
        everything = np.arange(len(self.dataset.train.labels))
        rest = np.setdiff1d(everything, [] if images.positions is None else images.positions)
        rng = randomness.host_stream(self.config.seed, "held-out images")
        return np.sort(rng.permutation(rest)[:_MOST_HELD_OUT])

    def _table(self, one: Measurement) -> tuple[stored_labels.Table, dict[str, Any]]:
        """What students of the SRe2L protocol see, and its size beside the images'."""
        options, images = self.config.evaluate, one.images
        make = functools.partial(
            protocols.make_table,
            randomness.stream(self.config.seed, "stored soft labels"),
            images.images,
            epochs=options.kd_epochs,
            batch=self._batch(one),
            augmented=one.augmented,
        )
        if not one.taught:
            return make(None, labels=images.labels), {}
        teacher = self.teacher
        details = {
            "subject": images.digest,
            "teacher": teacher.digest,
            "teacher_name": teacher.name,
            "epochs": options.kd_epochs,
            "batch": self._batch(one),
            "image_shape": list(images.images.shape[1:]),
            "temperature": protocols.TEMPERATURE,
            "augmented": one.augmented,
            "seed": self.config.seed,
        }
        path = self._folder / f"{storage.digest_of_record(details)}.safetensors"
        kept = stored_labels.find(path, details)
        if kept is not None:
            return kept, _sizes(kept, images, path)
        table = make(teacher)
        if one.keep_labels:
            stored_labels.save(path, table, details)
        return table, _sizes(table, images, path if one.keep_labels else None)


def images_per_class(images: LabelledImages) -> int:
    """How many stored images a class has, on average rounded down.

    Raises:
        UserError: less than one.
    """
    count, num_classes = len(images.parameters), images.labels.shape[1]
    if count < num_classes:
        raise UserError(
            f"{images.note}: {count} images for {num_classes} classes; a comparison with real "
            "images needs one a class"
        )
    return count // num_classes


def _sizes(table, images: LabelledImages, path: pathlib.Path | None) -> dict[str, Any]:
    sizes = {"soft_label_bytes": table.num_bytes, "image_bytes": images.stored_bytes.images}
    return sizes if path is None else {**sizes, "soft_label_file": str(path)}
