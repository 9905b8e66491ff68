"""The page of all config keys: `python -m edf_jax.config.docs > docs/configs.md`."""

from __future__ import annotations

import itertools

from edf_jax.config.schema import AUTO, SCHEMA, Key
from edf_jax.methods.family import METHODS
from edf_jax.runtime import tables

_HEAD = """\
# Config keys

<!-- Made by `python -m edf_jax.config.docs > docs/configs.md` from edf_jax/config/schema.py. -->

Set a key on the command line, `--config.distill.lr_img=500`, or behind the variant,
`--config=configs/imagenette.py:ipc10,distill.lr_img=500`. A key that there isn't, or a value that
it can't have, ends in one line that says what would do. Keys whose default is `auto` follow
`method`, unless told otherwise.
"""

_TITLES = {
    "": "The run",
    "data": "Real images",
    "model": "The network of experts and students",
    "augment": "Augmentation",
    "experts": "Experts",
    "distill": "Distillation",
    "cam": "Class activation maps",
    "evaluate": "Evaluation",
    "teacher": "The teacher of the evaluation protocols",
    "log": "Logging",
    "parallel": "Several devices",
}

_METHODS = """\
## What each method sets

Parts stand where the config says `auto`; numbers stand unless you give the key yourself, or the
config file shows others for the method and IPC. Until then such a number is `None` in a config:
change `config.method` as you like, `edf_jax.config.resolve` decides at the end.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for group, names in itertools.groupby(SCHEMA, lambda name: name.rpartition(".")[0]):
        rows = [_row(name, SCHEMA[name]) for name in names]
        table = tables.to_markdown(rows, all_columns=True)
        parts.append(f"## {_TITLES.get(group, group)}\n\n{table}")
    parts.append(_METHODS)
    parts.append(_methods())
    return "\n".join(parts)


def _row(name: str, key: Key) -> dict[str, str]:
    return {
        "key": f"`{name}`",
        "meaning": key.meaning,
        "type": key.kind.__name__,
        "default": _value(key.default),
        "values": ", ".join(f"`{choice}`" for choice in key.choices) or key.range,
        "source": key.source,
    }


def _value(value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "`''`" if value == "" else f"`{value}`" if isinstance(value, str) else str(value)


def _methods() -> str:
    rows = []
    for key in dict.fromkeys(key for own in METHODS.values() for key in own):
        unset = "" if SCHEMA[key].default == AUTO else _value(SCHEMA[key].default)
        cells = {f"`{m}`": _value(own[key]) if key in own else unset for m, own in METHODS.items()}
        rows.append({"key": f"`{key}`", **cells})
    return tables.to_markdown(rows, all_columns=True)


if __name__ == "__main__":
    print(page(), end="")
