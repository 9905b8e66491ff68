"""Gives the command hundreds of bad configs, flags, data folders and files.

    python -m tests.badinput

Each must end with status 2 and one line on standard error, compile nothing and leave nothing
behind: 20, and those of an environment, as processes of their own, the rest through the command's
`main` in this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests import baddata, badfiles, tiny_run  # noqa: F401

CONFIG = tiny_run.ROOT / "configs" / "cluttered_digits.py"
_SMALL = ("--config.data.resolution=16", "--config.model.width=4", "--config.distill.ipc=1")


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad command.

    Attributes:
        flags: with `{}` for the folder of files.
        files: what to make there (see `badfiles`).
        prepares: whether only decoding shows what is wrong, so that the data cache may be filled.
        module: the command.
        environment: variables of its process, which is one of its own then.
    """

    flags: tuple[str, ...]
    files: str = ""
    prepares: bool = False
    module: str = "edf_jax.main"
    environment: tuple[tuple[str, str], ...] = ()

    def arguments(self, folder: Path) -> list[str]:
        """The flags, with `{}` as the folder; makes the files."""
        if self.files:
            badfiles.make(self.files, folder / "given")
        return [flag.replace("{}", str(folder / "given")) for flag in self.flags]


def _demo(
    *flags: str, files: str = "", variant: str = "demo", prepares: bool = False
) -> Case:
    return Case((f"--config={CONFIG}:{variant}", *_SMALL, *flags), files, prepares)


def _keys(**values: object) -> Case:
    return _demo(*(f"--config.{k.replace('__', '.')}={v}" for k, v in values.items()))


def command_cases() -> Iterator[Case]:
    """Bad flags and bad files with configs."""
    for flags in (
        (), ("--config",), ("--config=",), ("--config=/",), ("--config=:demo",),
        ("--config=nope.py",), ("--config=configs/nope.py:demo",), ("--workdir=x",),
        ("--config=README.md",), ("demo",), (f"--config={CONFIG}:demo", "--config=x.py"),
    ):
        yield Case(flags)
    for flags in (
        ("--workdir",), ("--workdri=x",), ("--stage=distil",), ("--stage=",), ("--stage",),
        ("--dry_run=yes",), ("extra",), ("-x",), ("--seed=1",), ("--flagfile=x",),
        ("--coordinator=host:1",), ("--num_processes=2",), ("--num_processes=two",),
        ("--coordinator=host", "--num_processes=2", "--process_id=0"),
        ("--coordinator=host:1", "--num_processes=2", "--process_id=2"),
        ("--config.experts.part=1/2",), ("--config.experts.part=x", "--stage=experts"),
        ("--undefok=y", "--y=1"), ("--workdir=gs://bucket/run",), ("--workdir=/proc/none/run",),
        ("--config.seed",), ("--lr_img=3",), ("--config_distill=1",), ("--verbosity=9",),
    ):
        yield _demo(*flags)
    for variant in (
        "dmo", "DEMO", "demo,", "demo,seed", "demo,seed=x", "demo,seed=1.5", "demo,=3",
        "demo,sed=1", "demo,distill=3", "demo,data.zca=perhaps", "demo,method=eddf", ",seed=1",
    ):
        yield _demo(variant=variant)
    for name in badfiles.CONFIGS:
        yield Case((f"--config={{}}/{name}.py",), files=f"config/{name}")
    yield Case(("--config={}/whole.py:variant",), files="config/whole")
    yield _demo("--workdir={}/file", files="file")
    yield _demo("--workdir={}/file/run", files="file")
    yield _demo("--workdir={}", files="somebody's notes")
    yield _demo("--workdir={}", files="run of another seed")
    yield _demo("--workdir={}", files="run of more iterations")


