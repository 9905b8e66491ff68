"""Which ImageNet classes a subset has, and what the classes are called."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import pathlib
import warnings

from edf_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImagenetClass:
    """One of ILSVRC-2012's 1,000 classes: its index, WordNet id and a name for people."""

    index: int
    wnid: str
    name: str


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some ImageNet classes; a label is a position in `indices`.

    Attributes:
        name: as tables show it.
        positions: class indices as published, with what the publication repeats.
    """

    name: str
    positions: tuple[int, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """Class index of each label, without repetitions."""
        return tuple(dict.fromkeys(self.positions))

    @property
    def wnids(self) -> tuple[str, ...]:
        """WordNet id of each label."""
        return tuple(imagenet_classes()[i].wnid for i in self.indices)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return tuple(imagenet_classes()[i].name for i in self.indices)

    def warn_of_repetitions(self) -> None:
        """Warns where the published list names a class twice."""
        repeated = sorted(i for i in self.indices if self.positions.count(i) > 1)
        if repeated:
            named = ", ".join(f"{i} ({imagenet_classes()[i].name})" for i in repeated)
            warnings.warn(
                f"{self.name}: the published list names class {named} twice, so its "
                f"{len(self.positions)} positions are {len(self.indices)} classes; it is loaded "
                f"as {len(self.indices)} classes.",
                stacklevel=2,
            )


@functools.cache
def imagenet_classes() -> tuple[ImagenetClass, ...]:
    """All 1,000 classes in the order of their indices (that of sorted WordNet ids)."""
    rows = json.loads(package_text("imagenet_classes.json"))
    return tuple(ImagenetClass(index, wnid, name) for index, (wnid, name) in enumerate(rows))


@functools.cache
def index_by_wnid() -> dict[str, int]:
    """Class index of each WordNet id."""
    return {c.wnid: c.index for c in imagenet_classes()}


def subset_names() -> tuple[str, ...]:
    """Names that `find_subset` knows: the six ImageNet subsets, in1k_cifar10, Comp-DD's 16, and
    imagenet100."""
    return (*_published(), "imagenet100")


def chosen_subset(data_config) -> Subset | None:
    """The ImageNet classes that `data.class_list` or else `data.subset` chooses; None for all.

    Raises:
        UserError: no such subset, or a list that cannot be read.
    """
    if data_config.class_list:
        return read_class_list(data_config.class_list)
    return find_subset(data_config.subset) if data_config.subset else None


def read_class_list(name: str) -> Subset:
    """The subset that a text file lists.

    Args:
        name: path of a file with one WordNet id or class index a line (`#` starts a comment).

    Raises:
        UserError: it cannot be read, or a line names no class.
    """
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"data.class_list={name} is not a file.")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.class_list={name} cannot be read ({error}).") from None
    return Subset(path.stem, _parse_list(text, name))


def find_subset(name: str) -> Subset:
    """A subset by its name, one of `subset_names()`.

    Raises:
        UserError: no such subset.
    """
    key = name.lower().replace("-", "_")
    if key == "imagenet100":
        return Subset(key, _parse_list(package_text("imagenet100.txt"), "imagenet100.txt"))
    if key not in _published():
        raise UserError(
            f"data.subset={name!r} is unknown; one of {', '.join(subset_names())} (or name a file "
            "with a WordNet id a line: data.class_list)."
        )
    return Subset(key, _published()[key])


def comp_dd_categories() -> tuple[str, ...]:
    """The categories of Comp-DD."""
    return tuple(json.loads(package_text("subsets.json"))["comp_dd"])


def find_comp_dd(category: str, subset: str) -> Subset:
    """A Comp-DD subset, for example ('bird', 'easy'); plural categories ('birds') are accepted.

    Raises:
        UserError: no such category, or a subset that is neither 'easy' nor 'hard'.
    """
    known = comp_dd_categories()
    spellings = {c: c for c in known} | {f"{c}s": c for c in known} | {f"{c}es": c for c in known}
    found = spellings.get(category.lower())
    if found is None:
        raise UserError(f"Comp-DD has no category {category!r}; one of {', '.join(known)}.")
    if subset.lower() not in ("easy", "hard"):
        raise UserError(f"Comp-DD has no subset {subset!r} of {found}; 'easy' or 'hard'.")
    return find_subset(f"{found}_{subset.lower()}")


@functools.cache
def _published() -> dict[str, tuple[int, ...]]:
    lists = json.loads(package_text("subsets.json"))
    named = {name: tuple(indices) for name, indices in lists["imagenet_subsets"].items()}
    for category, halves in lists["comp_dd"].items():
        named |= {f"{category}_{half}": tuple(indices) for half, indices in halves.items()}
    return named


def _parse_list(text: str, source: str) -> tuple[int, ...]:
    indices = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.split("#")[0].strip()
        if not entry:
            continue
        if entry.isdecimal() and int(entry) < len(imagenet_classes()):
            indices.append(int(entry))
        elif entry in index_by_wnid():
            indices.append(index_by_wnid()[entry])
        else:
            raise UserError(
                f"data.class_list={source}, line {number}: {entry!r} is neither a WordNet id of "
                "ILSVRC-2012 nor a class index from 0 to 999."
            )
    if not indices:
        raise UserError(f"data.class_list={source} lists no class.")
    return tuple(indices)


def package_text(name: str) -> str:
    """A file of the package's own lists."""
    return importlib.resources.files(__package__).joinpath(name).read_text("utf-8")
