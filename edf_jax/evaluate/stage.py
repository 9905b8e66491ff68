"""The evaluation of a run: the distilled set, what it is held against, and fair scores."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from edf_jax import distilled_set
from edf_jax.config.resolve import baseline_names, network_list
from edf_jax.data import Dataset
from edf_jax.distilled_set import DistilledSet
from edf_jax.evaluate import dd_ranking, labelled_images
from edf_jax.evaluate.from_scratch import OnEpochs
from edf_jax.evaluate.labelled_images import Subject
from edf_jax.evaluate.measure import Bench, RealNetworks, Trial, images_per_class
from edf_jax.evaluate.measured import Ledger
from edf_jax.evaluate.plain import Evaluator
from edf_jax.evaluate.teacher import get_teacher
from edf_jax.experts.train import expert_recipe
from edf_jax.models import Network
from edf_jax.models.choose import MATCHED, network_for
from edf_jax.runs.files import selected
from edf_jax.runs.statistics import Accuracies
from edf_jax.runtime import preemption, randomness, storage
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training.loop import initial_state
from edf_jax.training.streaming import make_accuracy, make_epoch, place
from edf_jax.training.trained import TrainedNetwork


def make_evaluator(config, dataset: Dataset, *, epochs: int) -> Evaluator:
    """The plain protocol with a config's settings, on a dataset's test images.

    Args:
        config: resolved.
        dataset: the real images.
        epochs: E_eval.
    """
    options = config.evaluate
    images, prepare = place(
        dataset.test.images, dataset.info.normalisation, config.data.on_device
    )
    return Evaluator(
        network_for(config, dataset.info),
        images,
        jnp.asarray(dataset.test.labels),
        prepare,
        epochs=epochs,
        batch=options.batch,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        strategy=config.augment.strategy,
        crop_ratio=config.augment.crop_ratio,
    )


def periodic(config, dataset: Dataset) -> Callable[[DistilledSet, int], Accuracies]:
    """The evaluation during distillation: `(set, iteration) -> Accuracies`.

    The same networks are tested on held-out images too, where there are any.
    """
    options = config.evaluate
    evaluator = make_evaluator(config, dataset, epochs=options.during_epochs or options.epochs)
    key = randomness.stream(config.seed, "periodic evaluation")
    held_out = dataset.held_out
    if held_out is not None:
        normalisation, choice = dataset.info.normalisation, config.data.on_device
        held_images, _ = place(held_out.images, normalisation, choice)
        held_labels = jnp.asarray(held_out.labels)

    def evaluate(distilled: DistilledSet, iteration: int) -> Accuracies:
        del iteration  # The same networks every time, so that only the images make a difference.
        rates = jnp.full(options.during_num, distilled.alpha)
        images = jnp.asarray(distilled.images)
        states = evaluator.train(images, distilled.labels, rates, key)
        found = evaluator.test(states)
        if held_out is None:
            return found
        beside = evaluator.test(states, held_images, held_labels)
        return dataclasses.replace(found, held_out=beside.values)

    return evaluate


# Measured for the scores alone.
_PARTS_OF_SCORES = (
    "same_labels",
    "distilled_hard",
    "distilled_no_augmentation",
    "random_no_augmentation",
)


@dataclasses.dataclass(frozen=True)
class _Row:
    """One figure of the result: what it is called, and what is measured."""

    kind: str
    trial: Trial
    step: int | None = None


def evaluate_run(
    config,
    dataset: Dataset,
    expert_accuracies: Sequence[float],
    workdir: pathlib.Path,
    *,
    real_networks: RealNetworks | None = None,
    teacher: Callable[[], TrainedNetwork] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything a run is judged by, each part kept as soon as it is there.

    Args:
        config: resolved.
        dataset: the real images.
        expert_accuracies: the experts' last test accuracies; empty where there are no experts.
        workdir: the run's folder; `evaluation.json` there keeps every figure.
        real_networks: the experts, for baselines' features and soft labels.
        teacher: makes or finds the teacher.
        provenance: command, versions and hardware, kept beside every figure.

    Returns:
        `result.json`'s figures: for each of `distilled`, `best_on_test`, `random` and so on, of
        the first network, the mean, standard deviation, interval and number of networks, all in
        percent; under `rows` those of every network, and under `scores` DD-Ranking's.
    """
    options = config.evaluate
    bench = Bench(
        config,
        dataset,
        workdir,
        get_teacher=teacher or (lambda: get_teacher(config, dataset, workdir)),
        real_networks=real_networks,
    )
    ledger = Ledger(workdir / "evaluation.json", {"seed": config.seed, **(provenance or {})})
    names = network_list(options.networks) or (MATCHED,)
    sets = _sets(config, dataset, workdir)
    _check_full(config, expert_accuracies)
    rows = [row for name in names for row in _rows(bench, name, sets)]
    full = _FullData(config, dataset, bench, ledger, expert_accuracies)
    pending = {
        storage.digest_of_record(identity): bench.epochs(row.trial)
        for row in rows
        if ledger.find(identity := bench.identity(row.trial)) is None
    }
    found = []
    with Progress("evaluate", sum(pending.values()), "epoch") as bar:

        def on_epochs(count: int, loss: float) -> None:
            bar.update(count, loss=loss)
            preemption.stop_if_asked()

        for row in rows:
            found.append(_measure(bench, ledger, row, on_epochs))
    for name in names:
        figures = full.figures(name)
        if figures is not None:
            where = {"network": bench.label(name), "protocol": "plain", "kind": "full"}
            found.append({**where, **figures})
    return _result(config, bench, names, found)


