"""The command: `python -m edf_jax.export --run=RUN --to=FORM`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edf_jax.export.write import FORMATS, export_run
from edf_jax.runtime import console


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(
        prog="python -m edf_jax.export",
        description="Writes a run's distilled set for other tools.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--run",
        required=True,
        help="a run's folder (the set that its distill.select names), a .safetensors file of it, "
        "or zoo:NAME",
    )
    parser.add_argument("--to", required=True, choices=FORMATS, help="the form")
    parser.add_argument("--out", default="", help="where (default: exported/ in the run's folder)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""

    def run() -> int:
        options = _parse(arguments)
        print(export_run(options.run, options.to, options.out))
        return 0

    return console.exit_status(run, name="edf_jax.export")


if __name__ == "__main__":
    sys.exit(main())
