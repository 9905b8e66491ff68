"""The command: `python -m edf_jax.zoo [NAME]`.

    python -m edf_jax.zoo                                      what there is
    python -m edf_jax.zoo imagenette32-ipc10-edf               the card of one
    python -m edf_jax.zoo imagenette32-ipc10-edf --pictures=nette.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edf_jax import distilled_set
from edf_jax.runs import pictures
from edf_jax.runtime import console, storage
from edf_jax.runtime.errors import UserError
from edf_jax.zoo import catalogue
from edf_jax.zoo.add import add


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""
    parser = console.Parser(
        prog="python -m edf_jax.zoo",
        description="Distilled sets that come with the package: all of them, or the card of one.",
        allow_abbrev=False,
    )
    parser.add_argument("set", nargs="?", default="", metavar="NAME", help="one of the sets")
    parser.add_argument("--pictures", metavar="FILE.png", help="writes the set's images there")
    adding = parser.add_argument_group("to add a set to a checkout's zoo")
    adding.add_argument("--add", metavar="RUN", help="folder of a finished run")
    adding.add_argument("--name", help="DATA32-ipc10-METHOD, what to call the run's set")
    adding.add_argument("--licence", help="of the real images, in a sentence")

    def run() -> int:
        options = parser.parse_args(arguments)
        if options.add:
            if options.set or not (options.name and options.licence):
                raise UserError("--add=RUN goes with --name and --licence, and without a set")
            print(add(options.add, options.name, options.licence))
        elif options.name or options.licence:
            raise UserError("--name and --licence go with --add=RUN")
        elif options.pictures:
            _write_pictures(options.set, Path(options.pictures))
        elif options.set:
            print(catalogue.card_text(options.set))
        else:
            print(catalogue.table(catalogue.names()))
        return 0

    return console.exit_status(run, name="edf_jax.zoo")


def _write_pictures(name: str, path: Path) -> None:
    if not name or path.suffix != ".png":
        raise UserError("--pictures=FILE.png goes with the name of a set, and ends in .png")
    grid = catalogue.picture(distilled_set.load(f"zoo:{name}"))
    storage.write_bytes(path, pictures.encode(grid, "PNG"))
    print(path)


if __name__ == "__main__":
    sys.exit(main())
