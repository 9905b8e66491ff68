"""The store of expert trajectories: snapshots by expert and epoch.

One checkpoint holds one epoch of one group of experts (experts that are trained together), with
each expert's parameter vector as an array of its own, so that a pair of snapshots is read without
reading the trajectory. It says which experts, after which epoch, with which settings, and is read
as nothing else.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from edf_jax.runtime import locks, processes, storage
from edf_jax.runtime.errors import UserError

_INFO = "store.json"
_log = logging.getLogger(__name__)


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


class DamagedSnapshot(storage.DamagedFile):
    """An epoch of a group of experts is missing or can't be read back as it was written.

    Attributes:
        group: its number.
        epoch: its number.
    """

    def __init__(self, message: str, group: int, epoch: int):
        super().__init__(message)
        self.group, self.epoch = group, epoch


class TrajectoryStore:
    """Snapshots on disk, written by one process and read by any.

    Of processes that run together the first reads for all (`processes.from_first_process`).
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = pathlib.Path(folder)
        self._known: dict[str, Any] | None = None

    @property
    def group_size(self) -> int:
        """How many experts a group has, but perhaps the last."""
        return processes.from_first_process(
            "the groups' size", lambda: int(self._record()["group_size"])
        )

    @property
    def digest(self) -> str:
        """Of all that decides the experts' numbers."""
        return processes.from_first_process("whose experts", lambda: _whose(self._record()))

    def _record(self) -> dict[str, Any]:
        """As `info`, read once, by this process for itself."""
        if self._known is None:
            self._known = storage.read_record(self.folder / _INFO)
        return self._known

    def _group(self, expert: int) -> tuple[int, int]:
        return divmod(expert, self.group_size)

    def path(self, group: int, epoch: int) -> pathlib.Path:
        """The checkpoint of one epoch of one group."""
        return self.folder / f"group_{group:03d}" / f"epoch_{epoch:04d}"

    def create(self, info: Mapping[str, Any]) -> None:
        """Starts a store; `info` must hold `settings`, `group_size` and `num_experts`."""
        storage.write_record(self.folder / _INFO, info)
        self._known = None

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuses a store whose experts were trained otherwise; a new or damaged one passes.

        Raises:
            UserError: names the first key that differs, and both values.
        """
        try:
            trained = self.info()["settings"]
        except storage.DamagedFile:
            return
        for name, value in settings.items():
            if trained.get(name) != value:
                raise UserError(
                    f"{self.folder} holds experts trained with {name}={trained.get(name)!r}, "
                    f"not {value!r}: give another --workdir or experts.dir"
                )

    def open(self, settings: Mapping[str, Any], num_experts: int, group_size: int) -> None:
        """Starts a store, or makes an old one fit for more experts. Needs the lock.

        Each snapshot's details hold `settings` too, from which a damaged record is made again.

        Raises:
            UserError: its experts were trained with other settings.
        """
        for folder in (self.folder, *self.folder.glob("group_*")):
            storage.remove_leftovers(folder)
        try:
            info = self.info()
        except storage.DamagedFile as error:
            details = self._any_details()
            if details is not None:
                _log.warning("%s: made again from the snapshots", error)
            elif self._paths():
                _log.warning("%s, nor any snapshot: experts are trained anew", error)
            info = {"settings": dict(settings), "group_size": group_size, **(details or {})}
            self.create({**info, "num_experts": num_experts})
        self.check(settings)
        if info.get("num_experts", num_experts) < num_experts:
            self.create({**info, "num_experts": num_experts})

    def is_open(self, settings: Mapping[str, Any], num_experts: int) -> bool:
        """Whether `open` would change nothing.

        Raises:
            UserError: its experts were trained with other settings.
        """
        self.check(settings)
        try:
            return self.info()["num_experts"] >= num_experts
        except storage.DamagedFile:
            return False

    def _any_details(self) -> dict[str, Any] | None:
        for path in self._paths():
            with contextlib.suppress(storage.DamagedFile):
                details = storage.load_details(path)
                return {name: details[name] for name in ("settings", "group_size")}
        return None

    def _paths(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("group_*/epoch_*"))

    def members(self, group: int, num_experts: int) -> int:
        """How many experts a group has where there are `num_experts` in all."""
        return min(self.group_size, num_experts - group * self.group_size)

    def is_complete(self, num_experts: int, epochs: Collection[int]) -> bool:
        """Whether all wanted epochs of all experts are there, damaged or not."""
        return processes.from_first_process(
            "whether experts are there", lambda: self._is_complete(num_experts, epochs)
        )

    def _is_complete(self, num_experts: int, epochs: Collection[int]) -> bool:
        try:
            self.info()
            groups = range(-(-num_experts // self.group_size))
            return all(
                set(epochs) <= set(self.epochs(group))
                and len(self.details(group, max(epochs))["test_accuracy"])
                >= self.members(group, num_experts)
                for group in groups
            )
        except storage.DamagedFile:
            return False

    def to_train(self, group: int, members: int, wanted: Collection[int]) -> list[int]:
        """The epochs to train so that a group has the `wanted` ones. Needs the lock.

        Training continues from the last epoch before the first that is missing. The newest epochs
        are read to see whether they are intact; a damaged one is removed with a warning.

        Returns:
            Epochs in order; the one before each is either among them or there.
        """
        present = self.epochs(group)
        while present:
            try:
                snapshots, _ = self.read_group(group, present[-1])
            except storage.DamagedFile as error:
                _log.warning("%s: trained again", error)
                self.remove(group, present.pop())
                continue
            if len(snapshots) < members:  # The store is made larger, and this was the last group.
                present = []
            break
        missing = sorted(set(wanted) - set(present))
        if not missing:
            return []
        holes = [epoch for epoch in missing if present and epoch < present[-1]]
        if holes:
            _log.warning(
                "%s is missing%s: trained again",
                self.path(group, holes[0]),
                f", and {len(holes) - 1} more" if len(holes) > 1 else "",
            )
        before = max((epoch for epoch in present if epoch < missing[0]), default=-1)
        return [epoch for epoch in range(before + 1, missing[-1] + 1) if epoch not in present]

    def info(self) -> dict[str, Any]:
        """What the store was created with.

        Raises:
            storage.DamagedFile: there is no store here, or its record is unreadable.
        """
        return processes.from_first_process(
            "a store", lambda: storage.read_record(self.folder / _INFO)
        )

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from training the same experts."""
        return locks.locked(self.folder, self._busy())

    @contextlib.contextmanager
    def lock_groups(self, groups: Iterable[int]) -> Iterator[None]:
        """Keeps other processes from training these groups, and from `lock`."""
        with contextlib.ExitStack() as held:
            held.enter_context(locks.locked(self.folder, self._busy(), beside=True))
            for group in groups:
                folder = self.folder / f"group_{group:03d}"
                held.enter_context(locks.locked(folder, self._busy()))
                storage.remove_leftovers(folder)
            yield

    def _busy(self) -> str:
        return (
            f"another process trains experts in {self.folder}: wait for it or give another "
            "experts.dir"
        )

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
            details: figures to keep beside (accuracies), and `settings` and `group_size`, from
                which a lost record of the store is made again.
        """
        arrays = {f"expert_{i}": snapshot for i, snapshot in enumerate(snapshots)}
        if processes.is_first():
            place = _place(self._record(), group, epoch)
            storage.save_arrays(self.path(group, epoch), {**arrays, **extra}, details, place)

    def read_group(self, group: int, epoch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The snapshots `[G, P]` and the `extra` arrays of one epoch of one group.

        Raises:
            DamagedSnapshot: they aren't what was written; so in all that reads snapshots.
        """
        _, arrays = processes.arrays_from_first_process(
            "an epoch of experts", lambda: (None, self._load(group, epoch))
        )
        count = sum(name.startswith("expert_") for name in arrays)
        snapshots = np.stack([arrays.pop(f"expert_{i}") for i in range(count)])
        return snapshots, arrays

    def _load(
        self, group: int, epoch: int, names: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        place = _place(self._record(), group, epoch)
        with _naming(group, epoch):
            return storage.load_arrays(self.path(group, epoch), names, place)

    def details(self, group: int, epoch: int) -> dict[str, Any]:
        """The figures kept beside one epoch of one group."""

        def load() -> dict[str, Any]:
            place = _place(self._record(), group, epoch)
            with _naming(group, epoch):
                return storage.load_details(self.path(group, epoch), place)

        return processes.from_first_process("figures of experts", load)

    def remove(self, group: int, epoch: int) -> None:
        """Removes one epoch of one group, if it is there."""
        storage.remove(self.path(group, epoch))

    def epochs(self, group: int) -> list[int]:
        """The epochs of a group that are on disk, in order."""

        def found() -> list[int]:
            paths = (self.folder / f"group_{group:03d}").glob("epoch_*")
            return sorted(int(path.name[6:]) for path in paths if path.name[6:].isdigit())

        return processes.from_first_process("epochs of experts", found)

    def snapshot(self, expert: int, epoch: int) -> np.ndarray:
        """One expert's parameters `[P]` after an epoch."""
        group, member = self._group(expert)
        name = f"expert_{member}"
        _, arrays = processes.arrays_from_first_process(
            "an expert", lambda: (None, self._load(group, epoch, [name]))
        )
        return arrays[name]

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


def _whose(record: Mapping[str, Any]) -> str:
    return storage.digest_of_record(record["settings"])


def _place(record: Mapping[str, Any], group: int, epoch: int) -> dict[str, Any]:
    """What one epoch of one group is of, in a store with these `settings` and `group_size`."""
    first = group * record["group_size"]
    return {"first expert": first, "epoch": epoch, "settings": _whose(record)}


@contextlib.contextmanager
def _naming(group: int, epoch: int) -> Iterator[None]:
    try:
        yield
    except storage.DamagedFile as error:
        raise DamagedSnapshot(str(error), group, epoch) from error


class Writer:
    """Writes snapshots in a thread, in order, beside the training of the next epoch."""

    def __init__(self, store: TrajectoryStore):
        self._store = store
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "snapshots")
        self._last: concurrent.futures.Future | None = None

    def write(self, *arguments) -> None:
        """As `TrajectoryStore.write`; raises what the write before raised.

        It waits for that one, so that a slow disk doesn't fill the memory.
        """
        self.wait()
        self._last = self._pool.submit(self._store.write, *arguments)

    def wait(self) -> None:
        """Returns when all is on disk; raises what the last write raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, error_type, *_) -> None:
        self._pool.shutdown(wait=True)
        if error_type is None:
            self.wait()