def measure_baseline(
    config,
    dataset: Dataset,
    workdir: pathlib.Path,
    name: str,
    *,
    real_networks: RealNetworks | None = None,
    teacher: Callable[[], TrainedNetwork] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The figures of one of `BASELINES` by itself, with `distill.ipc` images per class.

    Arguments, what is kept and the figures as in `evaluate_run`; the network is the first that it
    evaluates.
    """
    bench = Bench(
        config,
        dataset,
        workdir,
        get_teacher=teacher or (lambda: get_teacher(config, dataset, workdir)),
        real_networks=real_networks,
    )
    ledger = Ledger(workdir / "evaluation.json", {"seed": config.seed, **(provenance or {})})
    network = (network_list(config.evaluate.networks) or (MATCHED,))[0]
    subject = bench.baseline(name, config.distill.ipc)
    row = _Row(name, Trial(subject, network, config.evaluate.protocol))
    with Progress(name, bench.epochs(row.trial), "epoch") as bar:

        def on_epochs(count: int, loss: float) -> None:
            bar.update(count, loss=loss)
            preemption.stop_if_asked()

        measured = _measure(bench, ledger, row, on_epochs)
    return {k: measured[k] for k in ("network", "protocol")} | _named(name, measured)


_Sets = dict[str, tuple[Subject, int | None]]


def _sets(config, dataset: Dataset, workdir: pathlib.Path) -> _Sets:
    """The sets that are evaluated, with the step that each is of."""
    if config.evaluate.distilled:
        return {"distilled": (labelled_images.read(config.evaluate.distilled, dataset.info), None)}
    folder = workdir / "distilled"
    sets: _Sets = {}
    for kind in ("last", "average", "best_on_test", "best_on_held_out"):
        path = folder / f"{kind}.safetensors"

        def read(path=path, needed=kind == "last") -> distilled_set.DistilledSet | None:
            return distilled_set.load(path) if needed or path.exists() else None

        found = distilled_set.shared(kind, read)
        if found is not None:
            name = "distilled" if kind == "last" else kind
            sets[name] = (labelled_images.of_distilled(found), found.step)
    return sets


def _rows(bench: Bench, name: str, sets: _Sets) -> Iterator[_Row]:
    """The rows of one network, in the order of the result."""
    options = bench.config.evaluate
    last, _ = sets["distilled"]
    for kind, (subject, step) in sets.items():
        yield _Row(kind, Trial(subject, name, options.protocol, keep_labels=True), step)
    ipc = images_per_class(last)
    for kind in baseline_names(options.baselines):
        yield _Row(kind, Trial(bench.baseline(kind, ipc), name, options.protocol))
    if not options.scores:
        return
    rival = _rival(bench, last, ipc)
    yield _Row("same_labels", Trial(rival, name, options.protocol))
    yield _Row("distilled_hard", Trial(last.with_hard_labels(), name))
    for kind, subject in (("distilled_no_augmentation", last), ("random_no_augmentation", rival)):
        yield _Row(kind, Trial(subject, name, options.protocol, augmented=False))


def _rival(bench: Bench, subject: Subject, ipc: int) -> Subject:
    """Random real images that get the same kind of labels as the set."""
    soft = bench.config.evaluate.protocol == "plain" and subject.has_soft_labels
    return bench.baseline("real_soft" if soft else "random", ipc)


def _measure(bench: Bench, ledger: Ledger, row: _Row, on_epochs: OnEpochs) -> dict[str, Any]:
    trial = row.trial
    figures = ledger.need(bench.identity(trial), lambda: bench.run(trial, on_epochs))
    where: dict[str, Any] = {
        "network": bench.label(trial.network),
        "protocol": trial.protocol,
        "kind": row.kind,
    }
    if trial.subject.note:
        where["note"] = trial.subject.note
    if row.step is not None:
        where["step"] = row.step
    return {**where, **figures}


class _FullData:
    """The networks trained on all real data: the experts, or new ones."""

    def __init__(
        self, config, dataset: Dataset, bench: Bench, ledger: Ledger, expert_accuracies
    ):
        self._config, self._dataset, self._bench = config, dataset, bench
        self._ledger = ledger
        self._expert_accuracies = tuple(expert_accuracies)

    def figures(self, name: str) -> dict[str, Any] | None:
        """Those of a network; None where nothing was trained on all data and nothing is to be."""
        epochs = self._config.evaluate.full_epochs
        if not epochs:
            if name != MATCHED or not self._expert_accuracies:
                return None
            count = len(self._dataset.test.labels)
            known = Accuracies(self._expert_accuracies, count).figures()
            how = "the experts after their last epoch"
            return self._ledger.need({"full": known}, lambda: {**known, "how": how})
        network = self._bench.network(name)
        identity = {
            "full": epochs,
            "network": name,
            "params": network.num_params,
            "num": self._config.evaluate.num,
            "experts": self._config.experts.to_dict(),
            "augment": self._config.augment.to_dict(),
            "seed": self._config.seed,
            "dataset": self._dataset.info.fingerprint,
            "model": self._config.model.to_dict() if name == MATCHED else {},
            "precision": self._config.precision,
        }
        return self._ledger.need(
            identity,
            lambda: {
                **full_data(self._config, self._dataset, network).figures(),
                "how": f"{epochs} epochs by the experts' recipe",
            },
        )


def full_data(config, dataset: Dataset, network: Network) -> Accuracies:
    """Accuracies of networks trained on all real data by the experts' recipe.

    For `evaluate.full_epochs` epochs.
    """
    options = config.evaluate
    choice, workers = config.data.on_device, config.data.workers
    images, prepare = place(dataset.train.images, dataset.info.normalisation, choice)
    test_images, _ = place(dataset.test.images, dataset.info.normalisation, choice)
    recipe = expert_recipe(config, network, prepare)
    train = make_epoch(recipe, images, dataset.train.labels, workers=workers)
    accuracy = make_accuracy(network, prepare, workers=workers)
    keys = jax.random.split(randomness.stream(config.seed, "full data"), options.num)

    @jax.jit
    def start(keys):
        first = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        return jax.vmap(lambda key: initial_state(recipe, key))(first)

    @jax.jit
    def epoch_keys(keys, index):
        return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 1), index))(keys)

    states = start(keys)
    with Progress("full data", options.full_epochs, "epoch") as bar:
        for index in range(options.full_epochs):
            states, loss = train(states, epoch_keys(keys, index), config.experts.lr)
            bar.update(loss=float(jnp.mean(loss)))
            preemption.stop_if_asked()
    right = accuracy(states, test_images, dataset.test.labels) * 100
    return Accuracies(tuple(float(x) for x in right), len(dataset.test.labels))


def _check_full(config, expert_accuracies: Sequence[float]) -> None:
    options = config.evaluate
    if options.scores and not options.full_epochs and not len(expert_accuracies):
        raise UserError(
            "evaluate.scores=True needs networks trained on all real data, and there are no "
            "experts here: set evaluate.full_epochs"
        )


def _result(config, bench: Bench, names: Sequence[str], rows: list[dict[str, Any]]) -> dict:
    """`result.json`'s figures of all rows."""
    options = config.evaluate
    first = bench.label(names[0])
    by_kind = {
        row["kind"]: row
        for row in rows
        if row["network"] == first and row["kind"] not in _PARTS_OF_SCORES
    }
    result: dict[str, Any] = {
        "select": config.distill.select,
        "seed": config.seed,
        "network": first,
        "protocol": options.protocol,
        "num_eval": options.num,
        "num_test_images": len(bench.dataset.test.labels),
    }
    if not options.distilled:
        by_kind.setdefault("best_on_test", by_kind["distilled"])
    for kind, row in by_kind.items():
        result |= _named(kind, row)
    if options.protocol != "plain":
        result["teacher"] = bench.teacher.record()
    result["scores"] = [
        {"network": name, **score}
        for name in dict.fromkeys(row["network"] for row in rows)
        if (score := _scores([row for row in rows if row["network"] == name]))
    ]
    result["rows"] = rows
    if "random" in by_kind and by_kind["random"]["mean"] >= by_kind[selected(result)]["mean"]:
        logging.warning("the distilled set is no better than random real images")
    return result


def _named(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's figures as `result.json` calls them."""
    hidden = ("num_images", "network", "protocol", "kind", "provenance", "seconds")
    return {f"{kind}_{k}": v for k, v in row.items() if k not in hidden}


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """DD-Ranking's scores of one network's rows; {} where they weren't measured."""
    found = {row["kind"]: dd_ranking.Measured(row["mean"], row["std"]) for row in rows}
    figures: dict[str, Any] = {}
    if {"full", "distilled_hard", "same_labels"} <= set(found):
        robust = dd_ranking.label_robust(
            found["full"], found["distilled_hard"], found["distilled"], found["same_labels"]
        )
        figures |= {"lrs": robust.value, "lrs_std": robust.std}
        figures |= {"ior": robust.first.mean, "ior_std": robust.first.std}
        figures |= {"hlr": robust.second.mean, "hlr_std": robust.second.std}
    if {"distilled_no_augmentation", "random_no_augmentation"} <= set(found):
        robust = dd_ranking.augmentation_robust(
            found["distilled"],
            found["same_labels"],
            found["distilled_no_augmentation"],
            found["random_no_augmentation"],
        )
        figures |= {"ars": robust.value, "ars_std": robust.std}
        figures |= {"gain": robust.first.mean, "gain_no_augmentation": robust.second.mean}
    return figures
