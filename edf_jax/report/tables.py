"""What came of a run, and one table over several: what they differ in, and what came of each."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edf_jax.config.resolve import flatten
from edf_jax.runs.files import open_run
from edf_jax.runs.statistics import interval95
from edf_jax.runtime.progress import duration

# Where a run lives, and what does not change its result.
NOT_SETTINGS = (
    "data.cache_dir",
    "data.path",
    "data.workers",
    "experts.dir",
    "log.",
    "parallel.",
    "teacher.dir",
)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """One line of a run's result, in percent.

    Attributes:
      kind: its prefix in result.json.
      title: what the networks were trained on.
      note: how, in a few words.
      mean, std: test accuracy over networks (ddof 0); std None where unknown.
      count: how many networks, None where unknown.
      network: the architecture, "" where unknown.
    """

    kind: str
    title: str
    note: str
    mean: float
    std: float | None
    count: int | None
    network: str = ""

    @property
    def text(self) -> str:
        """Mean and deviation."""
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of the mean (Student's t); None for fewer than two networks."""
        if self.std is None or self.count is None:
            return None
        return interval95(self.mean, self.std, self.count)

    @property
    def interval_text(self) -> str:
        """The interval, a dash where there is none."""
        return "–" if self.interval is None else "{:.1f} to {:.1f}".format(*self.interval)


_TITLES = {
    "random": "Random real images",
    "herding": "Herded real images",
    "k_centre": "k-centre real images",
    "real_soft": "Random real images, soft labels",
    "distilled": "Distilled, last",
    "average": "Distilled, moving average",
    "best_on_held_out": "Distilled, best on held-out images",
    "best_on_test": "Distilled, best on test",
    "full": "All real data",
}


def accuracies(result: dict[str, Any]) -> list[Accuracy]:
    """The lines of a run's result that it has, worst reference first, `last` before `best`."""
    return [
        Accuracy(
            kind,
            title,
            _note(kind, result),
            result[f"{kind}_mean"],
            result.get(f"{kind}_std"),
            result.get(f"{kind}_num_eval", result.get("num_eval")),
            result.get("network", ""),
        )
        for kind, title in _TITLES.items()
        if result.get(f"{kind}_mean") is not None
    ]


def other_networks(result: dict[str, Any]) -> list[Accuracy]:
    """The same lines of the networks after the first, whose titles name the network."""
    rows = {(row["network"], row["kind"]): row for row in result.get("rows", ())}
    names = dict.fromkeys(network for network, _ in rows if network != result.get("network"))
    return [
        Accuracy(
            kind,
            f"{title}, {network}",
            f"rate {row['rate']:.2g}, {row['rate_from']}" if "rate" in row else row.get("how", ""),
            row["mean"],
            row["std"],
            row["num_eval"],
            network,
        )
        for network in names
        for kind, title in _TITLES.items()
        if (row := rows.get((network, kind))) is not None
    ]


def score_texts(result: dict[str, Any]) -> dict[str, str]:
    """DD-Ranking's scores as text, each under its name and the network's."""
    texts: dict[str, str] = {}
    for row in result.get("scores", ()):
        for name, parts in _SCORES.items():
            if name in row:
                told = ", ".join(f"{title} {row[part]:.1f}" for part, title in parts.items())
                title = f"{name.upper()}, {row['network']}"
                texts[title] = f"{row[name]:.1f} ± {row[f'{name}_std']:.1f} ({told})"
    return texts


_SCORES = {
    "lrs": {"ior": "IOR", "hlr": "HLR"},
    "ars": {"gain": "gain with augmentation", "gain_no_augmentation": "without"},
}


def _note(kind: str, result: dict[str, Any]) -> str:
    note = _own_note(kind, result)
    last = result.get(f"{kind}_last_epoch_mean")
    return note if last is None else f"{note}; {last:.1f} after the last epoch"


