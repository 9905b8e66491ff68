"""The store of expert trajectories: snapshots by expert and epoch.

One checkpoint holds one epoch of one group of experts (experts that are trained together), with
each expert's parameter vector as an array of its own, so that a pair of snapshots is read without
reading the trajectory.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from edf_jax import storage

_INFO = "store.json"


class Pair(NamedTuple):
    """Two snapshots of one expert.

    Attributes:
        expert: its number.
        start_epoch: t.
        start: `[P]`, parameters after epoch t.
        target: `[P]`, parameters after epoch t + M.
    """

    expert: int
    start_epoch: int
    start: np.ndarray
    target: np.ndarray


class TrajectoryStore:
    """Snapshots on disk, written by one process and read by any."""

    def __init__(self, folder: pathlib.Path):
        self.folder = pathlib.Path(folder)

    def _group(self, expert: int) -> tuple[int, int]:
        return divmod(expert, self.info()["group_size"])

    def path(self, group: int, epoch: int) -> pathlib.Path:
        """The checkpoint of one epoch of one group."""
        return self.folder / f"group_{group:03d}" / f"epoch_{epoch:04d}"

    def create(self, info: Mapping[str, Any]) -> None:
        """Starts a store; `info` must hold `group_size` and `num_experts`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        storage.write_text(self.folder / _INFO, json.dumps(dict(info), indent=1))

    def info(self) -> dict[str, Any]:
        """What the store was created with.

        Raises:
            storage.DamagedFile: there is no store here, or its record is unreadable.
        """
        try:
            return json.loads((self.folder / _INFO).read_text())
        except (OSError, ValueError) as error:
            raise storage.DamagedFile(f"{self.folder / _INFO} can't be read: {error}") from error

    def write(
        self,
        group: int,
        epoch: int,
        snapshots: np.ndarray,
        extra: Mapping[str, np.ndarray],
        details: Mapping[str, Any],
    ) -> None:
        """Writes one epoch of one group.

        Args:
            group: its number.
            epoch: 0 for the initialisation.
            snapshots: `[G, P]`.
            extra: what training needs to continue from here (batch statistics, momentum).
            details: figures to keep beside (accuracies).
        """
        arrays = {f"expert_{i}": snapshot for i, snapshot in enumerate(snapshots)}
        storage.save_arrays(self.path(group, epoch), {**arrays, **extra}, details)

    def read_group(self, group: int, epoch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The snapshots `[G, P]` and the `extra` arrays of one epoch of one group."""
        arrays = storage.load_arrays(self.path(group, epoch))
        count = sum(name.startswith("expert_") for name in arrays)
        snapshots = np.stack([arrays.pop(f"expert_{i}") for i in range(count)])
        return snapshots, arrays

    def details(self, group: int, epoch: int) -> dict[str, Any]:
        """The figures kept beside one epoch of one group."""
        return storage.load_details(self.path(group, epoch))

    def epochs(self, group: int) -> list[int]:
        """The epochs of a group that are on disk, in order."""
        paths = (self.folder / f"group_{group:03d}").glob("epoch_*")
        return sorted(int(path.name.removeprefix("epoch_")) for path in paths)

    def snapshot(self, expert: int, epoch: int) -> np.ndarray:
        """One expert's parameters `[P]` after an epoch."""
        group, member = self._group(expert)
        name = f"expert_{member}"
        return storage.load_arrays(self.path(group, epoch), [name])[name]

    def batch_stats(self, expert: int, epoch: int) -> dict[str, np.ndarray]:
        """One expert's batch-norm statistics after an epoch, by name; {} where it has none."""
        group, member = self._group(expert)
        _, extra = self.read_group(group, epoch)
        prefix = "batch_stats."
        return {k.removeprefix(prefix): v[member] for k, v in extra.items() if k.startswith(prefix)}

    def pair(self, expert: int, start_epoch: int, expert_epochs: int) -> Pair:
        """The snapshots after epoch `start_epoch` and `expert_epochs` later."""
        return Pair(
            expert,
            start_epoch,
            self.snapshot(expert, start_epoch),
            self.snapshot(expert, start_epoch + expert_epochs),
        )

    def pairs(
        self, choices: Iterable[tuple[int, int]], expert_epochs: int, *, ahead: int = 4
    ) -> Iterator[Pair]:
        """The pairs of `(expert, start_epoch)` choices in order, read ahead in a thread."""
        pool = concurrent.futures.ThreadPoolExecutor(1, "trajectories")
        waiting: list[concurrent.futures.Future] = []
        choices = iter(choices)
        try:
            while True:
                while len(waiting) < ahead:
                    choice = next(choices, None)
                    if choice is None:
                        break
                    waiting.append(pool.submit(self.pair, *choice, expert_epochs))
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Writer:
    """Writes snapshots in a thread, in order, so that training never waits for the disk."""

    def __init__(self, store: TrajectoryStore):
        self._store = store
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "snapshots")
        self._last: concurrent.futures.Future | None = None

    def write(self, *arguments) -> None:
        """As `TrajectoryStore.write`; raises what an earlier write raised."""
        if self._last is not None and self._last.done():
            self._last.result()
        self._last = self._pool.submit(self._store.write, *arguments)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True)
        if self._last is not None:
            self._last.result()