def place_cases() -> Iterator[Case]:
    """Paths and environments that can't be used."""
    for key in (
        "experts.dir", "data.cache_dir", "data.path", "cam.weights", "teacher.weights",
        "evaluate.distilled", "data.class_list",
    ):
        for path in ("~nobody.at.all/x", "y" * 300, "z/" * 3000):
            yield _demo("--config.data.source=folder", f"--config.{key}={path}")
    for path in ("~nobody.at.all/run", "w" * 300, "v/" * 3000):
        yield _demo(f"--workdir={path}")
        yield Case((f"--config={path}.py",))
    for name, value in (
        ("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "abacus"), ("XLA_FLAGS", "--xla_no_such=1"),
        ("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=perhaps"),
    ):
        for flags in ((), ("--dry_run",)):
            yield dataclasses.replace(_demo(*flags), environment=((name, value),))
    apart = ("--num_processes=1", "--process_id=0", "--coordinator=")
    yield _demo(*apart)
    # No address of this machine's: the coordinator must not listen on others instead.
    elsewhere = _demo("--coordinator=192.0.2.1:7", "--num_processes=2", "--process_id=0")
    yield dataclasses.replace(elsewhere, environment=(("GRPC_VERBOSITY", "NONE"),))


def compare_cases() -> Iterator[Case]:
    """Comparisons of which a run would be refused, and bad files of rows."""
    demo = (f"--config={CONFIG}:demo", *_SMALL)

    def case(*flags: str, files: str = "") -> Case:
        return Case((*demo, *flags), files, module="edf_jax.compare")

    yield case()
    yield case("--methods=random,mtd")
    yield case("--methods=random,mtt", "--config.parallel.data=64")
    yield case("--methods=mtt", "--config.data.source=folder", "--config.data.path=/nowhere")
    yield case("--methods=mtt", "--config.cam.weights=/nowhere.pth")
    for name in badfiles.names("rows"):
        yield case("--rows={}/rows.json", files=name)


def stranger_cases() -> Iterator[Case]:
    """Runs of strangers, whose files hold anything."""
    for name in badfiles.names("stranger"):
        yield Case(("{}/run",), files=name, module="edf_jax.report")
        yield Case(("{}/run", "--to=images"), files=name, module="edf_jax.export")


def value_cases() -> Iterator[Case]:
    """Keys with impossible values, by themselves and beside others."""
    from edf_jax.config.schema import SCHEMA

    for name, key in SCHEMA.items():
        yield _demo(f"--config.{name}s=1")
        for value in _impossible(key):
            yield _demo(f"--config.{name}={value}")
    yield _keys(distill__max_start_epoch=16)
    yield _keys(distill__expert_epochs=30)
    yield _keys(distill__current_max_start_epoch=9)
    yield _keys(distill__min_start_epoch=2)
    yield _keys(distill__trajectories=3, parallel__trajectory=2)
    yield _keys(distill__trajectories=64, parallel__trajectory=64)
    yield _keys(parallel__data=64)
    yield _keys(cam__network="imported")
    yield _keys(cam__network="expert", cam__weights="x.pth")
    yield _keys(distill__ipc=1000)
    yield _keys(distill__ipc=150)
    yield _keys(data__resolution=4)
    yield _keys(model__depth=9)
    yield _keys(model__depth=10**9)
    yield _keys(model__name="LeNet", model__width=0, data__resolution=8)
    yield _keys(data__source="tfds")
    yield _keys(data__source="tfds", data__name="no_such_set", data__path="/nowhere")
    yield _keys(data__source="folder")
    yield _keys(data__source="folder", data__path="/nowhere")
    yield _keys(data__source="folder", data__path="/nowhere", data__subset="imagenete")
    yield _keys(data__source="folder", data__path="/nowhere", data__class_list="/nowhere.txt")
    yield _keys(data__source="idx", data__path="/nowhere")
    yield _keys(data__source="npz", data__path="/nowhere.npz")
    for name, values in {
        "augment.strategy": ("colour", "color_", "flip-crop"),
        "model.name": ("ConvNot", "", "ResNet19", "../ConvNet"),
        "model.norm": ("layer_norm_2", "none,batch"),
        "model.activation": ("rely",),
        "model.pooling": ("mean", "max2"),
        "evaluate.networks": ("ConvNet,,VGG11", "ResNet18,AlexNot", ","),
        "evaluate.baseline_rates": ("", "0.1,-1", "fast", "nan", "0.1;0.2"),
        "evaluate.baselines": ("randoms", "random,"),
        "evaluate.distilled": ("/nowhere", "nothing.safetensors"),
        "cam.weights": ("/nowhere.pth", "/"),
        "teacher.weights": ("/nowhere.pth", "/"),
        "teacher.network": ("ResNot",),
    }.items():
        for value in values:
            yield _demo(f"--config.{name}={value}")


def _impossible(key) -> Iterator[object]:
    """Values that a key can't have."""
    if key.kind is bool:
        yield from ("maybe", 2)
    elif key.choices:
        yield from ("", "no such choice", f"{key.default}x", key.choices[0].upper() + "?")
    elif key.kind in (int, float):
        yield from ("", "many", "1,5", "nan", "0x")
        if key.kind is int:
            yield from ("1.5", "inf")
        if key.at_least is not None:
            yield key.at_least - 1
        if key.at_most is not None:
            yield key.at_most + 1
        if key.below is not None:
            yield key.below
        if key.positive:
            yield from (0, -1)


def file_cases() -> Iterator[Case]:
    """Data folders and files that can't be used, some of them hostile."""
    for kind in ("folder", "npz", "idx"):
        for name in badfiles.names(kind):
            resolution = 0 if "sizes" in name else 8
            yield _demo(
                f"--config.data.source={kind}",
                f"--config.data.path={{}}/{'data.npz' if kind == 'npz' else 'data'}",
                f"--config.data.resolution={resolution}",
                files=name,
                prepares=kind == "folder" and ("image" in name or resolution == 0),
            )
    for name in badfiles.names("class list"):
        yield _demo(
            "--config.data.source=folder", "--config.data.path={}/data",
            "--config.data.class_list={}/classes.txt", files=name,
        )
    for name in badfiles.names("weights"):
        yield _demo(f"--config.cam.weights={{}}/{badfiles.file_of(name)}", files=name)
        yield _demo(f"--config.teacher.weights={{}}/{badfiles.file_of(name)}", files=name)
    for name in badfiles.names("set"):
        yield _demo(f"--config.evaluate.distilled={{}}/{badfiles.file_of(name)}", files=name)
    yield _demo("--config.experts.dir={}/file", files="file")
    yield _demo("--config.experts.dir={}", files="store of another seed")


def generated_cases(count: int) -> list[Case]:
    """Misspelt keys and values out of range, drawn by hypothesis; the same at every call."""
    from edf_jax.config.schema import SCHEMA

    groups = {name.rpartition(".")[0] for name in SCHEMA} | set(SCHEMA)
    letters = st.characters(codec="ascii", categories=("Ll", "Nd"))
    numbers = [
        (name, key) for name, key in SCHEMA.items() if key.at_least is not None and not key.choices
    ]

    @st.composite
    def misspelt(draw) -> Case:
        name = draw(st.sampled_from(sorted(SCHEMA)))
        at = draw(st.integers(0, len(name) - 1))
        wrong = name[:at] + draw(st.text(letters, max_size=2)) + name[at + 1 :]
        wrong = wrong if wrong and wrong not in groups else f"{name}_"
        return _demo(f"--config.{wrong}={draw(st.text(letters, min_size=1, max_size=5))}")

    @st.composite
    def out_of_range(draw) -> Case:
        name, key = draw(st.sampled_from(numbers))
        value = key.at_least - draw(st.integers(1, 10**12))
        return _demo(f"--config.{name}={value}")

    words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1)

    @st.composite
    def unknown_word(draw) -> Case:
        names = [name for name, key in SCHEMA.items() if key.choices]
        return _demo(f"--config.{draw(st.sampled_from(names))}=~{draw(words)}")

    @st.composite
    def unknown_flag(draw) -> Case:
        return _demo(f"--z{draw(st.text(letters, max_size=12))}={draw(words)}")

    found: dict[Case, None] = {}

    @seed(0)
    @settings(
        max_examples=2 * count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(misspelt(), out_of_range(), unknown_word(), unknown_flag()))
    def collect(case: Case) -> None:
        found[case] = None

    collect()
    return list(found)[:count]