def _own_note(kind: str, result: dict[str, Any]) -> str:
    step = result.get(f"{kind}_step")
    if kind == "random":
        if result.get("protocol", "plain") != "plain":
            return "as many"
        rate = result.get("random_rate")
        return "as many, their own labels" + (f", the best rate ({rate:g})" if rate else "")
    if kind in ("herding", "k_centre", "real_soft"):
        return result.get(f"{kind}_note", "")
    if kind == "distilled" and step is None and f"{kind}_note" in result:
        return result[f"{kind}_note"]
    if kind == "distilled":
        return "after the last iteration" + ("" if step is None else f" ({step})")
    if kind == "average":
        return "of the images over all iterations (FTD)"
    if kind in ("best_on_test", "best_on_held_out"):
        chosen = "test" if kind == "best_on_test" else "held-out training"
        return f"chosen on {chosen} data" + ("" if step is None else f", iteration {step}")
    return result.get("full_how", "what distillation aims at")


def result_table(result: dict[str, Any]) -> str:
    """A run's result as lines of text: accuracy, 95% interval, networks; then the scores."""
    lines = [("trained on", "test accuracy, %", "95% interval", "networks", "")]
    for row in accuracies(result) + other_networks(result):
        lines.append((row.title, row.text, row.interval_text, _text(row.count), row.note))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    table = [
        f"{line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  "
        f"{line[3]:>{widths[3]}}  {line[4]}".rstrip()
        for line in lines
    ]
    return "\n".join([*table, *protocol_lines(result)])


def protocol_lines(result: dict[str, Any]) -> list[str]:
    """What else a result says: its protocol and teacher, the soft labels' size, the scores."""
    lines = []
    if result.get("protocol", "plain") != "plain":
        teacher = result.get("teacher", {})
        accuracy = f", {teacher['accuracy']:.1f}% on test images" if teacher else ""
        lines.append(f"protocol {result['protocol']}; teacher: {teacher.get('name')}{accuracy}")
        chosen = result.get("distilled_chosen")
        lines += [f"an accuracy is {chosen}"] if chosen else []
    if result.get("distilled_soft_label_bytes"):
        labels, images = (
            result[f"distilled_{kind}_bytes"] / 2**20 for kind in ("soft_label", "image")
        )
        file = result.get("distilled_soft_label_file", "memory")
        sizes = f"{labels:.2f} MiB beside images of {images:.2f} MiB"
        lines.append(f"stored soft labels: {sizes}, {file}")
    return lines + [f"{name}: {text}" for name, text in score_texts(result).items()]


def run_table(workdirs: Sequence[str | Path]) -> list[dict[str, str]]:
    """A row per run and network: its name, every config key that not all runs share, accuracies,
    DD-Ranking's scores, time.

    Args:
      workdirs: folders of runs, finished or not.

    Returns:
      Rows with the same columns, all values as text; "" where a run has no value.

    Raises:
      UserError: one of them is no run.
    """
    runs = [open_run(workdir) for workdir in workdirs]
    settings = [flatten(run.config) for run in runs]
    rows = []
    for run, own in zip(runs, settings):
        result = run.result
        lines = accuracies(result) + other_networks(result)
        scores = {row["network"]: row for row in result.get("scores", ())}
        for network in dict.fromkeys(line.network for line in lines) or [""]:
            row = {"run": run.workdir.name}
            row.update({key: _text(own.get(key)) for key in _differing(settings)})
            row["network"] = network
            found = {line.kind: line.text for line in lines if line.network == network}
            for kind, title in _TITLES.items():
                row[title.lower()] = found.get(kind, "")
            for score in _SCORES:
                value = scores.get(network, {}).get(score)
                row[score.upper()] = "" if value is None else f"{value:.1f}"
            row["networks"] = _text(result.get("num_eval"))
            row["time"] = duration(result["seconds"]) if "seconds" in result else "not finished"
            rows.append(row)
    if len({row["network"] for row in rows}) == 1:
        for row in rows:
            del row["network"]
    return rows


def to_markdown(rows: Sequence[dict[str, str]]) -> str:
    """The table in Markdown, columns that are empty everywhere left out."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [columns, ["---"] * len(columns)]
    lines += [[row[name].replace("|", "\\|") for name in columns] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def to_csv(rows: Sequence[dict[str, str]]) -> str:
    """The table as comma-separated values with a header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for own in settings for key in own)
    return [
        key
        for key in keys
        if not key.startswith(NOT_SETTINGS)
        and any(own.get(key) != settings[0].get(key) for own in settings)
    ]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
