"""A distilled set as a Hugging Face `datasets` folder: Parquet, and a dataset card."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from edf_jax.config.resolve import SCHEMA
from edf_jax.data.catalogue import is_fastai
from edf_jax.distilled_set import DistilledSet
from edf_jax.export.formats import as_uint8, encode_png, probabilities
from edf_jax.runs.statistics import mean_text
from edf_jax.runtime import tables
from edf_jax.runtime.errors import UserError

_PARQUET = "data/train-00000-of-00001.parquet"
_EXACT = "distilled.safetensors"


def write_huggingface(
    distilled: DistilledSet, record: Mapping[str, Any], out: pathlib.Path
) -> None:
    """`data/*.parquet` with images, labels and soft labels, the exact set, and `README.md`.

    Raises:
        UserError: pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "--to=huggingface needs pyarrow: pip install 'edf_jax[export]', or use --to=images"
        ) from error
    files = [encode_png(pixels) for pixels in as_uint8(distilled.pixels)]
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {
        "image": pyarrow.array([{"bytes": file, "path": None} for file in files], image),
        "label": pyarrow.array(distilled.classes, pyarrow.int64()),
        "soft_label": pyarrow.array(
            list(probabilities(distilled.labels)), pyarrow.list_(pyarrow.float32())
        ),
    }
    # What `datasets` reads columns as. It knows "Sequence" in all versions, "List" in newer ones.
    features = {
        "image": {"_type": "Image"},
        "label": {"names": record["class_names"], "_type": "ClassLabel"},
        "soft_label": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"},
    }
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path = out / _PARQUET
    path.parent.mkdir()
    pyarrow.parquet.write_table(table, path)
    distilled.save(out / _EXACT)
    (out / "README.md").write_text(dataset_card(record), encoding="utf-8")


def dataset_card(record: Mapping[str, Any]) -> str:
    """The card: what the set is, how well networks train on it, how to use it, how it was made.

    Args:
        record: of `formats.describe`.
    """
    config = record["config"]

    def value(name: str) -> Any:
        return config.get(name, SCHEMA[name].default)

    network = str(config.get("model.name", "of the distilling kind"))
    if config.get("model.width"):
        network += f", width {config['model.width']}"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edf_jax.export", ""),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    sizes = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K"}
    return environment.get_template("card.md").render(
        record=record,
        title=f"{record['name']}, distilled",
        size=next((size for n, size in sizes.items() if record["num_images"] < n), "100K<n<1M"),
        parquet=_PARQUET,
        exact=_EXACT,
        channels=record["image_shape"][2],
        config={"method": str(config.get("method", ""))},
        accuracies=_accuracies(record).rstrip(),
        network=network,
        fastai=is_fastai(record["origin"].get("name", "")),
        classes=_named_classes(record),
        # What the run's own evaluation trains by.
        value=value,
        epochs=value("evaluate.epochs"),
        strategy=str(value("augment.strategy")),
        settings=json.dumps(config, indent=1, sort_keys=True),
    )


def _named_classes(record: Mapping[str, Any]) -> str:
    """The classes' WordNet ids, each with its name, in the order of the labels."""
    ids = record["origin"].get("classes", ())
    pairs = zip(ids, record["class_names"])
    return ", ".join(i if i == name else f"{i} ({name})" for i, name in pairs)


def _accuracies(record: Mapping[str, Any]) -> str:
    accuracy, references = record["accuracy"], record["references"]
    if not accuracy:
        return ""
    decoded = record["stored"]["num_images"] != record["num_images"]
    as_many = "random real images of as many bytes" if decoded else "as many random real images"
    rows = {
        as_many: "random",
        "the images that it grew from": "initial",
        "this set": "",
        "all real images": "full",
    }
    figures = {**references, "_mean": accuracy["mean"], "_std": accuracy["std"]}
    return tables.to_markdown(
        [
            {
                "trained on": title,
                "accuracy": mean_text(figures[f"{kind}_mean"], figures.get(f"{kind}_std")),
            }
            for title, kind in rows.items()
            if f"{kind}_mean" in figures
        ]
    )