class Compilations:
    """Counts XLA's compilations in this process."""

    def __init__(self) -> None:
        import jax

        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, seconds: float, **_) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def _fault(
    case: Case, status: int, out: str, err: str, before: set[str], folder: Path
) -> str | None:
    """What isn't as it should be after a bad command."""
    if status != 2:
        return f"status {status}: {err.strip()[-500:]}"
    if out or len(err.splitlines()) != 1 or not err.startswith("edf_jax"):
        return f"more or less than a line: {(out + err)[:1000]!r}"
    left = _files(folder) - before
    if case.prepares:
        left = {name for name in left if not name.startswith("cache")}
    return f"left behind {sorted(left)[:5]}" if left else None


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """An empty current folder, in which the user's caches would lie too."""
    with tempfile.TemporaryDirectory(prefix="badinput_") as folder:
        old, cache = os.getcwd(), os.environ.get("XDG_CACHE_HOME")
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        try:
            yield Path(folder)
        finally:
            os.chdir(old)
            os.environ.pop("XDG_CACHE_HOME")
            if cache is not None:
                os.environ["XDG_CACHE_HOME"] = cache


def _has_parser(case: Case) -> bool:
    """Whether the command takes its flags without the program's name."""
    return case.module in ("edf_jax.report", "edf_jax.export")


