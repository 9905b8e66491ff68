"""The set that distillation starts from: real images or noise, and labels as experts see them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.config.resolve import flatten
from edf_jax.data import Dataset
from edf_jax.data.coresets import choose_near_centres, choose_predicted_correctly, choose_random
from edf_jax.distilled_set import DistilledSet
from edf_jax.experts.train import expert_after
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.methods import family
from edf_jax.methods.soft_labels import average_labels, hard_labels, smoothed_labels
from edf_jax.models import Network
from edf_jax.runtime import randomness
from edf_jax.training.loop import predict
from edf_jax.training.streaming import make_classify, place


def initialise(
    config, dataset: Dataset, network: Network, store: TrajectoryStore
) -> DistilledSet:
    """The set that distillation starts from (`distill.init`), with its labels.

    An image's label is what experts say of the real image that it was decoded for, at full size.
    """
    stored, how = family.parametrisation(config.distill), config.distill.init
    # Real images per class.
    ipc = config.distill.ipc * stored.real
    info, labels = dataset.info, dataset.train.labels
    last = config.experts.epochs
    rng = randomness.host_stream(config.seed, "initial images")
    _, prepare_inputs = place(dataset.train.images[:1], info.normalisation)

    @jax.jit
    def logits_of(theta, batch_stats, images):
        return predict(network, theta, batch_stats, images, prepare_inputs)

    def expert_logits(expert: int, images) -> np.ndarray:
        return np.asarray(logits_of(*expert_after(network, store, expert, last), images))

    num_experts = config.experts.num
    if how == "noise":
        count = config.distill.ipc * info.num_classes
        noise = rng.standard_normal((count, *info.image_shape)).astype(np.float32)
        classes = np.repeat(np.arange(info.num_classes), ipc)
        return _start(config, info, noise, smoothed_labels(classes, info.num_classes), classes)
    everything, _ = place(dataset.train.images, info.normalisation, config.data.on_device)
    if how == "predicted_correctly":
        classify = make_classify(network, prepare_inputs, workers=config.data.workers)

        def predictions(expert: int) -> np.ndarray:
            state = expert_after(network, store, expert, last)
            theta, batch_stats = jax.tree.map(lambda x: x[None], state)
            return np.asarray(classify(theta, batch_stats, everything)[0])

        chosen = choose_predicted_correctly(rng, labels, predictions, num_experts, ipc)
    elif how == "centres":
        theta, stats = expert_after(network, store, 0, last)

        def inputs(positions: slice) -> jax.Array:
            return prepare_inputs(jnp.asarray(everything[positions]))

        features = [
            np.asarray(network.features(theta, inputs(slice(i, i + 256)), stats))
            for i in range(0, len(labels), 256)
        ]
        flat = np.concatenate(features).reshape(len(labels), -1)
        chosen = choose_near_centres(rng, flat, labels, ipc)
    else:
        chosen = choose_random(rng, labels, ipc)
    real = jnp.asarray(everything[chosen])
    experts = range(num_experts) if how == "predicted_correctly" else range(1)
    logits = jnp.stack([expert_logits(expert, real) for expert in experts])
    averaged = average_labels(logits, jnp.asarray(labels[chosen]))
    parameters = np.asarray(stored.encode(prepare_inputs(real)), np.float32)
    return _start(config, info, parameters, np.asarray(averaged), labels[chosen])


def _start(config, info, parameters, logits, classes) -> DistilledSet:
    """The set of stored images; labels and classes are those of the real images in them."""
    stored = family.parametrisation(config.distill)
    if config.distill.labels == "hard":
        logits = hard_labels(classes, info.num_classes)
    logits = np.repeat(logits, stored.images // stored.real, axis=0)
    return DistilledSet(
        parameters,
        np.asarray(logits, np.float32),
        config.distill.lr_teacher,
        info.class_names,
        info.normalisation,
        config=flatten(config),
        origin=info.identity,
        parametrisation=stored,
    )
