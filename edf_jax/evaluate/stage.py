"""The evaluation of a run: the distilled set, random real images, the network on all data."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax import randomness, storage, synthetic, training
from edf_jax.config import baseline_rates, flatten
from edf_jax.data import Dataset
from edf_jax.evaluate.plain import Accuracies, Evaluator
from edf_jax.experts import expert_recipe, network_for, on_device
from edf_jax.progress import Progress
from edf_jax.synthetic import DistilledSet

_MOST_HELD_OUT = 2000


def make_evaluator(config, dataset: Dataset, *, epochs: int, name: str | None = None) -> Evaluator:
    """The plain protocol with a config's settings, on a dataset's test images.

    Args:
        config: resolved.
        dataset: the real images.
        epochs: E_eval.
        name: a network other than the distilling one.
    """
    options = config.evaluate
    images, prepare = on_device(dataset.test.images, dataset.info.normalisation)
    return Evaluator(
        network_for(config, dataset.info, name),
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
    """The evaluation during distillation: `(set, iteration) -> Accuracies`."""
    options = config.evaluate
    evaluator = make_evaluator(config, dataset, epochs=options.during_epochs or options.epochs)
    key = randomness.stream(config.seed, "periodic evaluation")

    def evaluate(distilled: DistilledSet, iteration: int) -> Accuracies:
        del iteration  # The same networks every time, so that only the images make a difference.
        return evaluator(
            distilled.images, distilled.labels, distilled.alpha, key, num=options.during_num
        )

    return evaluate


def random_baseline(
    config, dataset: Dataset, evaluator: Evaluator, on_epochs=None
) -> tuple[Accuracies, float]:
    """Random real images of the same number per class, by the same recipe, at its best rate.

    The rate is the one of `evaluate.baseline_rates` with the best accuracy on held-out training
    images, so that the baseline is as strong as it can be without looking at the test images.

    Returns:
        The test accuracies, and the rate.
    """
    options = config.evaluate
    labels = dataset.train.labels
    rng = randomness.host_stream(config.seed, "random baseline")
    chosen = synthetic.choose_random(rng, labels, config.distill.ipc)
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    held_out = np.sort(rng.permutation(rest)[:_MOST_HELD_OUT])
    images = np.asarray(dataset.info.normalisation.apply(dataset.train.images[chosen]))
    targets = synthetic.hard_labels(labels[chosen], dataset.info.num_classes)
    rates = baseline_rates(options.baseline_rates)
    key = randomness.stream(config.seed, "random baseline")
    best = rates[0]
    if len(rates) > 1 and len(held_out):
        states = evaluator.train(images, targets, jnp.asarray(rates), key, on_epochs=on_epochs)
        stored, _ = on_device(dataset.train.images[held_out], dataset.info.normalisation)
        right = evaluator.test(states, stored, jnp.asarray(labels[held_out]))
        best = rates[int(np.argmax(right.values))]
    key = randomness.stream(config.seed, "evaluation")
    result = evaluator(images, targets, best, key, num=options.num, on_epochs=on_epochs)
    return result, best


def full_data(config, dataset: Dataset, expert_accuracies: Sequence[float]) -> tuple[Accuracies, str]:
    """The network trained on all real data, and how it was trained.

    The experts' last test accuracies where `evaluate.full_epochs` is 0; else networks trained for
    so many epochs by the experts' recipe.
    """
    epochs = config.evaluate.full_epochs
    count = len(dataset.test.labels)
    if not epochs:
        return Accuracies(tuple(expert_accuracies), count), "the experts after their last epoch"
    network = network_for(config, dataset.info)
    images, prepare = on_device(dataset.train.images, dataset.info.normalisation)
    recipe = expert_recipe(config, network, prepare)
    key = randomness.stream(config.seed, "full data")
    evaluator = make_evaluator(config, dataset, epochs=1)
    states = _train_on_all(recipe, images, jnp.asarray(dataset.train.labels), config, key)
    return evaluator.test(states), f"{epochs} epochs by the experts' recipe"


def _train_on_all(recipe, images, labels, config, key) -> training.TrainState:
    epochs = config.evaluate.full_epochs

    @jax.jit
    def train(keys, images, labels):
        stretch = training.Epochs(
            jnp.arange(epochs), jnp.full(epochs, config.experts.lr), jnp.zeros(epochs, bool)
        )

        def one(key):
            state = training.initial_state(recipe, key)
            return training.train_epochs(recipe, state, images, labels, stretch, key)[0]

        return training.for_each_network(one)(keys)

    return train(jax.random.split(key, config.evaluate.num), images, labels)


def evaluate_run(
    config, dataset: Dataset, expert_accuracies: Sequence[float], workdir: pathlib.Path
) -> dict[str, Any]:
    """Everything a run is judged by, each part kept as soon as it is there.

    Returns:
        `result.json`'s figures: for `distilled`, `best_on_test`, `random` and `full` the mean,
        standard deviation and number of networks, all in percent.
    """
    options = config.evaluate
    last = synthetic.load(workdir / "distilled" / "last.safetensors")
    best = synthetic.load(workdir / "distilled" / "best_on_test.safetensors")
    parts = _Parts(workdir / "evaluation.json", _settings(config, last))
    total = (len(baseline_rates(options.baseline_rates)) > 1) + 2 + (best.step != last.step)
    evaluator = make_evaluator(config, dataset, epochs=options.epochs)
    key = randomness.stream(config.seed, "evaluation")

    with Progress("evaluate", total * (options.epochs + 1), "epoch") as bar:

        def on_epochs(count: int, loss: float) -> None:
            bar.update(count, loss=loss)

        def of(distilled: DistilledSet) -> dict[str, Any]:
            accuracies = evaluator(
                distilled.images, distilled.labels, distilled.alpha, key,
                num=options.num, on_epochs=on_epochs,
            )
            return {**_figures(accuracies), "step": distilled.step, "alpha": distilled.alpha}

        def random() -> dict[str, Any]:
            accuracies, rate = random_baseline(config, dataset, evaluator, on_epochs)
            return {**_figures(accuracies), "rate": rate}

        def full() -> dict[str, Any]:
            accuracies, how = full_data(config, dataset, expert_accuracies)
            return {**_figures(accuracies), "how": how}

        parts.need("distilled", lambda: of(last))
        if best.step == last.step:
            parts.need("best_on_test", lambda: parts.found["distilled"])
        else:
            parts.need("best_on_test", lambda: of(best))
        parts.need("random", random)
        parts.need("full", full)

    result: dict[str, Any] = {"select": config.distill.select, "num_eval": options.num}
    result["num_test_images"] = parts.found["distilled"]["num_images"]
    for name, part in parts.found.items():
        for figure, value in part.items():
            if figure != "num_images":
                result[f"{name}_{figure}"] = value
    if result["random_mean"] >= result["distilled_mean"]:
        logging.warning("the distilled set is no better than random real images")
    return result


def _figures(accuracies: Accuracies) -> dict[str, Any]:
    return {
        "mean": accuracies.mean,
        "std": accuracies.std,
        "num_eval": len(accuracies.values),
        "accuracies": list(accuracies.values),
        "num_images": accuracies.num_images,
    }


def _settings(config, last: DistilledSet) -> dict[str, Any]:
    flat = flatten(config)
    chosen = {k: v for k, v in flat.items() if k.startswith("evaluate.")}
    return {**chosen, "images": storage.digest(last.images), "seed": config.seed}


class _Parts:
    """Figures kept on disk one by one, for one choice of settings."""

    def __init__(self, path: pathlib.Path, settings: dict[str, Any]):
        self._path, self._settings = path, settings
        self.found: dict[str, Any] = {}
        try:
            record = json.loads(path.read_text())
            if record["settings"] == settings:
                self.found = record["parts"]
        except (OSError, ValueError, KeyError):
            pass

    def need(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Makes a part unless it is there."""
        if name not in self.found:
            self.found[name] = make()
            record = {"settings": self._settings, "parts": self.found}
            storage.write_text(self._path, json.dumps(record, indent=1))
