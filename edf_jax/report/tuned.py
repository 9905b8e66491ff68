"""The report's parts on a run's numbers: those that it found itself, and what is wrong with it."""

from __future__ import annotations

from html import escape

from edf_jax.runs.diagnosis import diagnose
from edf_jax.runs.files import RunFiles
from edf_jax.runs.tuned import flags, tried


def found_numbers(run: RunFiles) -> str:
    """The numbers that the run found, why, what it tried, and the flags that pin them."""
    chosen, told = run.tuned.get("chosen", {}), run.tuned.get("told", {})
    if not chosen:
        return ""
    pinned = " ".join(flags(chosen, run.config.get("distill", {}).get("alpha_step", "log")))
    rows = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td class=number>{value:g}</td>"
        f"<td>{escape(told.get(key, {}).get('why', ''))}"
        f'<span class="note">{escape(tried(told.get(key, {})))}</span></td></tr>'
        for key, value in chosen.items()
    )
    return (
        "<section><h2>Numbers found from the data</h2>"
        "<p>By training images that nothing else is trained on, and never by test images.</p>"
        "<table class=results><thead><tr><th>Key</th><th class=number>Value</th><th>Why</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
        f"<p class=small>To take the same again: <code>{escape(pinned)}</code></p>"
        "</section>"
    )


def findings(run: RunFiles) -> str:
    """What is wrong with the run, in the order in which it is to be mended."""
    found = diagnose(run)
    if not found:
        return ""
    items = "".join(
        f"<li>{escape(finding.what)}: <code>{escape(' '.join(finding.flags))}</code></li>"
        for finding in found
    )
    return f"<section><h2>What to mend</h2><ol>{items}</ol></section>"
