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
from edf_jax.config.resolve import baseline_names, label_regimes, network_list
from edf_jax.data import Dataset
from edf_jax.distilled_set import DistilledSet, LabelledImages
from edf_jax.evaluate import dd_ranking, labelled_images
from edf_jax.evaluate.measure import Evaluation, images_per_class, make_evaluator, test_data
from edf_jax.evaluate.measurement import Measurement, regimes_of
from edf_jax.experts.train import expert_recipe
from edf_jax.models import Network
from edf_jax.models.choose import MATCHED, network_for
from edf_jax.runs.files import selected
from edf_jax.runs.metrics import read_metrics
from edf_jax.runs.statistics import Accuracies
from edf_jax.runtime import preemption, processes, randomness
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress
from edf_jax.training.loop import initial_state
from edf_jax.training.streaming import make_accuracy, make_epoch, place

# The sets of a run that are evaluated: what the result calls each, and its file.
_SETS = {
    "initial": "step_0",
    "distilled": "last",
    "average": "average",
    "best_on_test": "best_on_test",
    "best_on_held_out": "best_on_held_out",
}
# Measured for the scores alone.
_PARTS_OF_SCORES = (
    "same_labels",
    "distilled_hard",
    "distilled_no_augmentation",
    "random_no_augmentation",
)
_OF_NO_REGIME = (*_PARTS_OF_SCORES, "full")


def periodic(config, dataset: Dataset) -> Callable[[DistilledSet, int], Accuracies]:
    """The evaluation during distillation: `(set, iteration) -> Accuracies`.

    All evaluations are by the same networks, so that only the images make a difference; with
    `evaluate.during_fresh` each is by new ones, as in the official codes.

    The same networks are tested on held-out images too, where there are any.
    """
    options, held_out = config.evaluate, dataset.held_out
    epochs = options.during_epochs or options.epochs
    network = network_for(config, dataset.info)
    evaluator = make_evaluator(
        config,
        network,
        test_data(config, dataset),
        epochs=epochs,
        augmented=options.augment != "none",
    )
    key = randomness.stream(config.seed, "periodic evaluation")
    if held_out is not None:
        held_images, _ = place(
            held_out.images, dataset.info.normalisation, config.data.on_device
        )
        held_labels = jnp.asarray(held_out.labels)

    def evaluate(distilled: DistilledSet, iteration: int) -> Accuracies:
        own = jax.random.fold_in(key, iteration) if options.during_fresh else key
        rates = jnp.full(options.during_num, distilled.alpha)
        images = jnp.asarray(distilled.images)
        states = evaluator.train(images, distilled.labels, rates, own)
        found = evaluator.test(states)
        if held_out is None:
            return found
        beside = evaluator.test(states, held_images, held_labels)
        return dataclasses.replace(found, held_out=beside.values)

    return evaluate


def evaluate_run(
    config,
    dataset: Dataset,
    expert_accuracies: Sequence[float],
    workdir: pathlib.Path,
    **options: Any,
) -> dict[str, Any]:
    """Everything a run is judged by, each part kept as soon as it is there.

    Args:
        config: resolved.
        dataset: the real images.
        expert_accuracies: the experts' last test accuracies; empty where there are no experts.
        workdir: the run's folder; `evaluation.json` there keeps every figure.
        options: `teacher`, `networks` and `provenance` of `Evaluation`.

    Returns:
        `result.json`'s figures: for each of `initial`, `distilled`, `best_on_test`, `random` and
        so on, of the first network and label regime, the mean, standard deviation, interval and
        number of networks, all in percent; under `rows` those of every network and regime, and
        under `scores` DD-Ranking's.
    """
    evaluation = Evaluation(config, dataset, workdir, **options)
    names = network_list(config.evaluate.networks) or (MATCHED,)
    sets = _sets(config, dataset, workdir)
    if config.evaluate.scores and not config.evaluate.full_epochs and not expert_accuracies:
        raise UserError(
            "evaluate.scores=True needs networks trained on all real data, and there are no "
            "experts here: set evaluate.full_epochs"
        )
    planned = [row for name in names for row in _planned(evaluation, name, sets)]
    figures = evaluation.measure([measurement for _, measurement in planned])
    rows = [{"kind": kind, **row} for (kind, _), row in zip(planned, figures)]
    for row in rows:
        if row["kind"] in sets and not config.evaluate.distilled:
            row["step"] = sets[row["kind"]].step
        if row["kind"] == "initial" and row["rate_from"] == "learned":
            row["rate_from"] = "as it started"
    for name in names:
        full = _full(evaluation, name, expert_accuracies)
        if full is not None:
            where = {"kind": "full", "network": evaluation.label(name), "protocol": "plain"}
            rows.append({**where, **full})
    own = {} if config.evaluate.distilled else _paper_statistic(workdir)
    return _result(evaluation, names, rows) | own


