"""The command: `python -m edf_jax.report RUN...`.

    python -m edf_jax.report runs/demo              writes runs/demo/report.html
    python -m edf_jax.report runs/a runs/b          one table over runs, in Markdown
    python -m edf_jax.report runs/* --csv           the same as comma-separated values
    python -m edf_jax.report runs/a runs/b --serve  in the browser, while the runs go on

A comparison's folder (`edf_jax.compare`) shows its table, made again from its runs' logs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from edf_jax.report import comparison
from edf_jax.report.live import PORT, serve
from edf_jax.report.page import write_report
from edf_jax.report.tables import run_table
from edf_jax.runtime import console, tables
from edf_jax.runtime.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""
    parser = console.Parser(
        prog="python -m edf_jax.report",
        description="One run: writes its report.html. Several: one table over them, in Markdown.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (its --workdir)")
    parser.add_argument("--table", action="store_true", help="a table, even of one run")
    parser.add_argument("--csv", action="store_true", help="a table as comma-separated values")

    parser.add_argument(
        "--serve",
        nargs="?",
        type=int,
        const=PORT,
        metavar="PORT",
        help=f"show the runs in a browser on this machine, at this port ({PORT}), while they go on",
    )

    def run() -> int:
        options = parser.parse_args(arguments)
        if options.serve is not None:
            if options.csv or options.table:
                raise UserError("--serve shows pages: leave out --csv and --table")
            return _serve(options.runs, options.serve)
        one = len(options.runs) == 1 and not (options.csv or options.table)
        try:
            if one and not comparison.is_comparison(Path(options.runs[0])):
                print(write_report(options.runs[0]))
            else:
                print(_tables(options.runs, options.csv), end="")
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Files of strangers hold whatever they like.
            told = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{', '.join(options.runs)}: a file holds what edf_jax doesn't write ({told})"
            ) from error
        return 0

    return console.exit_status(run, name="edf_jax.report")


def _serve(folders: Sequence[str], port: int) -> int:
    """Serves runs until Ctrl-C."""
    with serve(folders, port) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _tables(folders: Sequence[str], as_csv: bool) -> str:
    """A table of each comparison, and one over all other runs."""
    written, runs = [], []
    for folder in folders:
        if not comparison.is_comparison(Path(folder)):
            runs.append(folder)
            continue
        title, rows = comparison.load(Path(folder))
        head = f"{title} ({Path(folder).name})\n\n"
        written.append(comparison.to_csv(rows) if as_csv else head + comparison.to_markdown(rows))
    if runs:
        lines = run_table(runs)
        written.append(tables.to_csv(lines) if as_csv else tables.to_markdown(lines))
    return "\n".join(written)


if __name__ == "__main__":
    sys.exit(main())
