"""Real images: any source -> `Dataset(train, test, info)`."""

from __future__ import annotations

from edf_jax.data.dataset import Dataset, DatasetInfo, Split
from edf_jax.data.describe import DatasetPlan, describe_dataset
from edf_jax.data.load import load_dataset
from edf_jax.data.normalisation import Normalisation

__all__ = [
    "Dataset",
    "DatasetInfo",
    "DatasetPlan",
    "Normalisation",
    "Split",
    "describe_dataset",
    "load_dataset",
]
