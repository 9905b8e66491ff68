"""What processes of one run tell each other: values, errors, whether to stop, and their end.

It goes through the store of JAX's coordination service, which only a private module gives access
to. The public way, `jax.experimental.multihost_utils`, computes on the devices, and was tried: it
waits for what they are at work on, once an iteration and more, and XLA's CPU backend doesn't order
it behind programs of another mesh: one overtakes the other, and Gloo aborts the process.
"""

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

import jax
import numpy as np
from jax._src import distributed

from edf_jax.runtime import preemption
from edf_jax.runtime.errors import Preempted, UserError

# How long an ended process waits for the others to end, and how long after a failure.
LEAVE_SECONDS, _FAILED_SECONDS = 20.0, 5.0
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

    def __init__(self) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self._client: Any = distributed.global_state.client
        self._number = 0
        self._apart = False
        self._asked, self._looked = False, -_LOOK_SECONDS

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

    def from_first_process(
        self, what: str, make: Callable[[], tuple[Any, Arrays]]
    ) -> tuple[Any, Arrays]:
        if preemption.asked_here():
            self._say("stop")
        if self.index > 0:
            head, arrays = self._receive(0)
            if head["what"] != what:
                raise RuntimeError(f"this process shares {what!r}, the first {head['what']!r}")
            if "error" in head:
                raise _from_record(head["error"])
            return head["value"], arrays
        self._look()
        try:
            with self._by_itself():
                value, arrays = make()
        except Exception as error:
            if (record := _to_record(error)) is not None:
                self._send({"what": what, "error": record}, {})
            raise
        self._send({"what": what, "value": value}, arrays)
        return value, arrays

    @contextlib.contextmanager
    def in_every_process(self) -> Iterator[None]:
        record = failed = None
        try:
            with self._by_itself():
                yield
        except Exception as error:
            failed, record = error, _to_record(error)
            if record is None:
                raise
        for process in range(self.count):
            if process == self.index:
                self._send(record, {})
                continue
            others, _ = self._receive(process)
            if failed is None and others is not None:
                failed = _from_record(others, f"process {process}: ")
        if failed is not None:
            raise failed

    def any_is_asked(self, asked_here: bool) -> bool:
        """Whether some process is asked to stop; as far as is heard where one works by itself."""
        if self.is_apart():
            if asked_here:
                self._say("stop")
            return self._look()
        return self.from_first_process("whether to stop", lambda: (self._look(), {}))[0]

    def leave(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        until = time.monotonic() + (_FAILED_SECONDS if status else LEAVE_SECONDS)
        with contextlib.suppress(RuntimeError):
            self._say("ended", status)
            while len(self._said("ended")) < self.count and time.monotonic() < until:
                time.sleep(0.05)
            if len(self._said("ended")) == self.count:
                jax.distributed.shutdown()
                return
        os._exit(status or 1)

    def _say(self, what: str, value: int = 1) -> None:
        key = f"edf_jax/{what}/{self.index}"
        self._client.key_value_set(key, str(value), allow_overwrite=True)

    def _said(self, what: str) -> dict[int, int]:
        """What processes have said, by process."""
        found = self._client.key_value_dir_get(f"edf_jax/{what}/")
        return {int(key.rpartition("/")[2]): int(value) for key, value in found}

    def _look(self) -> bool:
        """Whether some process is asked to stop; looks once a second, and ends with the others."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._asked = self._asked or bool(self._said("stop"))
            for process, status in self._said("ended").items():
                if status:
                    raise Left(process, status)
        return self._asked

    def _send(self, head: Any, arrays: Arrays) -> None:
        self._number += 1
        data = _pack(head, arrays)
        pieces = range(0, len(data), _PIECE)
        for number, at in enumerate(pieces):
            more = b"+" if number + 1 < len(pieces) else b"."
            self._client.key_value_set_bytes(
                f"{self._key(self.index)}/{number}", more + data[at : at + _PIECE]
            )
        self._take_away(self.index, len(data))

    def _receive(self, process: int) -> tuple[Any, Arrays]:
        self._number += 1
        pieces: list[bytes] = []
        while not pieces or pieces[-1][:1] == b"+":
            pieces.append(self._wait_for(f"{self._key(process)}/{len(pieces)}"))
        data = b"".join(piece[1:] for piece in pieces)
        self._take_away(process, len(data))
        return _unpack(data)

    def _key(self, process: int) -> str:
        # Messages are counted, for all processes send and receive them in one order.
        return f"edf_jax/message/{self._number}/{process}"

    def _take_away(self, process: int, size: int) -> None:
        """Removes a large message once all have it."""
        if size > _LARGE:
            self._client.wait_at_barrier(self._key(process), _BARRIER_MILLISECONDS)
            if self.index == process:
                self._client.key_value_delete(self._key(process))

    def _wait_for(self, key: str) -> bytes:
        while True:
            try:
                return self._client.blocking_key_value_get_bytes(key, int(_LOOK_SECONDS * 1000))
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            if preemption.asked_here():
                self._say("stop")
            self._look()


def _pack(head: Any, arrays: Arrays) -> bytes:
    content = io.BytesIO()
    text = json.dumps(head).encode()
    content.write(len(text).to_bytes(8, "little") + text)
    if arrays:
        np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def _unpack(data: bytes) -> tuple[Any, Arrays]:
    length = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:length])
    if len(data) == length:
        return head, {}
    with np.load(io.BytesIO(data[length:]), allow_pickle=False) as arrays:
        return head, {name: arrays[name] for name in arrays.files}


def _kinds() -> dict[str, type[Exception]]:
    """The errors that one process raises for all."""
    kinds: list[type[Exception]] = [UserError, Preempted]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.__name__: kind for kind in kinds}


def _to_record(error: BaseException) -> dict[str, Any] | None:
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
