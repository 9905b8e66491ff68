"""What came of a run, and one table over several: what they differ in, and what came of each."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edf_jax.config.resolve import flatten
from edf_jax.data.coresets import BASELINES
from edf_jax.distilled_set import BYTES, StoredBytes
from edf_jax.runs.files import open_run, selected
from edf_jax.runs.statistics import interval95, interval_text, mean_text
from edf_jax.runtime import tables
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
_TITLES = {
    "random": "Random real images",
    "herding": "Herded real images",
    "k_centre": "k-centre real images",
    "el2n": "Hardest real images, EL2N",
    "grand": "Hardest real images, GraNd",
    "ccs": "Covering real images, CCS",
    "rded": "RDED's patches",
    "real_soft": "Random real images, soft labels",
    "downsampled": "Shrunk real images",
    "initial": "Initial images",
    "distilled": "Distilled, last",
    "average": "Distilled, moving average",
    "best_on_held_out": "Distilled, best on held-out images",
    "best_on_test": "Distilled, best on test",
    "paper_statistic": "Distilled, largest while distilling",
    "full": "All real data",
}
_SCORES = {
    "lrs": {"ior": "IOR", "hlr": "HLR"},
    "ars": {"gain": "gain with augmentation", "gain_no_augmentation": "without"},
}
# Iterations that a statement is about, and the loss from which on nothing much was matched.
_WINDOW = 100
_UNMATCHED = 0.95


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """One line of a run's result, in percent.

    Attributes:
      kind: its prefix in result.json.
      title: what the networks were trained on.
      note: how, in a few words.
      mean, std: test accuracy over networks (ddof 0); std None where unknown.
      count: how many networks, None where unknown.
      network: the architecture, with the labels where they aren't the result's; "" where unknown.
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
        return mean_text(self.mean, self.std)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of the mean (Student's t); None for fewer than two networks."""
        if self.std is None or self.count is None:
            return None
        return interval95(self.mean, self.std, self.count)

    @property
    def interval_text(self) -> str:
        """The interval, a dash where there is none."""
        return interval_text(self.interval)


def accuracies(result: Mapping[str, Any]) -> list[Accuracy]:
    """The lines that a run's result has, worst reference first, `last` before `best`.

    Those of the first network and labels, then those of each other, whose titles name them.
    """
    lines = [
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
    rows = {(_where(row, result), row["kind"]): row for row in result.get("rows", ())}
    others = dict.fromkeys(network for network, _ in rows if network != result.get("network"))
    return lines + [
        Accuracy(
            kind,
            f"{title}, {network}",
            f"rate {row['rate']:.2g}, {row['rate_from']}" if "rate" in row else row.get("how", ""),
            row["mean"],
            row["std"],
            row["num_eval"],
            network,
        )
        for network in others
        for kind, title in _TITLES.items()
        if (row := rows.get((network, kind))) is not None
    ]


def _where(row: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """A row's network, and its labels where they aren't those that the result is named after."""
    labels = row.get("labels", result.get("labels"))
    return row["network"] + ("" if labels == result.get("labels") else f", {labels} labels")


def _note(kind: str, result: Mapping[str, Any]) -> str:
    note = _own_note(kind, result)
    last = result.get(f"{kind}_last_epoch_mean")
    return note if last is None else f"{note}; {last:.1f} after the last epoch"


def _own_note(kind: str, result: Mapping[str, Any]) -> str:
    step = result.get(f"{kind}_step")
    if kind == "random":
        many = "in as many bytes" if _decodes(result) else "as many"
        if result.get("protocol", "plain") != "plain":
            return many
        rate = result.get("random_rate")
        return f"{many}, their own labels" + (f", the best rate ({rate:g})" if rate else "")
    if kind != "random" and kind in BASELINES:
        return result.get(f"{kind}_note", "")
    if kind == "initial":
        return "what distillation started from, untouched, with their first labels"
    if kind == "distilled" and step is None and f"{kind}_note" in result:
        return result[f"{kind}_note"]
    if kind == "distilled":
        return "after the last iteration" + ("" if step is None else f" ({step})")
    if kind == "average":
        return "of the images over all iterations (FTD)"
    if kind in ("best_on_test", "best_on_held_out"):
        chosen = "test" if kind == "best_on_test" else "held-out training"
        return f"chosen on {chosen} data" + ("" if step is None else f", iteration {step}")
    if kind == "paper_statistic":
        count = result.get("paper_statistic_evaluations")
        return f"as papers count: the largest of {count} evaluations, each by new networks"
    return result.get("full_how", "what distillation aims at")


def _decodes(result: Mapping[str, Any]) -> bool:
    """Whether the set's stored images are decoded into more: it has more labels for its bytes."""
    ours, real = (StoredBytes.of_figures(result, kind) for kind in ("distilled", "random"))
    if ours is None or real is None:
        return False
    return ours.labels * real.images > real.labels * ours.images


def headline(result: Mapping[str, Any]) -> tuple[str, str] | None:
    """What the distilled images reach, and what that is beside its references.

    Counted first from the images that distillation started from. None where there is nothing to
    say.
    """
    distilled = result.get(f"{selected(result)}_mean")
    if distilled is None:
        return None
    told: list[str] = []
    for kind, name in (("initial", "their initial images"), ("random", "random real images")):
        reference = result.get(f"{kind}_mean")
        if reference is not None:
            gain = distilled - reference
            more = f"{'' if told else ' points'} {'more' if gain >= 0 else 'less'}"
            told.append(f"{abs(gain):.1f}{more} than on {name} ({reference:.1f}%)")
    if not told:
        return None
    if result.get("full_mean"):
        told.append(f"{100 * distilled / result['full_mean']:.0f}% of what all the data gives")
    *first, last = told
    return f"{distilled:.1f}%", f", {', '.join(first)} and {last}" if first else f", {last}"


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the iterations of a distillation (`stage` distill of metrics.jsonl) warn of."""
    told = []
    last = rows[-_WINDOW:]
    skipped = sum(bool(row.get("skipped")) for row in last)
    if skipped > len(last) / 2:
        told.append(
            f"{skipped} of the last {len(last)} iterations were skipped: their matching loss was "
            "above the threshold, and they changed nothing."
        )
    before, after = _median_loss(rows[:_WINDOW]), _median_loss(last)
    if min(before, after) >= _UNMATCHED:
        told.append(
            f"The matching loss stayed near 1: {before:.2f} at the start, {after:.2f} at the end. "
            "At 1 a student ends no nearer to its expert than it began, so distillation has hardly "
            "taught these images anything; see 'the matching loss stays near 1' in docs/faq.md."
        )
    return told


def _median_loss(rows: Sequence[Mapping[str, Any]]) -> float:
    losses = [row["loss"] for row in rows if math.isfinite(row.get("loss") or math.nan)]
    return statistics.median(losses) if losses else -math.inf


def score_texts(result: Mapping[str, Any]) -> dict[str, str]:
    """DD-Ranking's scores as text, each under its name and the network's."""
    texts: dict[str, str] = {}
    for row in result.get("scores", ()):
        for name, parts in _SCORES.items():
            if name in row:
                told = ", ".join(f"{title} {row[part]:.1f}" for part, title in parts.items())
                title = f"{name.upper()}, {row['network']}"
                texts[title] = f"{row[name]:.1f} ± {row[f'{name}_std']:.1f} ({told})"
    return texts


def result_table(result: Mapping[str, Any]) -> str:
    """A run's result as lines of text: accuracy, 95% interval, networks; then what else it says."""
    right = ("test accuracy, %", "95% interval", "networks")
    names = ("trained on", *right, "")
    rows = [
        dict(zip(names, (row.title, row.text, row.interval_text, row.count, row.note)))
        for row in accuracies(result)
    ]
    lines = [tables.to_text(rows, right=right)] if rows else []
    lead = headline(result)
    if lead is not None:
        lines.append(f"distilled images: {''.join(lead)}")
    return "\n".join([*lines, *protocol_lines(result)])


def protocol_lines(result: Mapping[str, Any]) -> list[str]:
    """What else a result says: its protocol and teacher, the soft labels' size, the scores."""
    lines = []
    told = []
    if result.get("protocol", "plain") != "plain":
        told.append(f"protocol {result['protocol']}")
    if {row.get("labels") for row in result.get("rows", ())} - {None, "own"}:
        told.append(f"{result['labels']} labels")
    if teacher := result.get("teacher"):
        told.append(f"teacher: {teacher['name']}, {teacher['accuracy']:.1f}% on test images")
    lines += ["; ".join(told)] if told else []
    chosen = result.get("distilled_chosen")
    lines += [f"an accuracy is {chosen}"] if chosen else []
    stored = StoredBytes.of_figures(result, selected(result))
    if stored is not None:
        lines.append(f"the set in {BYTES}: {stored.text} (float32)")
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
    differing = _differing(settings)
    rows = []
    for run, own in zip(runs, settings):
        result = run.result
        lines = accuracies(result)
        scores = {row["network"]: row for row in result.get("scores", ())}
        stored = StoredBytes.of_figures(result, selected(result))
        for network in dict.fromkeys(line.network for line in lines) or [""]:
            found = {line.kind: line.text for line in lines if line.network == network}
            values = {name: scores.get(network, {}).get(name) for name in _SCORES}
            rows.append(
                {
                    "run": run.workdir.name,
                    **{key: _text(own.get(key)) for key in differing},
                    "network": network,
                    **{title.lower(): found.get(kind, "") for kind, title in _TITLES.items()},
                    **{k.upper(): "" if v is None else f"{v:.1f}" for k, v in values.items()},
                    BYTES: "" if stored is None else stored.text,
                    "networks": _text(result.get("num_eval")),
                    "time": duration(result["seconds"]) if "seconds" in result else "not finished",
                }
            )
    if len({row["network"] for row in rows}) == 1:
        for row in rows:
            del row["network"]
    return rows


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    return [
        key
        for key in dict.fromkeys(key for own in settings for key in own)
        if not key.startswith(NOT_SETTINGS)
        and any(own.get(key) != settings[0].get(key) for own in settings)
    ]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
