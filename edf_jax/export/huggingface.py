"""A distilled set as a Hugging Face `datasets` folder: Parquet, and a dataset card."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from edf_jax.config.resolve import SCHEMA
from edf_jax.distilled_set import DistilledSet
from edf_jax.export.formats import as_uint8, encode_png, probabilities
from edf_jax.runs.statistics import mean_text
from edf_jax.runtime import tables
from edf_jax.runtime.errors import UserError

_PARQUET = "data/train-00000-of-00001.parquet"
_EXACT = "distilled.safetensors"
_FRONT = f"""\
---
pretty_name: {{title}}
task_categories:
- image-classification
tags:
- dataset-distillation
size_categories:
- {{size}}
configs:
- config_name: default
  data_files:
  - split: train
    path: {_PARQUET}
---"""


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
    title = f"{record['name']}, distilled"
    method = str(config.get("method", "")).upper()
    classes = record["class_names"]
    height, width, channels = record["image_shape"]
    by = f" by {method}" if method else ""
    chosen = f" This set is {record['chosen']}." if record["chosen"] else ""
    sections = [
        _FRONT.format(title=json.dumps(title), size=_size_category(record["num_images"])),
        f"# {title}",
        f"{record['num_images']} synthetic images of {height} x {width} pixels "
        f"({'grey' if channels == 1 else f'{channels} channels'}) for {len(classes)} classes, each "
        f"with a soft label. They were distilled{by} from `{record['name']}` with edf_jax: a "
        "network that trains on them alone is meant to come as near as possible to one that "
        f"trains on the real images.{chosen}",
        _accuracy(record),
        _use(record),
        "## How it was made\n\n" + _provenance(record),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _size_category(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if count < limit:
            return name
    return "100K<n<1M"


def _accuracy(record: Mapping[str, Any]) -> str:
    accuracy, references = record["accuracy"], record["references"]
    if not accuracy:
        return ""
    config = record["config"]
    network = str(config.get("model.name", "of the distilling kind"))
    if config.get("model.width"):
        network += f", width {config['model.width']}"
    rows = {
        "as many random real images": "random",
        "the images that it grew from": "initial",
        "this set": "",
        "all real images": "full",
    }
    figures = {**references, "_mean": accuracy["mean"], "_std": accuracy["std"]}
    table = tables.to_markdown(
        [
            {
                "trained on": title,
                "accuracy": mean_text(figures[f"{kind}_mean"], figures.get(f"{kind}_std")),
            }
            for title, kind in rows.items()
            if f"{kind}_mean" in figures
        ]
    )
    return (
        f"## Accuracy\n\nTest accuracy in percent of {accuracy['num_eval']} networks ({network}) "
        f"trained from scratch, mean and standard deviation.\n\n{table}"
    )


def _use(record: Mapping[str, Any]) -> str:
    whitened = record["zca"] is not None
    inputs = (
        f"ZCA-whitened pixels (matrix {record['zca']})"
        if whitened
        else f"pixels in [0, 1], minus {record['mean']}, over {record['std']}"
    )
    code = [
        "```python",
        "from datasets import load_dataset",
        "",
        'train = load_dataset("path/to/this/folder", split="train")',
        "```",
    ]
    columns = [
        "- `image`: the image, 8 bits a channel.",
        "- `label`: its likeliest class.",
        "- `soft_label`: the probability of every class. Train on these, with soft cross-entropy.",
    ]
    paragraphs = [
        "## Use",
        "\n".join(code),
        "\n".join(columns),
        f"Network inputs are {inputs}. {_training(record)}",
        "The images were learned as real numbers. Eight bits, and the range of a pixel, change "
        f"them by {record['rounding_rms']:.3g} (root mean square, of normalised values). "
        f"`{_EXACT}` holds them as they were learned: `edf_jax.load(\"{_EXACT}\")`.",
        "The images grew from real ones, whose licence applies to them. They fit networks like the "
        "one they were distilled with; others learn less from them.",
    ]
    return "\n\n".join(paragraphs)


def _training(record: Mapping[str, Any]) -> str:
    """The training that the run's own evaluation does."""

    def value(name: str) -> Any:
        return record["config"].get(name, SCHEMA[name].default)

    epochs, strategy = value("evaluate.epochs"), str(value("augment.strategy"))
    ops = "without augmentation"
    if strategy != "none":
        ops = f"augmented by DSA ({strategy.replace('_', ', ')})"
    return (
        f"The run trained on them for {epochs + 1} epochs in batches of "
        f"{value('evaluate.batch')}, {ops}, by SGD at rate {record['alpha']:.6g} (learned with the "
        f"images), momentum {value('evaluate.momentum'):g} and weight decay "
        f"{value('evaluate.weight_decay'):g}. After {epochs // 2 + 2} epochs the rate falls to a "
        "tenth and the momentum starts anew."
    )


def _provenance(record: Mapping[str, Any]) -> str:
    lines = []
    provenance = record["provenance"]
    if "command" in provenance:
        lines += ["```bash", provenance["command"], "```", ""]
    versions = ", ".join(f"{k} {v}" for k, v in provenance.get("versions", {}).items())
    if versions:
        hardware = provenance["hardware"]
        lines += [f"Made with {versions}, on {hardware['device']} ({hardware['cpu']}).", ""]
    settings = json.dumps(record["config"], indent=1, sort_keys=True)
    lines += [f"After {record['step']} iterations, with these settings:", "", "```json", settings]
    return "\n".join([*lines, "```"])
