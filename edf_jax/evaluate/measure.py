"""One dataset and one config, on which any labelled images are evaluated by any protocol."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.config.resolve import baseline_rates, flatten
from edf_jax.data import Dataset
from edf_jax.evaluate import protocols, stored_labels
from edf_jax.evaluate.from_scratch import OnEpochs, Trials
from edf_jax.evaluate.labelled_images import Subject
from edf_jax.evaluate.plain import Evaluator
from edf_jax.evaluate.real_baselines import RealImages, RealNetworks
from edf_jax.models import Network, open_options
from edf_jax.models.choose import MATCHED, find_network
from edf_jax.runtime import processes, randomness, storage
from edf_jax.runtime.errors import UserError
from edf_jax.training.streaming import Images, place
from edf_jax.training.trained import TrainedNetwork

_log = logging.getLogger(__name__)
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


@dataclasses.dataclass(frozen=True)
class Trial:
    """One measurement.

    Attributes:
        subject: the images.
        network: a name, `networks.MATCHED` for the distilling one.
        protocol: `plain`, `rded` or `sre2l`.
        augmented: False trains on the images as they are.
        keep_labels: whether the table of the SRe2L protocol is kept as a file.
    """

    subject: Subject
    network: str = MATCHED
    protocol: str = "plain"
    augmented: bool = True
    keep_labels: bool = False


class Bench:
    """Makes trials and their programs; each program is compiled once."""

    def __init__(
        self,
        config,
        dataset: Dataset,
        workdir: pathlib.Path,
        *,
        get_teacher: Callable[[], TrainedNetwork],
        real_networks: RealNetworks | None = None,
    ):
        """Prepares the bench.

        Args:
            config: resolved.
            dataset: the real images.
            workdir: stored soft labels are kept in `fkd/` here.
            get_teacher: called when a trial first needs the teacher.
            real_networks: what baselines' features and soft labels are from; the teacher where
                None.
        """
        self.config, self.dataset = config, dataset
        self._folder = workdir / "fkd"
        self._get_teacher = functools.cache(get_teacher)
        self._real_images = RealImages(
            config, dataset, lambda: real_networks or _of_teacher(self.teacher)
        )
        self._evaluators: dict[tuple, Trials] = {}
        self._baselines: dict[tuple[str, int], Subject] = {}
        self._test, self._prepare = place(
            dataset.test.images, dataset.info.normalisation, config.data.on_device
        )
        self._test_labels = jnp.asarray(dataset.test.labels)

    @property
    def teacher(self) -> TrainedNetwork:
        """The teacher, trained now if it has to be."""
        return self._get_teacher()

    def network(self, name: str, protocol: str = "plain") -> Network:
        """The architecture that a trial trains; RDED's has batch norm where it can choose."""
        width = 0 if name == MATCHED else self.config.evaluate.width
        return find_network(
            self.config, self.dataset.info, name, width=width, batch_norm=protocol == "rded"
        )

    def label(self, name: str) -> str:
        """What a network is called in results."""
        own = self.network(MATCHED).name
        if name == MATCHED:
            return own
        width = self.config.evaluate.width
        if width and "width" in open_options(name):
            return f"{name} (width {width})"
        return f"{name} (its own width)" if name == own else name

    def evaluator(self, trial: Trial) -> Trials:
        """The programs of a trial's network and protocol."""
        batch = self._batch(trial)
        # A table says all that differs without augmentation.
        augmented = trial.augmented or trial.protocol == "sre2l"
        key = (trial.network, trial.protocol, augmented, batch)
        if key not in self._evaluators:
            self._evaluators[key] = self._make_evaluator(trial, batch)
        return self._evaluators[key]

    def _make_evaluator(self, trial: Trial, batch: int) -> Trials:
        config, options = self.config, self.config.evaluate
        network = self.network(trial.network, trial.protocol)
        test = (self._test, self._test_labels, self._prepare)
        if trial.protocol == "rded":
            return protocols.RdedEvaluator(
                network,
                self.teacher,
                *test,
                epochs=options.kd_epochs,
                batch=batch,
                augmented=trial.augmented,
                bn_updates=options.bn_updates,
            )
        if trial.protocol == "sre2l":
            return protocols.Sre2lEvaluator(
                network, *test, epochs=options.kd_epochs, batch=batch
            )
        return Evaluator(
            network,
            *test,
            epochs=options.epochs,
            batch=batch,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            strategy=config.augment.strategy if trial.augmented else "none",
            crop_ratio=config.augment.crop_ratio,
        )

    def _batch(self, trial: Trial) -> int:
        options, count = self.config.evaluate, len(trial.subject.images)
        if trial.protocol == "plain":
            return options.batch
        num_classes = self.dataset.info.num_classes
        own = protocols.SRE2L_BATCH
        if trial.protocol == "rded":
            own = protocols.rded_batch(
                count // num_classes,
                num_classes,
                self.dataset.info.name,
                cifar100_convnets=self._cifar100_convnets(trial),
            )
        return min(options.kd_batch or own, count)

    def _cifar100_convnets(self, trial: Trial) -> bool:
        """Whether it is the one case to which RDED's code gives a batch size and a rate."""
        if trial.protocol != "rded" or self.dataset.info.name != "cifar100":
            return False
        both = self.network(trial.network, trial.protocol), self.teacher.network
        return all(network.name.startswith("ConvNet") for network in both)

    def epochs(self, trial: Trial) -> int:
        """How many epochs a trial trains, the search for a rate included."""
        options = self.config.evaluate
        if trial.protocol != "plain":
            return options.kd_epochs
        return (options.epochs + 1) * (1 + (self._known_rate(trial) is None))

    def identity(self, trial: Trial) -> dict[str, Any]:
        """Everything that decides a trial's figures."""
        flat = flatten(self.config)
        options = self.config.evaluate
        identity: dict[str, Any] = {
            "subject": trial.subject.digest,
            "dataset": self.dataset.info.fingerprint,
            "network": trial.network,
            "params": self.network(trial.network, trial.protocol).num_params,
            "protocol": trial.protocol,
            "augmented": trial.augmented,
            "batch": self._batch(trial),
            "num": options.num,
            "seed": self.config.seed,
            "precision": self.config.precision,
        }
        if trial.network == MATCHED:
            identity |= {name: value for name, value in flat.items() if name.startswith("model.")}
        if trial.protocol == "plain":
            identity |= {name: flat[name] for name in _PLAIN_KEYS}
            known = self._known_rate(trial)
            identity["rate"] = options.baseline_rates if known is None else known
        else:
            identity |= {"epochs": options.kd_epochs, "teacher": self.teacher.digest}
        if trial.protocol == "rded" and options.bn_updates != 1:
            identity["bn_updates"] = options.bn_updates
        return identity

    def _known_rate(self, trial: Trial) -> float | None:
        """The rate of a plain trial that needs no search: the learned one, or the only one.

        A learned rate fits the network it was learned with, and the labels.
        """
        rates = baseline_rates(self.config.evaluate.baseline_rates)
        policy, alpha = self.config.evaluate.rate, trial.subject.alpha
        if alpha is not None and policy != "search":
            own = trial.subject.config
            matched = trial.network == MATCHED and all(
                own.get(name, value) == value
                for name, value in flatten(self.config).items()
                if name.startswith("model.") and name != "model.convolution"
            )
            if matched or policy == "learned":
                return alpha
        return rates[0] if len(rates) == 1 else None

    def run(self, trial: Trial, on_epochs: OnEpochs | None = None) -> dict[str, Any]:
        """A trial's figures: accuracies, the rate and where it is from."""
        evaluator = self.evaluator(trial)
        seed, subject = self.config.seed, trial.subject
        targets: Any = subject.labels
        extra: dict[str, Any] = {}
        if trial.protocol == "plain":
            rate, how = self._rate(trial, evaluator, on_epochs)
        else:
            special = self._cifar100_convnets(trial)
            rate = protocols.rate_of(evaluator.network, cifar100_convnets=special)
            how = "the protocol's"
        if trial.protocol == "rded":
            targets = np.zeros(len(subject.images), np.int32)
            checks = ", ".join(str(e + 1) for e in protocols.rded_checks(evaluator.total))
            extra["chosen"] = f"the best on test images after epochs {checks}"
        elif trial.protocol == "sre2l":
            targets, sizes = self._table(trial)
            extra |= sizes
        key = randomness.stream(seed, "evaluation")
        accuracies = evaluator(
            subject.images,
            targets,
            rate,
            key,
            num=self.config.evaluate.num,
            on_epochs=on_epochs,
        )
        return {**accuracies.figures(), "rate": float(rate), "rate_from": how, **extra}

    def _rate(
        self, trial: Trial, evaluator: Trials, on_epochs: OnEpochs | None
    ) -> tuple[float, str]:
        known = self._known_rate(trial)
        if known is not None:
            return known, "learned" if known == trial.subject.alpha else "given"
        rates = baseline_rates(self.config.evaluate.baseline_rates)
        held_out = self.held_out(trial.subject)
        if not len(held_out):
            return rates[0], "the first, since no training images are left to choose on"
        train = self.dataset.train
        images, _ = place(train.images[held_out], self.dataset.info.normalisation, "yes")
        rate = search_rate(
            evaluator,
            trial.subject,
            rates,
            randomness.stream(self.config.seed, "random baseline"),
            images,
            jnp.asarray(train.labels[held_out]),
            on_epochs,
        )
        return rate, f"best of {len(rates)} on {len(held_out)} held-out training images"

    def held_out(self, subject: Subject) -> np.ndarray:
        """Positions of training images that a rate is chosen on; none is in the subject."""
        everything = np.arange(len(self.dataset.train.labels))
        rest = np.setdiff1d(everything, [] if subject.positions is None else subject.positions)
        rng = randomness.host_stream(self.config.seed, "held-out images")
        return np.sort(rng.permutation(rest)[:_MOST_HELD_OUT])

    def _table(self, trial: Trial) -> tuple[stored_labels.Table, dict[str, Any]]:
        """What students of the SRe2L protocol see, and its size beside the images'."""
        options, subject, teacher = self.config.evaluate, trial.subject, self.teacher
        details = {
            "subject": subject.digest,
            "teacher": teacher.digest,
            "teacher_name": teacher.name,
            "epochs": options.kd_epochs,
            "batch": self._batch(trial),
            "image_shape": list(subject.images.shape[1:]),
            "temperature": protocols.TEMPERATURE,
            "augmented": trial.augmented,
            "seed": self.config.seed,
        }
        path = self._folder / f"{storage.digest_of_record(details)}.safetensors"
        kept = _kept_table(path)
        if kept is not None:
            return kept, _sizes(kept, subject, path)
        table = protocols.make_table(
            randomness.stream(self.config.seed, "stored soft labels"),
            subject.images,
            teacher,
            epochs=options.kd_epochs,
            batch=self._batch(trial),
            augmented=trial.augmented,
        )
        if trial.keep_labels:
            stored_labels.save(path, table, details)
        return table, _sizes(table, subject, path if trial.keep_labels else None)

    def baseline(self, name: str, ipc: int) -> Subject:
        """Real images that a distilled set is held against.

        Args:
            name: `random`, `herding`, `k_centre`, or `real_soft`: the random ones with soft labels.
            ipc: images per class.
        """
        if (name, ipc) not in self._baselines:
            self._baselines[name, ipc] = self._real_images.choose(name, ipc)
        return self._baselines[name, ipc]


