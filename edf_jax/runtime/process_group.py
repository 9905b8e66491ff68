"""What processes of one run tell each other: values, errors, notes, and that they have ended."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edf_jax.runtime.errors import Preempted, UserError

# How long an ended process waits for the others to end, and how long after a failure.
LEAVE_SECONDS, _FAILED_SECONDS = 20.0, 5.0
_LOOK_MILLISECONDS = 1000
_LOOK_SECONDS = 1.0
_BARRIER_MILLISECONDS = 600_000
# A message is sent in pieces of this size; a large one is taken away once all have it.
_PIECE, _LARGE = 2**25, 2**20

Arrays = dict[str, np.ndarray]


class Left(Exception):
    """Another process of the run ended with a failure.

    Attributes:
        status: its exit status.
    """

    def __init__(self, process: int, status: int):
        super().__init__(f"process {process} ended with status {status}: see its lines")
        self.status = status


class Group:
    """The processes that run together, and the store of keys and values between them."""

    def __init__(self, index: int, count: int):
        # Public functions of JAX only share values by way of the devices, which would have to be
        # waited for.
        from jax._src import distributed

        self.index, self.count = index, count
        self._client: Any = distributed.global_state.client
        self._number = 0
        self._apart = False
        self._looked = -_LOOK_SECONDS
        self._notes: set[str] = set()

    def is_apart(self) -> bool:
        """Whether what runs is this process's own business."""
        return self._apart or threading.current_thread() is not threading.main_thread()

    @contextlib.contextmanager
    def _by_itself(self) -> Iterator[None]:
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    def shared(self, what: str, make: Callable[[], tuple[Any, Arrays]]) -> tuple[Any, Arrays]:
        self._number += 1
        key = f"edf_jax/shared/{self._number}"
        if self.index > 0:
            head, arrays = self._receive(key)
            if head["what"] != what:
                raise RuntimeError(f"this process shares {what!r}, the first {head['what']!r}")
            if "error" in head:
                raise _from_record(head["error"])
            return head["value"], arrays
        self._end_with_others()
        try:
            with self._by_itself():
                value, arrays = make()
        except Exception as error:
            if (record := _to_record(error)) is not None:
                self._send(key, {"what": what, "error": record}, {})
            raise
        self._send(key, {"what": what, "value": value}, arrays)
        return value, arrays

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        self._number += 1
        folder = f"edf_jax/together/{self._number}"
        failed: Exception | None = None
        try:
            with self._by_itself():
                yield
        except Exception as error:
            failed = error
            if (record := _to_record(error)) is None:
                raise
            self._client.key_value_set(f"{folder}/{self.index}", json.dumps(record))
        else:
            self._client.key_value_set(f"{folder}/{self.index}", "null")
        for process in range(self.count):
            record = json.loads(self._wait_for(f"{folder}/{process}"))
            if failed is None and record is not None:
                failed = _from_record(record, f"process {process}: ")
        if failed is not None:
            raise failed

    def note(self, what: str, value: int) -> None:
        self._client.key_value_set(
            f"edf_jax/notes/{what}/{self.index}", str(value), allow_overwrite=True
        )

    def noted(self, what: str) -> bool:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            found = self._client.key_value_dir_get("edf_jax/notes/")
            self._notes = {key.split("/")[2] for key, _ in found}
            self._looked = time.monotonic()
        return what in self._notes

    def leave(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        until = time.monotonic() + (_FAILED_SECONDS if status else LEAVE_SECONDS)
        with contextlib.suppress(RuntimeError):
            self.note("ended", status)
            while len(self._ended()) < self.count and time.monotonic() < until:
                time.sleep(0.05)
            if len(self._ended()) == self.count:
                import jax

                jax.distributed.shutdown()
                return
        os._exit(status or 1)

    def _ended(self) -> dict[int, int]:
        """The exit statuses of processes that have ended."""
        found = self._client.key_value_dir_get("edf_jax/notes/ended/")
        return {int(key.rpartition("/")[2]): int(status) for key, status in found}

    def _end_with_others(self) -> None:
        for process, status in self._ended().items():
            if status:
                raise Left(process, status)

    def _send(self, key: str, head: Mapping[str, Any], arrays: Arrays) -> None:
        content = io.BytesIO()
        text = json.dumps(head).encode()
        content.write(len(text).to_bytes(8, "little") + text)
        if arrays:
            np.savez(content, allow_pickle=False, **arrays)
        data = content.getbuffer()
        pieces = range(0, len(data), _PIECE)
        for number, at in enumerate(pieces):
            more = b"+" if number + 1 < len(pieces) else b"."
            self._client.key_value_set_bytes(
                f"{key}/{number}", more + bytes(data[at : at + _PIECE])
            )
        self._take_away(key, len(data))

    def _receive(self, key: str) -> tuple[Any, Arrays]:
        pieces: list[bytes] = []
        while not pieces or pieces[-1][:1] == b"+":
            pieces.append(self._wait_for(f"{key}/{len(pieces)}"))
        data = b"".join(piece[1:] for piece in pieces)
        self._take_away(key, len(data))
        length = 8 + int.from_bytes(data[:8], "little")
        head = json.loads(data[8:length])
        if len(data) == length:
            return head, {}
        with np.load(io.BytesIO(data[length:]), allow_pickle=False) as arrays:
            return head, {name: arrays[name] for name in arrays.files}

    def _take_away(self, key: str, size: int) -> None:
        """Removes a large message once all have it."""
        if size > _LARGE:
            self._client.wait_at_barrier(key, _BARRIER_MILLISECONDS)
            if self.index == 0:
                self._client.key_value_delete(key)

    def _wait_for(self, key: str) -> bytes:
        while True:
            try:
                return self._client.blocking_key_value_get_bytes(key, _LOOK_MILLISECONDS)
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            self._end_with_others()


def _kinds() -> dict[str, type[Exception]]:
    """The errors that one process raises for all."""

    kinds: list[type[Exception]] = [UserError, Preempted]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.__name__: kind for kind in kinds}


def _to_record(error: Exception) -> dict[str, Any] | None:
    """An error as JSON holds it; None for one that isn't everyone's."""
    if type(error).__name__ not in _kinds():
        return None
    plain = {k: v for k, v in vars(error).items() if isinstance(v, (str, int, float))}
    return {"kind": type(error).__name__, "message": str(error), "attributes": plain}


def _from_record(record: Mapping[str, Any], prefix: str = "") -> Exception:
    kind = _kinds().get(record["kind"], UserError)
    error = kind.__new__(kind)
    error.args = (prefix + record["message"],)
    vars(error).update(record["attributes"])
    return error
