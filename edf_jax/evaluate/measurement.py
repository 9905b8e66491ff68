"""What is measured: images with the labels of a regime, a network that learns them, a protocol.

What a set gains over real images depends on whose labels networks are trained on: the set's own,
its hard classes, or a teacher's. So a comparison says which, or shows all three.

References:
  Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation" (2505.13300).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from edf_jax.config.resolve import AUTO
from edf_jax.distilled_set import LabelledImages
from edf_jax.models.choose import MATCHED
from edf_jax.training.trained import TrainedNetwork

# What each protocol was published with (`evaluate.labels=auto`).
PUBLISHED_LABELS = {"plain": "own", "rded": "teacher", "sre2l": "teacher"}


def regimes_of(labels: Sequence[str], protocol: str) -> tuple[str, ...]:
    """Label regimes in order, each once, with what `auto` is for a protocol in its place."""
    return tuple(dict.fromkeys(PUBLISHED_LABELS[protocol] if x == AUTO else x for x in labels))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Networks to be trained on labelled images and tested.

    Attributes:
        images: what they are trained on.
        network: a name, `MATCHED` for the distilling one.
        protocol: `plain`, `rded` or `sre2l`.
        labels: `own`, `hard` or `teacher`; `auto` is what the protocol was published with.
        augmented: False trains on the images as they are.
        keep_labels: whether the table of the SRe2L protocol is kept as a file.
    """

    images: LabelledImages
    network: str = MATCHED
    protocol: str = "plain"
    labels: str = AUTO
    augmented: bool = True
    keep_labels: bool = False

    @property
    def regime(self) -> str:
        """`own`, `hard` or `teacher`."""
        (regime,) = regimes_of([self.labels], self.protocol)
        return regime

    @property
    def taught(self) -> bool:
        """Whether a teacher labels each batch that students see."""
        return self.protocol != "plain" and self.regime == "teacher"

    def labelled(self, teacher: Callable[[], TrainedNetwork]) -> Measurement:
        """The same with its regime's labels on the images.

        Only a set's own labels keep the rate that was learned with them. A set whose labels are
        hard already is its own under `hard`. In the plain protocol a teacher's labels are its
        logits for each image as it is; in the others it labels what students see, and the images
        stay as they are.

        Args:
            teacher: called where its labels are wanted.
        """
        images = self.images
        if self.regime == "hard" and images.has_soft_labels:
            images = images.with_hard_labels()
        elif self.regime == "teacher" and not self.taught:
            found = teacher()
            logits = np.asarray(jax.jit(found.logits)(found.arrays, images.images), np.float32)
            note = f"{images.note}, labels of {found.name}".removeprefix(", ")
            images = dataclasses.replace(images, labels=logits, alpha=None, note=note)
        return dataclasses.replace(self, images=images)
