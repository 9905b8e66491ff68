"""What is wrong with a run, and what mends it, in order: `python -m edf_jax.doctor RUN`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edf_jax.runs.diagnosis import diagnose
from edf_jax.runs.files import open_run
from edf_jax.runtime import console

_USAGE = """\
usage: python -m edf_jax.doctor RUN

Reads a run's folder, finished or not, and says in order what is wrong with it and what to do. A
flag that mends a run needs another --workdir, except where docs/running.md says otherwise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what is wrong with a run; returns the exit status (2 for a user's mistake)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        helped = arguments in (["--help"], ["-h"])
        print(_USAGE, file=sys.stdout if helped else sys.stderr)
        return 0 if helped else 2
    return console.exit_status(lambda: _tell(arguments[0]))


def _tell(folder: str) -> int:
    found = diagnose(open_run(folder))
    for number, finding in enumerate(found, 1):
        print(f"{number}. {finding.text}")
    if not found:
        print("Nothing is wrong with this run, as far as its files tell.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
