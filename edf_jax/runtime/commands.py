"""Every command under one name: `edf run`, `edf compare`, ..."""

from __future__ import annotations

import importlib.metadata
import runpy
import sys

COMMANDS = {
    "run": ("edf_jax.main", "experts, distillation, evaluation, report"),
    "compare": ("edf_jax.compare", "a table of methods or ablations on equal terms"),
    "doctor": ("edf_jax.doctor", "what is wrong with a run, and the flag that mends it"),
    "report": ("edf_jax.report", "a run's page; one table over many runs"),
    "export": ("edf_jax.export", "a distilled set as PNGs, npz, PyTorch, Hugging Face or TFDS"),
    "convert": ("edf_jax.convert", "official experts and distilled sets, in and out"),
    "table": ("edf_jax.evaluate.table", "a table of sets, networks and protocols"),
    "zoo": ("edf_jax.zoo", "distilled sets that come with the package"),
    "evaluate": ("edf_jax.evaluate", "a set of the official codes, by their own flags"),
    "complexity": ("edf_jax.comp_dd.complexity", "how complex a dataset's images are"),
}
_USAGE = "\n".join([
    "usage: edf COMMAND [flags]        edf COMMAND --help says more",
    "",
    *(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items()),
    f"  {'--version':<12}the version",
])  # fmt: skip


def main() -> int:
    """Runs the command that was asked for; returns 2 where there is no such command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "--version":
        print("edf_jax", importlib.metadata.version("edf_jax"))
    elif name in ("-h", "--help"):
        print(_USAGE)
    elif name in COMMANDS:
        del sys.argv[1]
        # As `python -m` runs it: signals are heard before the imports, and it exits by itself.
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    else:
        asked = f"edf: there is no command {name}\n\n" if name else ""
        print(asked + _USAGE, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