def measure_baseline(
    config, dataset: Dataset, workdir: pathlib.Path, name: str, **options: Any
) -> dict[str, Any]:
    """The figures of one of `BASELINES` by itself, with `distill.ipc` images per class.

    Arguments, what is kept and the figures as in `evaluate_run`; the network is the first that it
    evaluates, `rows` has every label regime.
    """
    evaluation = Evaluation(config, dataset, workdir, **options)
    network = (network_list(config.evaluate.networks) or (MATCHED,))[0]
    images = evaluation.baseline(name, config.distill.ipc)
    protocol = config.evaluate.protocol
    measurements = [Measurement(images, network, protocol, r) for r in _regimes(evaluation)]
    rows = [{"kind": name, **row} for row in evaluation.measure(measurements, title=name)]
    first = {k: rows[0][k] for k in ("network", "protocol", "labels")}
    return {**first, **_named(name, rows[0]), "rows": rows}


def _sets(config, dataset: Dataset, workdir: pathlib.Path) -> dict[str, Any]:
    """The sets that are evaluated, by what the result calls them."""
    if config.evaluate.distilled:
        return {"distilled": labelled_images.read(config.evaluate.distilled, dataset.info)}
    sets = {}
    for kind, name in _SETS.items():
        path = workdir / "distilled" / f"{name}.safetensors"

        def read(path=path, needed=kind == "distilled") -> DistilledSet | None:
            return distilled_set.load(path) if needed or path.exists() else None

        found = distilled_set.from_first_process(kind, read)
        if found is not None:
            sets[kind] = found
    return sets


def _regimes(evaluation: Evaluation) -> tuple[str, ...]:
    """Whose labels are trained on; results are named after the first."""
    options = evaluation.config.evaluate
    return regimes_of(label_regimes(options.labels), options.protocol)


def _planned(
    evaluation: Evaluation, name: str, sets: Mapping[str, LabelledImages]
) -> Iterator[tuple[str, Measurement]]:
    """What is measured on one network, in the order of the result."""
    options = evaluation.config.evaluate
    last, protocol = sets["distilled"], options.protocol
    ipc = images_per_class(last)
    for labels in _regimes(evaluation):
        for kind, images in sets.items():
            keep_labels = kind != "initial"
            yield kind, Measurement(images, name, protocol, labels, keep_labels=keep_labels)
        for kind in baseline_names(options.baselines):
            yield kind, Measurement(evaluation.baseline(kind, ipc), name, protocol, labels)
    if not options.scores:
        return
    labels = _regimes(evaluation)[0]
    # Random real images that get the same kind of labels as the set.
    soft = labels == "own" and last.has_soft_labels
    rival = evaluation.baseline("real_soft" if soft else "random", ipc)
    yield "same_labels", Measurement(rival, name, protocol, labels)
    yield "distilled_hard", Measurement(last.with_hard_labels(), name)
    yield "distilled_no_augmentation", Measurement(last, name, protocol, labels, augmented=False)
    yield "random_no_augmentation", Measurement(rival, name, protocol, labels, augmented=False)


def _full(
    evaluation: Evaluation, name: str, expert_accuracies: Sequence[float]
) -> dict[str, Any] | None:
    """The figures of networks trained on all real data, the experts or new ones.

    None where nothing was trained on all data and nothing is to be.
    """
    config, dataset = evaluation.config, evaluation.dataset
    epochs = config.evaluate.full_epochs
    if not epochs:
        if name != MATCHED or not expert_accuracies:
            return None
        known = Accuracies(tuple(expert_accuracies), len(dataset.test.labels)).figures()
        how = "the experts after their last epoch"
        return evaluation.measured.need({"full": known}, lambda: {**known, "how": how})
    network = evaluation.network(name)
    identity = {
        "full": epochs,
        "network": name,
        "params": network.num_params,
        "num": config.evaluate.num,
        "experts": config.experts.to_dict(),
        "augment": config.augment.to_dict(),
        "seed": config.seed,
        "dataset": dataset.info.fingerprint,
        "model": config.model.to_dict() if name == MATCHED else {},
        "precision": config.precision,
    }
    how = f"{epochs} epochs by the experts' recipe"
    return evaluation.measured.need(
        identity, lambda: {**full_data(config, dataset, network).figures(), "how": how}
    )


