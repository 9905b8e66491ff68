"""Ways in which a file is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DAMAGES = ("truncate", "flip", "empty", "delete")


def damage(file: Path, how: str, rng: np.random.Generator) -> None:
    """Damages a file.

    Args:
        file: not empty.
        how: one of `DAMAGES`; `flip` changes one bit of one byte.
        rng: where.
    """
    content = file.read_bytes()
    # Another file may be linked to this one.
    file.unlink()
    if how == "delete":
        return
    at = int(rng.integers(len(content)))
    if how == "flip":
        flipped = content[at] ^ (1 << int(rng.integers(8)))
        content = content[:at] + bytes([flipped]) + content[at + 1 :]
    file.write_bytes({"truncate": content[:at], "empty": b""}.get(how, content))