def search_rate(
    evaluator: Trials,
    subject: Subject,
    rates: Sequence[float],
    key: jax.Array,
    images: Images,
    labels: jax.Array,
    on_epochs: OnEpochs | None = None,
) -> float:
    """The rate whose network is best on held-out images; one network is trained with each.

    Args:
        evaluator: the recipe.
        subject: what is trained on.
        rates: to choose from.
        key: for initialisation and training.
        images: `[m, H, W, C]` as stored, held-out real training images; never test images.
        labels: `[m]`.
        on_epochs: as in `Trials.train`.
    """
    states = evaluator.train(
        jnp.asarray(subject.images), subject.labels, jnp.asarray(rates), key, on_epochs=on_epochs
    )
    right = evaluator.test(states, images, labels)
    return rates[int(np.argmax(right.values))]


def images_per_class(subject: Subject) -> int:
    """How many images a class has, on average rounded down.

    Raises:
        UserError: less than one.
    """
    ipc = len(subject.images) // subject.labels.shape[1]
    if ipc < 1:
        raise UserError(
            f"{subject.note}: {len(subject.images)} images for {subject.labels.shape[1]} classes; "
            "a comparison with real images needs one a class"
        )
    return ipc


def _kept_table(path: pathlib.Path) -> stored_labels.Table | None:
    def read() -> tuple[bool, dict[str, np.ndarray]]:
        if path.exists():
            try:
                table, _ = stored_labels.load(path)
                return True, {name: np.asarray(leaf) for name, leaf in table._asdict().items()}
            except storage.DamagedFile as error:
                _log.warning("%s: made again", error)
        return False, {}

    there, arrays = processes.shared_arrays("stored soft labels", read)
    return stored_labels.Table(**{k: jnp.asarray(v) for k, v in arrays.items()}) if there else None


def _of_teacher(teacher: TrainedNetwork) -> RealNetworks:
    return RealNetworks(
        teacher.network, lambda _: teacher.arrays, 1, teacher.name, teacher.class_indices
    )


def _sizes(table: stored_labels.Table, subject: Subject, path: pathlib.Path | None) -> dict[str, Any]:
    sizes = {"soft_label_bytes": table.num_bytes, "image_bytes": subject.images.nbytes}
    return sizes if path is None else {**sizes, "soft_label_file": str(path)}
