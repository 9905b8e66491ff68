"""What is in the zoo, and the card of each set: where it is from and what networks make of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edf_jax import distilled_set
from edf_jax.distilled_set import ZOO, DistilledSet
from edf_jax.report.tables import result_table
from edf_jax.runs import pictures
from edf_jax.runs.files import selected
from edf_jax.runs.statistics import mean_text
from edf_jax.runtime import storage, tables

# What the package may carry.
MOST_BYTES = 10_000_000


class Card(NamedTuple):
    """What is told of a set.

    Attributes:
        about: `data` (name, digest, classes, resolution), `method`, `images`, `bytes` and
            `digest` of the set, `seed`, `licence` of its images, `made` (command, flags that pin
            what the run `found` by itself, versions, hardware).
        result: as in a run's `result.json`: under `rows` the accuracies of every kind of images,
            network, protocol and label regime.
    """

    about: Mapping[str, Any]
    result: Mapping[str, Any]


def names() -> list[str]:
    """The names of the sets, in order."""
    return sorted(path.stem for path in ZOO.glob("*.safetensors"))


def read_card(name: str) -> Card:
    """The card of a set.

    Raises:
        UserError: there is no such set.
    """
    path = distilled_set.located(f"zoo:{name}")
    record = storage.read_record(path.with_suffix(".json"))
    return Card(record["about"], record["result"])


def table(listed: Sequence[str]) -> str:
    """One line a set: images, method, accuracy beside that of real images, size."""
    rows = []
    for name in listed:
        about, result = read_card(name)

        def accuracy(kind: str, result=result) -> str:
            mean = result.get(f"{kind}_mean")
            return "–" if mean is None else mean_text(mean, result.get(f"{kind}_std"))

        rows.append(
            {
                "set": name,
                "images": about["images"],
                "method": about["method"],
                "accuracy, %": accuracy(selected(result)),
                "random real": accuracy("random"),
                "all real": accuracy("full"),
                "KB": about["bytes"] // 1000,
            }
        )
    return tables.to_text(rows, right=("images", "accuracy, %", "random real", "all real", "KB"))


def card_text(name: str) -> str:
    """A card for people."""
    about, result = read_card(name)
    data, made = about["data"], about["made"]
    facts = {
        "images": f"{about['images']} of {' x '.join(map(str, data['resolution']))} pixels, "
        f"{about['bytes'] // 1000} KB",
        "classes": ", ".join(data["class_names"]),
        "made from": f"{data['name']}, {result['num_test_images']} test images, "
        f"digest {data['digest']}",
        "method": f"{about['method']}, seed {about['seed']}",
        "network": result["network"] + (f", width {width}" if (width := about["width"]) else ""),
        "made by": made["command"],
        "with": ", ".join(f"{package} {version}" for package, version in made["versions"].items()),
        "on": f"{made['hardware']['device']} ({made['hardware']['cpu']})",
        "licence": about["licence"],
    }
    longest = max(map(len, facts))
    lines = [f"{title:<{longest}}  {value}" for title, value in facts.items()]
    again = " ".join(score_command(name))
    use = [f'to load it:     edf_jax.load("zoo:{name}")', f"to score it:    {again}"]
    return "\n".join([name, "", *lines, "", result_table(result), "", *use])


def score_command(name: str) -> list[str]:
    """The words of the command that scores a set as its run did, `--workdir` left out."""
    made = read_card(name).about["made"]
    evaluate = ["--stage=evaluate", f"--config.evaluate.distilled=zoo:{name}"]
    return [*shlex.split(made["command"]), *made["found"], *evaluate]


def picture(found: DistilledSet, side: int = 64):
    """All images of a set in a grid, a row for each class; float32 `[H, W, 4]`.

    A row has the images that grew from a class: they lie together, and learned labels may drift.
    """
    columns = max(1, len(found.images) // len(found.class_names))
    return pictures.tile(found.pixels, columns, side=side)