def _entry(case: Case) -> str:
    return f"{case.module}.__main__" if _has_parser(case) else case.module


def refused_here(case: Case, compilations: Compilations) -> tuple[str, str | None]:
    """Runs a case in this process; returns its line, and what was wrong with how it ended."""
    main = importlib.import_module(_entry(case)).main
    with _place() as folder:
        arguments = case.arguments(folder)
        before, compiled = _files(folder), compilations.count
        # The last case's config file, whose names this one's would be added to.
        sys.modules.pop("config_config", None)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(arguments if _has_parser(case) else ["edf_jax", *arguments])
            except BaseException as error:  # A traceback, where there should be a line.
                return "", f"{type(error).__name__}: {error}"
        fault = _fault(case, status, out.getvalue(), err.getvalue(), before, folder)
        if compilations.count > compiled:
            fault = f"{compilations.count - compiled} compilations"
        return err.getvalue().strip(), fault


def refused_apart(case: Case) -> tuple[str, str | None]:
    """As `refused_here`, in a process of its own."""
    with _place() as folder:
        arguments = case.arguments(folder)
        before = _files(folder)
        ended = subprocess.run(
            [sys.executable, "-m", case.module, *arguments],
            env={**tiny_run.environment(), **dict(case.environment)},
            capture_output=True, text=True,
        )
        fault = _fault(case, ended.returncode, ended.stdout, ended.stderr, before, folder)
        return ended.stderr.strip(), fault


def check(cases: Sequence[Case], apart: int, *, tell=lambda line: None) -> list[str]:
    """Runs cases, some evenly chosen ones as processes; returns what was wrong."""
    compilations, wrong = Compilations(), []
    processes = {round(i * (len(cases) - 1) / max(apart - 1, 1)) for i in range(apart)}
    for number, case in enumerate(cases):
        if number in processes or case.environment:
            line, fault = refused_apart(case)
        else:
            line, fault = refused_here(case, compilations)
        named = f"{' '.join(case.flags[1:] or case.flags)} {case.files}".strip()
        tell(f"{named}\n    {line}")
        if fault is not None:
            wrong.append(f"{named}: {fault}")
    return wrong


def main() -> int:
    """The command; returns its status."""
    began = time.monotonic()
    cases = [
        *command_cases(), *place_cases(), *compare_cases(), *value_cases(), *file_cases(),
        *stranger_cases(), *generated_cases(150),
    ]
    cases = list(dict.fromkeys(cases))
    wrong = check(cases, 20, tell=print if "-v" in sys.argv else lambda line: None)
    for line in wrong:
        print(line)
    print(
        f"{len(cases)} bad inputs, 20 and more as processes: {len(cases) - len(wrong)} refused in "
        f"a line, {len(wrong)} not, in {time.monotonic() - began:.0f} s"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
