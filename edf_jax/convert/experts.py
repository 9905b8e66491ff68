"""Expert trajectories in the official codes' files, `replay_buffer_<n>.pt`.

Such a file is a list of experts, an expert a list of snapshots from the initialisation on, a
snapshot a list of parameter tensors in the network's order. It holds no batch-norm statistics.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edf_jax.experts.trajectories import TrajectoryStore
from edf_jax.models import Network, build_network, torch_files, torch_layout
from edf_jax.runtime import storage
from edf_jax.runtime.errors import UserError
from edf_jax.runtime.progress import Progress

# Experts whose snapshots lie in one checkpoint, at most: each is read by itself all the same.
_GROUP = 10
NETWORK_OPTIONS = ("width", "depth", "norm", "activation", "pooling")


def network_of(settings: Mapping[str, Any]) -> Network:
    """The network of a store's settings.

    Args:
        settings: `model.*`, `num_classes` and `image_shape`.

    Raises:
        UserError: one is missing, or they aren't those of a network.
    """
    flags = {"model.name": "--network", "num_classes": "--classes", "image_shape": "--size"}
    for name, flag in flags.items():
        if not settings.get(name):
            raise UserError(f"the store doesn't say of which network its experts are: give {flag}")
    return build_network(
        settings["model.name"],
        num_classes=settings["num_classes"],
        image_shape=tuple(settings["image_shape"]),
        **{name: settings.get(f"model.{name}") or None for name in NETWORK_OPTIONS},
    )


def official_files(sources: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """The files in order of their numbers, where a folder stands for all of its.

    Raises:
        UserError: there are none, or one is missing between others.
    """
    paths = [pathlib.Path(source) for source in sources]
    if len(paths) != 1 or not paths[0].is_dir():
        return paths
    numbered = {
        int(match[1]): path
        for path in paths[0].iterdir()
        if (match := re.fullmatch(r"replay_buffer_(\d+)\.pt", path.name))
    }
    if not numbered:
        raise UserError(f"{paths[0]} holds no replay_buffer_<n>.pt")
    missing = set(range(max(numbered))) - set(numbered)
    if missing:
        raise UserError(f"{paths[0]} lacks replay_buffer_{min(missing)}.pt")
    return [numbered[number] for number in sorted(numbered)]


def import_experts(
    files: Sequence[pathlib.Path], folder: str | os.PathLike, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes a store of official files; it appears whole or not at all.

    Args:
        files: in order, read one at a time.
        folder: the store, not there yet.
        settings: what `network_of` takes; kept in the store.

    Returns:
        The store's record: `settings` with `imported`, `num_params` and `experts.epochs`;
        `num_experts`; `group_size`.

    Raises:
        UserError: a file can't be read, isn't such a file or of another network, or its experts
            are of no use.
    """
    network = network_of(settings)
    experts = _experts(files, network)
    first = list(itertools.islice(experts, 1))
    epochs = len(first[0][1]) - 1
    settings = {
        "imported": True,
        "num_params": network.num_params,
        **settings,
        "experts.epochs": epochs,
        # Tells them from other imported ones.
        "source": storage.digest(_theta(first[0][0], first[0][1][-1], epochs, network)),
    }
    experts = itertools.chain(first, experts)
    done = 0
    with (
        torch_files.appearing(folder) as temporary,
        Progress("import experts", unit="snapshot") as bar,
    ):
        store = TrajectoryStore(temporary)
        store.create({"settings": settings, "num_experts": 0, "group_size": _GROUP})
        for group in itertools.count():
            members = list(itertools.islice(experts, _GROUP))
            if not members:
                break
            for where, snapshots in members:
                if len(snapshots) != epochs + 1:
                    raise UserError(
                        f"{where} has {len(snapshots)} snapshots, the first expert {epochs + 1}"
                    )
                _check_moves(where, snapshots, network)
            details = {"settings": settings, "group_size": _GROUP}
            for epoch in range(epochs + 1):
                thetas = [_theta(w, snapshots[epoch], epoch, network) for w, snapshots in members]
                store.write(group, epoch, np.stack(thetas), {}, details)
                bar.update(len(members))
            done += len(members)
        info = {"settings": settings, "num_experts": done, "group_size": _GROUP}
        store.create(info)
    return info