def full_data(config, dataset: Dataset, network: Network) -> Accuracies:
    """Accuracies of networks trained on all real data by the experts' recipe.

    For `evaluate.full_epochs` epochs.
    """
    options, workers = config.evaluate, config.data.workers
    test = test_data(config, dataset)
    images, _ = place(dataset.train.images, dataset.info.normalisation, config.data.on_device)
    recipe = expert_recipe(config, network, test.prepare)
    train = make_epoch(recipe, images, dataset.train.labels, workers=workers)
    accuracy = make_accuracy(network, test.prepare, workers=workers)
    keys = jax.random.split(randomness.stream(config.seed, "full data"), options.num)
    fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))
    states = jax.jit(jax.vmap(lambda key: initial_state(recipe, key)))(fold_in(keys, 0))
    epoch_keys = fold_in(keys, 1)
    with Progress("full data", options.full_epochs, "epoch") as bar:
        for index in range(options.full_epochs):
            states, loss = train(states, fold_in(epoch_keys, index), config.experts.lr)
            bar.update(loss=float(jnp.mean(loss)))
            preemption.stop_if_asked()
    right = accuracy(states, test.images, dataset.test.labels) * 100
    return Accuracies(tuple(float(x) for x in right), len(dataset.test.labels))


def _result(
    evaluation: Evaluation, names: Sequence[str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """`result.json`'s figures of all rows."""
    config, options = evaluation.config, evaluation.config.evaluate
    first, labels = evaluation.label(names[0]), _regimes(evaluation)[0]
    # Networks trained on all data have the data's labels, and parts of scores their own.
    named = [row for row in rows if row["kind"] in _OF_NO_REGIME or row["labels"] == labels]
    by_kind = {
        row["kind"]: row
        for row in named
        if row["network"] == first and row["kind"] not in _PARTS_OF_SCORES
    }
    result: dict[str, Any] = {
        "select": config.distill.select,
        "seed": config.seed,
        "network": first,
        "protocol": options.protocol,
        "labels": labels,
        "num_eval": options.num,
        "dataset": evaluation.dataset.info.name,
        "num_test_images": len(evaluation.dataset.test.labels),
    }
    if not options.distilled:
        by_kind.setdefault("best_on_test", by_kind["distilled"])
    for kind, row in by_kind.items():
        result |= _named(kind, row)
    if any(row.get("labels") == "teacher" for row in rows):
        result["teacher"] = evaluation.teacher.record()
    result["scores"] = [
        {"network": name, **score}
        for name in dict.fromkeys(row["network"] for row in named)
        if (score := _scores([row for row in named if row["network"] == name]))
    ]
    result["rows"] = rows
    told = {"random": "random real images", "initial": "the images that it started from"}
    for kind, name in told.items():
        if kind in by_kind and by_kind[kind]["mean"] >= by_kind[selected(result)]["mean"]:
            logging.warning("the distilled set is no better than %s", name)
    return result


def _paper_statistic(workdir: pathlib.Path) -> dict[str, Any]:
    """The largest mean accuracy of a distillation's evaluations, each by networks of its own.

    What papers publish: the largest of 21 single networks' accuracies, some two deviations of a
    network over their mean. {} where the evaluations shared their networks.
    """
    rows = processes.from_first_process(
        "evaluations", lambda: read_metrics(workdir, "evaluate")[-1:]
    )
    told = rows[0] if rows else {}
    if told.get("paper_statistic") is None:
        return {}
    return {
        "paper_statistic_mean": told["paper_statistic"],
        "paper_statistic_accuracies": [told["paper_statistic"]],
        "paper_statistic_num_eval": told["num_networks"],
        "paper_statistic_evaluations": told["paper_statistic_of"],
    }


def _named(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's figures as `result.json` calls them."""
    hidden = ("num_images", "network", "protocol", "labels", "kind", "provenance", "seconds")
    return {f"{kind}_{k}": v for k, v in row.items() if k not in hidden}


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """DD-Ranking's scores of one network's rows; {} where they weren't measured."""
    found = {row["kind"]: dd_ranking.Estimate(row["mean"], row["std"]) for row in rows}
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
