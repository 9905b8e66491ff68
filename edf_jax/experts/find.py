"""Which experts a run uses: its own, or finished ones with the same settings.

Experts are the costly part of trajectory matching, and methods differ after them. A run therefore
looks for a store whose settings are its own before it trains one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from edf_jax.experts.settings import group_size, part_of
from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models import Network
from edf_jax.runtime import locks, preemption, processes, storage
from edf_jax.runtime.errors import UserError

_SECONDS_BETWEEN_LOOKS = 2.0
_log = logging.getLogger(__name__)


def find_store(
    experts, settings: Mapping[str, Any], wanted: Collection[int], workdir: pathlib.Path
) -> TrajectoryStore:
    """The store that a run reads its experts from, and trains in what is missing.

    `experts.dir` is a store, or a folder of stores, one for each settings' digest. Without it the
    store is in the run's folder; where that is empty and a run beside it has finished experts with
    the same settings, their files are linked there, which costs no space and outlives that run.

    Args:
        experts: `config.experts`.
        settings: all that decides the experts' numbers.
        wanted: the epochs that are to be there.
        workdir: the run's folder.
    """
    found = processes.from_first_process(
        "the experts' folder", lambda: str(_find(experts, settings, wanted, workdir).folder)
    )
    return TrajectoryStore(pathlib.Path(found))


def _find(
    experts, settings: Mapping[str, Any], wanted: Collection[int], workdir: pathlib.Path
) -> TrajectoryStore:
    if experts.dir:
        folder = pathlib.Path(experts.dir).expanduser()
        store = TrajectoryStore(folder)
        if not _holds_experts(store):
            store = TrajectoryStore(folder / storage.digest_of_record(dict(settings)))
        if not is_imported(store):
            store.check(settings)
        _log.info("experts: %s", store.folder)
        return store
    own = TrajectoryStore(workdir / "experts")
    if not experts.share or _holds_experts(own):
        return own
    for other in _beside(workdir):
        if not _has(other, settings, experts.num, wanted):
            continue
        try:
            _link(other.folder, own.folder)
        except (OSError, storage.WriteFailed) as error:
            _log.info("experts: read in %s (%s)", other.folder, storage.cause(error))
            return other
        _log.info("experts: those of %s, which have the same settings", other.folder)
        return own
    return own


def _holds_experts(store: TrajectoryStore) -> bool:
    """Whether there is a store, if only one with a damaged record."""
    try:
        store.info()
        return True
    except storage.DamagedFile:
        return bool(store.epochs(0))


def _beside(workdir: pathlib.Path) -> list[TrajectoryStore]:
    """The stores of runs in the same folder."""
    found = workdir.absolute().parent.glob("*/experts")
    return [TrajectoryStore(path) for path in sorted(found) if path.parent.name != workdir.name]


def _has(
    store: TrajectoryStore, settings: Mapping[str, Any], num: int, wanted: Collection[int]
) -> bool:
    try:
        info = store.info()
        return dict(info["settings"]) == dict(settings) and store.is_complete(num, wanted)
    except (storage.DamagedFile, KeyError, TypeError):
        return False


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A folder whose files are the other's; what one of them replaces or removes, the other keeps.

    Raises:
        OSError, WriteFailed: the file system has no links, or they can't reach there.
    """
    try:
        # In the target's place is nothing but a lock file, or there would be a store.
        with storage.appearing(target) as temporary:
            shutil.copytree(
                source, temporary, copy_function=os.link, ignore=shutil.ignore_patterns(".*")
            )
    except shutil.Error as error:
        raise OSError(0, str(error.args[0][0][2])) from error


@contextlib.contextmanager
def open_to_train(
    store: TrajectoryStore, config, settings: Mapping[str, Any]
) -> Iterator[None]:
    """The store, opened, and locked for the groups of experts that are trained here.

    Processes with other parts of the experts (`experts.part`) train beside it.

    Args:
        store: theirs.
        config: resolved.
        settings: all that decides the experts' numbers.

    Raises:
        UserError: the store's experts were trained with other settings.
    """
    with contextlib.ExitStack() as held:

        def take() -> None:
            # Parts that are at work keep out who would open the store, so who comes later doesn't.
            if not (config.experts.part and store.is_open(settings, config.experts.num)):
                with contextlib.ExitStack() as whole:
                    whole.enter_context(lock_when_free(store))
                    store.open(settings, config.experts.num, group_size(config))
                    if not config.experts.part:
                        held.push(whole.pop_all())
            if config.experts.part:
                groups = part_of(config, -(-config.experts.num // store.group_size))
                held.enter_context(lock_when_free(store, lambda: store.lock_groups(groups)))

        processes.from_first_process("the experts' store", take)
        yield


@contextlib.contextmanager
def lock_when_free(
    store: TrajectoryStore,
    lock: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
) -> Iterator[None]:
    """A store's lock, by default `store.lock`, once other processes there have done their part."""
    waiting = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context((lock or store.lock)())
                break
            except locks.Busy:
                if not waiting:
                    _log.info("experts: another process trains them in %s; waiting", store.folder)
                waiting = True
                preemption.stop_if_asked()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield


def is_imported(store: TrajectoryStore) -> bool:
    """Whether a store's experts were trained elsewhere, so that their settings aren't known."""
    try:
        return bool(store.info()["settings"].get("imported"))
    except storage.DamagedFile:
        return False


def check_imported(
    store: TrajectoryStore, network: Network, num: int, needed: Collection[int]
) -> None:
    """Refuses imported experts that don't fit.

    Args:
        store: theirs.
        network: that they are to be of.
        num: how many experts are wanted.
        needed: the epochs that are asked of them.

    Raises:
        UserError: says what doesn't fit, and the keys to change.
    """
    info = store.info()
    params = info["settings"]["num_params"]
    if params != network.num_params:
        raise UserError(
            f"the experts of {store.folder} have {params} parameters, {network.name} for this "
            f"data {network.num_params}: is it of another width, depth, resolution or number of "
            "classes (model.*, data.*)?"
        )
    if network.has_batch_stats:
        raise UserError(
            f"the experts of {store.folder} are imported, without the batch-norm statistics that "
            f"{network.name} needs"
        )
    if info["num_experts"] < num:
        raise UserError(
            f"{store.folder} holds {info['num_experts']} experts: set "
            f"experts.num={info['num_experts']} or lower"
        )
    present = store.epochs(0)
    missing = set(needed) - set(present)
    if missing:
        raise UserError(
            f"the experts of {store.folder} have {max(present, default=0)} epochs, but epoch "
            f"{min(missing)} is needed: lower experts.epochs and distill.max_start_epoch"
        )