def export_experts(
    folder: str | os.PathLike, out: str | os.PathLike, settings: Mapping[str, Any] | None = None
) -> list[str]:
    """Writes official files of a store, one for each group of experts.

    Args:
        folder: the store.
        out: a folder that isn't there yet; it appears whole or not at all.
        settings: as in `network_of`, where the store doesn't say them.

    Returns:
        The files' names.

    Raises:
        UserError: the store lacks epochs, or is of another network.
        DamagedFile: it can't be read.
    """
    store = TrajectoryStore(pathlib.Path(folder))
    info = store.info()
    network = network_of({**info["settings"], **(settings or {})})
    if info["settings"]["num_params"] != network.num_params:
        raise UserError(
            f"the experts of {folder} have {info['settings']['num_params']} parameters, "
            f"{network.name} {network.num_params}: is it of another width, depth, resolution or "
            "number of classes?"
        )
    groups = -(-info["num_experts"] // info["group_size"])
    epochs = range(max(store.epochs(0), default=0) + 1)
    for group in range(groups):
        missing = set(epochs) - set(store.epochs(group))
        if missing:
            raise UserError(
                f"{folder} lacks epoch {min(missing)} of group {group}, and official files hold "
                "all: finish the experts, or train them with experts.keep=all"
            )
    names = [f"replay_buffer_{group}.pt" for group in range(groups)]
    with (
        torch_files.appearing(out) as temporary,
        Progress("export experts", info["num_experts"] * len(epochs), "snapshot") as bar,
    ):
        temporary.mkdir()
        for group, name in enumerate(names):
            experts: list[list[list[np.ndarray]]] = []
            for epoch in epochs:
                thetas, _ = store.read_group(group, epoch)
                experts = experts or [[] for _ in thetas]
                for snapshots, theta in zip(experts, thetas, strict=True):
                    # Copies, for a view would keep the whole vector in memory.
                    snapshots.append([np.array(t) for t in torch_layout.to_torch(network, theta)])
                bar.update(len(thetas))
            torch_files.write(temporary / name, experts)
    return names


def _experts(
    files: Sequence[pathlib.Path], network: Network
) -> Iterator[tuple[str, list[list[Any]]]]:
    """Each expert's snapshots, still as tensors, and where they are from."""
    for path in files:
        experts = torch_files.read(path)
        if not _nested(experts, 3):
            raise UserError(
                f"{path} is no file of experts: it isn't a list of experts, each a list of "
                "snapshots, each a list of parameters"
            )
        for index, snapshots in enumerate(experts):
            where = f"{path}, expert {index},"
            if len(snapshots) < 2:
                raise UserError(f"{where} has {len(snapshots)} snapshot: two are needed")
            _check_fits(path, snapshots[0], network)
            yield where, snapshots


def _nested(value: Any, depth: int) -> bool:
    if depth == 0:
        return True
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(_nested(item, depth - 1) for item in value)
    )


def _check_fits(path: pathlib.Path, tensors: Sequence[Any], network: Network) -> None:
    """Refuses experts of another network or number of classes."""
    table = list(torch_layout.torch_shapes(network).items())[: len(network.param_table)]
    if len(tensors) != len(table):
        raise UserError(
            f"{path} is of another network: {len(tensors)} parameter tensors, {network.name} has "
            f"{len(table)}"
        )
    found = [torch_files.as_array(tensor, str(path)).shape for tensor in tensors]
    wrong = [i for i, entry in enumerate(table) if found[i] != entry[1]]
    head = {len(table) - 2, len(table) - 1}
    if wrong and set(wrong) <= head and found[-1][:1] != table[-1][1][:1]:
        raise UserError(f"{path} has {found[-1][0]} classes, not {network.num_classes}")
    if wrong:
        name, shape = table[wrong[0]]
        raise UserError(
            f"{path} is of another network: {name} has shape {found[wrong[0]]}, in {network.name} "
            f"{shape}; is it of another width, depth or resolution?"
        )


def _check_moves(where: str, snapshots: Sequence[Sequence[Any]], network: Network) -> None:
    """Refuses the copies of one snapshot that the official code saves when it runs on a CPU."""
    last = len(snapshots) - 1
    first = _theta(where, snapshots[0], 0, network)
    if np.array_equal(first, _theta(where, snapshots[last], last, network)):
        raise UserError(
            f"{where} ends where it starts: the official script saves the same tensors for all "
            "epochs when it runs on a CPU; train the experts again"
        )


def _theta(where: str, tensors: Sequence[Any], epoch: int, network: Network) -> np.ndarray:
    place = f"{where} snapshot {epoch}"
    arrays = [torch_files.as_array(tensor, place) for tensor in tensors]
    try:
        return np.asarray(torch_layout.from_torch(network, arrays), np.float32)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
