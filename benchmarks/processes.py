"""Child processes asked in turn, and the memory of the process itself."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
_REPLY = "REPLY "


class Child:
    """A process that works on request.

    It is asked by a line of JSON on its standard input and replies by one on its standard output;
    it ends when the input does.
    """

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None):
        """Starts `python -m benchmarks.child` with `arguments`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = arguments[0]

    def reply(self) -> dict[str, Any]:
        """Waits for the next reply."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_REPLY):
                return json.loads(line[len(_REPLY) :])
        raise SystemExit(f"the {self._name} process ended with status {self._process.wait()}")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its reply."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self.reply()

    def close(self) -> None:
        """Lets the process end and waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def send(**reply: Any) -> None:
    """A child's reply."""
    print(_REPLY + json.dumps(reply), flush=True)


def requests() -> Iterator[dict[str, Any]]:
    """A child's requests, until there are no more."""
    for line in sys.stdin:
        yield json.loads(line)


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return _status("VmRSS") or _highest()


def peak_resident_bytes() -> int:
    """The most that it has held, since `reset_peak` where the system can."""
    return _status("VmHWM") or _highest()


def reset_peak() -> None:
    """Gives freed memory back to the system and starts the peak anew, on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _status(field: str) -> int:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _highest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def alternate(
    names: Sequence[str], rounds: int, run: Callable[[str, int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Runs each in turn, in the other order every second round.

    Args:
        names: of what is compared.
        rounds: how often.
        run: `(name, round) -> row`, with `seconds` among its entries.

    Returns:
        The rows of each.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names if index % 2 == 0 else tuple(reversed(names)):
            rows[name].append(run(name, index))
        latest = "  ".join(f"{name} {found[-1]['seconds']:.4g} s" for name, found in rows.items())
        print(f"round {index + 1}: {latest}", flush=True)
    return rows
