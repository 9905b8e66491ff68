"""The protocols with a teacher, RDED's and SRe2L's: KL divergence at temperature 20, AdamW.

Without a teacher, on labels of the set's own or hard ones, the loss is the cross-entropy with
labels that are mixed as the images are (CutMix), and all else stays.

References:
  Sun et al., "On the Diversity and Realism of Distilled Dataset" (RDED, 2312.03526); Yin et al.,
  "Squeeze, Recover and Relabel" (SRe2L, 2306.13092); Yun et al., CutMix (1905.04899).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from edf_jax.evaluate import crops, stored_labels
from edf_jax.evaluate.from_scratch import FromScratch, RealTestData
from edf_jax.models import Network
from edf_jax.training import losses
from edf_jax.training.loop import Epochs, Recipe, adamw
from edf_jax.training.trained import TrainedNetwork

TEMPERATURE = 20.0
WEIGHT_DECAY = 0.01
RATE = 1e-3
# RDED's official rates of the architectures that it gives another.
_RATES = {"AlexNet": 1e-4, "VGG11": 5e-4, "ViT": 1e-4}
SRE2L_BATCH = 1024


def rate_of(network: Network, *, cifar100_convnets: bool = False) -> float:
    """AdamW's rate: 1e-3, but where RDED's official code gives another.

    Args:
        network: the student's; some architectures have rates of their own.
        cifar100_convnets: a ConvNet teaches a ConvNet on CIFAR-100, by RDED's protocol.
    """
    if cifar100_convnets:
        return 2e-3
    family = next((name for name in _RATES if network.name.startswith(name)), None)
    return RATE if family is None else _RATES[family]


def schedule(epochs: int, rate: jax.Array, *, halves: float) -> Epochs:
    """`rate * (1 + cos(pi * e / (halves * epochs))) / 2` in epoch e.

    Args:
        epochs: how many.
        rate: the first.
        halves: 1 ends at zero (SRe2L), 2 at half of the rate (RDED).
    """
    index = jnp.arange(epochs, dtype=jnp.int32)
    rates = rate * 0.5 * (1 + jnp.cos(jnp.pi * index / (halves * epochs)))
    return Epochs(index, rates, jnp.zeros(epochs, bool))


def rded_batch(
    ipc: int, num_classes: int, dataset: str = "", *, cifar100_convnets: bool = False
) -> int:
    """RDED's batch size: 10, 50, 100 from IPC 1, 10, 50 on, twice that from 100 classes on.

    Its official code has 100 on Tiny-ImageNet, and 25 where a ConvNet teaches a ConvNet on
    CIFAR-100.
    """
    if cifar100_convnets:
        return 25
    if dataset == "tiny_imagenet":
        return 100
    batch = 10 if ipc < 10 else 50 if ipc < 50 else 100
    return batch * (2 if num_classes >= 100 else 1)


def rded_checks(epochs: int) -> tuple[int, ...]:
    """Zero-based epochs of which RDED reports the best: the last fifth's tenths, and the last."""
    tenths = (epoch for epoch in range(9, epochs - 1, 10) if epoch > 0.8 * epochs)
    return (*tenths, epochs - 1)


def kl_loss(logits: jax.Array, targets: jax.Array, mask: jax.Array | None) -> jax.Array:
    """KL divergence from the teacher's logits at the protocols' temperature."""
    return losses.kl_divergence(logits, targets, TEMPERATURE, mask)


def rded_evaluator(
    network: Network,
    teacher: TrainedNetwork | None,
    test: RealTestData,
    *,
    epochs: int,
    batch: int,
    augmented: bool = True,
    bn_updates: int = 1,
) -> FromScratch:
    """RDED's protocol: the teacher labels every augmented batch as it comes.

    With a teacher targets are one number an image, of which nothing is read, else label logits
    `[n, C]`. An accuracy is the best of `rded_checks`.

    Args:
        network: the architecture.
        teacher: labels the batches; None trains on the images' own labels.
        test: what they are tested on, enlarged as RDED's test images are.
        epochs: how many.
        batch: training batch size.
        augmented: False leaves the images as they are (for the augmentation-robust score).
        bn_updates: 2 moves batch-norm statistics by the unmixed batch too, before the mixed one,
            as the official loop does.
    """
    augment = crops.rded if augmented else lambda key, images, mixed: images

    def make_recipe(arrays) -> Recipe:
        def teach(key, inputs, targets):
            if teacher is not None:
                return teacher.logits(arrays, inputs)
            if not augmented:
                return targets
            size = inputs.shape[1:3]
            mix = crops.rded_mix(key, len(inputs), size)
            return crops.mix_labels(targets, targets[mix.partners], mix.box, size)

        return Recipe(
            network,
            losses.soft_cross_entropy if teacher is None else kl_loss,
            adamw(network, WEIGHT_DECAY),
            functools.partial(augment, mixed=True),
            lambda images: images,
            batch,
            observe=functools.partial(augment, mixed=False) if bn_updates == 2 else None,
            teach=teach,
            mixes=augmented,
        )

    return FromScratch(
        network,
        make_recipe,
        functools.partial(schedule, epochs, halves=2.0),
        epochs,
        test._replace(prepare=lambda images: crops.enlarge(test.prepare(images))),
        context=None if teacher is None else teacher.arrays,
        checks=rded_checks(epochs),
    )


def sre2l_evaluator(
    network: Network,
    test: RealTestData,
    *,
    epochs: int,
    batch: int,
    taught: bool = True,
) -> FromScratch:
    """SRe2L's protocol (FKD): all students see the same stored batches; targets are a table.

    Arguments as in `rded_evaluator`; `epochs` is no more than the tables have, `batch` theirs, and
    `taught` says whether their labels are a teacher's.
    """
    recipe = Recipe(
        network,
        kl_loss if taught else losses.soft_cross_entropy,
        adamw(network, WEIGHT_DECAY),
        lambda key, images: images,
        lambda images: images,
        batch,
    )
    return FromScratch(
        network,
        lambda _: recipe,
        functools.partial(schedule, epochs, halves=1.0),
        epochs,
        test,
        view=stored_labels.show,
    )


def make_table(
    key: jax.Array,
    images: np.ndarray,
    teacher: TrainedNetwork | None,
    *,
    epochs: int,
    batch: int,
    augmented: bool = True,
    labels: np.ndarray | None = None,
) -> stored_labels.Table:
    """What all students of the SRe2L protocol see of a set, with a teacher's labels or its own.

    Args:
        key: for all draws.
        images: `[n, H, W, C]`, normalised.
        teacher: labels them; None keeps their own labels.
        epochs: how many.
        batch: training batch size.
        augmented: False shows every image whole and unmixed.
        labels: `[n, C]` logits, their own; needed where there is no teacher.
    """

    @jax.jit
    def make(key, images, given):
        table = stored_labels.draw(
            key,
            epochs,
            len(images),
            size,
            batch,
            augmented=augmented,
        )
        if teacher is None:
            return stored_labels.keep_own(table, given, size)
        return stored_labels.label(table, images, functools.partial(teacher.logits, given))

    size = images.shape[1:3]
    given = jnp.asarray(labels, jnp.float32) if teacher is None else teacher.arrays
    return jax.tree.map(np.asarray, make(key, jnp.asarray(images, jnp.float32), given))
