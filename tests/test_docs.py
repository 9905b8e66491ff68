"""The docs are true: their code runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import urllib.parse

import numpy as np
import pytest

from edf_jax import distilled_set, main
from edf_jax.config import official
from edf_jax.config.flags import parse
from edf_jax.config.resolve import resolve
from edf_jax.config.schema import SCHEMA
from edf_jax.data import Normalisation, describe_dataset
from edf_jax.distilled_set import DistilledSet
from edf_jax.export import write as export
from edf_jax.plan import plan
from edf_jax.tune import budget

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [*PAGES, *(p for p in sorted(ROOT.glob("*.md")) if p.is_file())]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(path: pathlib.Path, language: str) -> list[str]:
    return [code for name, code in _FENCE.findall(path.read_text("utf-8")) if name == language]


def _prose(path: pathlib.Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", path.read_text("utf-8")))


def _section(path: pathlib.Path, title: str) -> str:
    """The Python block of a section."""
    text = path.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return next(block[2] for block in _FENCE.finditer(text) if block[1] == "python")


def _slug(heading: str) -> str:
    """A heading's anchor, as GitHub and MyST make it."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def _anchors(path: pathlib.Path) -> set[str]:
    text = _FENCE.sub("", path.read_text("utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {_slug(h) for h in headings} | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


def _links(text: str) -> list[str]:
    """The targets of a Markdown text's links and pictures."""
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text)
    return inline + re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)


def _dead(path: pathlib.Path) -> list[str]:
    """What is wrong with a page's links; addresses on the web are checked for their form only."""
    pictures = re.findall(r"```\{(?:image|figure|include)\}\s+(\S+)", path.read_text("utf-8"))
    wrong = []
    for link in [*_links(_prose(path)), *pictures]:
        parts = urllib.parse.urlsplit(link)
        if parts.scheme:
            if parts.scheme != "https" or not parts.netloc:
                wrong.append(f"{link}: no https address")
            continue
        target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(f"{link}: there is no {target}")
        elif parts.fragment and target.suffix == ".md" and parts.fragment not in _anchors(target):
            wrong.append(f"{link}: {target.name} has no heading {parts.fragment}")
    return wrong


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_link_is_dead(path):
    assert _dead(path) == []


def test_a_dead_link_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# Title one\n\n## It's `here`?\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[good](other.md#its-here) ![none](no.png) [anchor](other.md#nowhere) [web](http://x.org)\n"
        "[self](#top)\n`[code](is-no-link.md)`\n```\n[nor](this.md)\n```\n# Top\n"
    )
    wrong = _dead(page)
    assert [line.split(":")[0] for line in wrong] == ["no.png", "other.md#nowhere", "http"]


def test_every_page_is_in_the_table_of_contents():
    listed = set()
    index = (DOCS / "index.md").read_text("utf-8")
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.MULTILINE | re.DOTALL):
        listed |= {line for line in tree.splitlines() if line and not line.startswith(":")}
    pages = {path.stem for path in PAGES} - {"index"}
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert listed == pages | notebooks


def _commands() -> list[tuple[str, list[str]]]:
    """The `python -m edf_jax...` lines of all bash blocks, as words after the `-m`."""
    found = []
    for path in TEXTS:
        for block in _blocks(path, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "-m" in words and "python" in words:
                    found.append((path.name, words[words.index("-m") + 1 :]))
    return found


@pytest.mark.parametrize(
    "page, words", _commands(), ids=[f"{page}: {' '.join(words)}" for page, words in _commands()]
)
def test_commands_in_the_docs_are_right(page, words):
    module, *arguments = words
    if module.split(".")[0] not in ("edf_jax", "benchmarks", "experiments", "tests"):
        return
    assert importlib.util.find_spec(module) is not None, f"{page} names {module}"
    left_open = any("..." in argument or "$" in argument for argument in arguments)
    if module == "edf_jax.main" and arguments != ["--help"] and not left_open:
        resolve(parse(["main", *arguments], main._define_flags).config)


def test_config_keys_named_in_the_docs_exist():
    groups = {name.split(".")[0] for name in SCHEMA if "." in name}
    key = re.compile(rf"`(?:--config\.)?((?:{'|'.join(groups)})\.[a-z_]+)(?:=[^`]*)?`")
    for path in TEXTS:
        for name in key.findall(path.read_text("utf-8")):
            is_file = name.endswith((".py", ".npz", ".json", ".csv", ".md"))
            assert is_file or name in SCHEMA, f"{path.name} names {name}"


def test_the_official_codes_flags_are_told_as_they_are_read():
    text = (DOCS / "coming-from.md").read_text("utf-8").partition("\n## Flags of the dist")[2]
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", text, re.MULTILINE)
    for name, key in official.SAME.items():
        assert (name, key) in rows
    for name, key in rows:
        if name in official.OTHERWISE:
            assert any(key in values for values in official.OTHERWISE[name].values())


def test_the_photos_to_try_with_are_what_the_quickstart_says(tmp_path):
    script = [sys.executable, str(DOCS / "make_photos.py"), "photos"]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    flags = ["--config=configs/folder.py:auto", f"--config.data.path={tmp_path / 'photos'}"]
    config = resolve(parse(["main", *flags], main._define_flags).config)
    config = budget.settle(config, tmp_path, measure=False)
    made = plan.make_plan(config, describe_dataset(config.data))
    assert (made.data.num_classes, made.data.num_train, made.data.num_test) == (4, 144, 40)
    assert made.warnings == ()


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """`runs/demo` in the current folder: a set like the demo's, and its exports."""
    rng = np.random.default_rng(0)
    normalisation = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = rng.uniform(0, 1, (10, 32, 32, 3)).astype(np.float32)
    logits = np.float32(4 * np.eye(10) + rng.standard_normal((10, 10)))
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    images = np.asarray(normalisation.apply(pixels))
    distilled = DistilledSet(images, logits, 0.02, names, normalisation, 200)
    run = tmp_path / "runs" / "demo"
    distilled.save(run / "distilled" / "last.safetensors")
    (run / "result.json").write_text(json.dumps({"distilled_mean": 30.0}))
    (run / "metrics.jsonl").write_text('{"stage": "distill", "step": 0, "time": 0, "loss": 0.9}\n')
    monkeypatch.chdir(tmp_path)
    return distilled


_PAGE = DOCS / "using-a-distilled-set.md"


def _lines_of_code(code: str) -> int:
    lines = [line for line in code.splitlines() if line.strip()]
    return len([line for line in lines if not line.startswith(("import ", "from "))])


def _run(code: str) -> dict:
    names: dict = {}
    exec(compile(textwrap.dedent(code), "docs", "exec"), names)
    return names


def _accuracy_told(code: str, capsys) -> float:
    """Runs a block that ends in printing an accuracy on the digits' test images."""
    assert _lines_of_code(code) <= 12
    _run(code)
    told = re.fullmatch(r"([\d.]+)% of 360 test images\n", capsys.readouterr().out)
    assert told is not None
    return float(told[1])


def test_ten_lines_of_pytorch_train_on_a_set_of_the_zoo_and_score_it(capsys):
    torch = pytest.importorskip("torch", reason="needs pip install 'edf_jax[interop]'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # More wait for each other on a busy machine.
    try:
        torch.manual_seed(0)
        accuracy = _accuracy_told(_section(_PAGE, "PyTorch"), capsys)
    finally:
        torch.set_num_threads(threads)
    # As many random real images give 53.3, and networks differ by 1.5.
    assert accuracy > 62


def test_ten_lines_of_jax_train_on_a_set_of_the_zoo_and_score_it(capsys):
    assert _accuracy_told(_section(_PAGE, "JAX"), capsys) > 62


def test_what_a_section_reads_is_exported_by_the_page_before_it():
    text = _PAGE.read_text("utf-8")
    for form in ("npz", "tfds"):
        said = text.index(f"edf_jax.export --run=runs/demo --to={form}\n")
        assert said < text.index(f"exported/{'distilled.npz' if form == 'npz' else form}\"")


def test_test_images_are_normalised_like_the_set(exported):
    export.export_run("runs/demo", "npz")
    names = _run(_section(_PAGE, "Without edf_jax"))
    expected = exported.normalisation.apply(names["test_pixels"])
    np.testing.assert_allclose(names["test_images"], expected, atol=1e-5)


def test_the_hugging_face_block_runs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("datasets", reason="needs pip install 'edf_jax[export]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    export.export_run("zoo:cluttered_digits24-ipc5-edf", "huggingface", "digits")
    assert len(_run(_section(_PAGE, "Hugging Face"))["train"]) == 50
    assert "(24, 24)" in capsys.readouterr().out


def test_the_tfds_block_runs(exported, capsys):
    pytest.importorskip("tensorflow_datasets")
    export.export_run("runs/demo", "tfds")
    assert len(_run(_section(_PAGE, "TFDS"))["train"]) == 10
    assert "(32, 32, 3)" in capsys.readouterr().out


def test_reading_a_run_from_a_program(exported):
    names = _run(_section(DOCS / "reading-the-results.md", "From a program"))
    assert names["losses"] == [0.9] and names["accuracy"] == 30.0
    assert isinstance(names["distilled"], distilled_set.DistilledSet)


@pytest.mark.slow
def test_docs_build_without_warnings_and_can_be_searched(tmp_path):
    pytest.importorskip("sphinx", reason="needs pip install 'edf_jax[docs]'")
    pytest.importorskip("furo")
    pytest.importorskip("myst_nb")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    index = (tmp_path / "searchindex.js").read_text("utf-8")
    for word in ("trajectori", "bfloat16", "slurm"):  # Stems, as the search makes them.
        assert f'"{word}"' in index or f"{word}:" in index, word
    page = (tmp_path / "using-a-distilled-set.html").read_text("utf-8")
    assert 'href="quickstart.html"' in page and "search.html" in page
