"""Figures, the report of a run and the table over several, on runs made up here."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edf_jax import distilled_set
from edf_jax.data.normalisation import IMAGENET, Normalisation
from edf_jax.distilled_set import DistilledSet
from edf_jax.methods.parametrisation.multi_formation import multi_formation
from edf_jax.report import charts, figures, sections
from edf_jax.report import page as report
from edf_jax.report.__main__ import main
from edf_jax.report.tables import Accuracy, headline, result_table, run_table, warnings
from edf_jax.runs.files import open_run, save_activation_maps
from edf_jax.runs.metrics import MetricsWriter
from edf_jax.runtime import tables
from edf_jax.runtime.errors import UserError

NAMES = ("bread & butter", "<cat>", "dog")


def make_run(
    workdir: Path,
    *,
    class_names=NAMES,
    ipc: int = 2,
    shape=(12, 16, 3),
    iterations: int = 40,
    images=None,
    finished: bool = True,
    **result,
) -> Path:
    """Writes the files of a run; `images` are pixels `[n, H, W, C]` to grow from, noise if None."""
    rng = np.random.default_rng(0)
    classes = len(class_names)
    if images is None:
        images = rng.uniform(size=(classes * ipc, *shape))
    labels = np.repeat(np.arange(classes), ipc)
    config = {
        "method": "edf",
        "seed": 0,
        "data": {"source": "cluttered_digits", "resolution": shape[0], "cache_dir": str(workdir)},
        "distill": {"ipc": ipc, "threshold": 1.0, "lr_img": 100.0, "iterations": iterations},
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config))
    _write_metrics(workdir, iterations, rng)
    for step in np.linspace(0, iterations, 5).astype(int):
        pixels = np.clip(images + 0.25 * step / iterations * rng.normal(size=images.shape), 0, 1)
        _write_set(workdir, f"step_{step}", pixels, labels, class_names, int(step))
    for name in ("last", "best_on_test"):
        _write_set(workdir, name, pixels, labels, class_names, iterations)
    maps = rng.uniform(size=images.shape[:3])
    weights = np.where(maps >= maps.mean(axis=(1, 2), keepdims=True), maps + 1.0, 1.0)
    save_activation_maps(
        workdir, open_run(workdir).last.images, maps, weights[..., None], network="the first expert"
    )
    if finished:
        finals = {
            "random_mean": 32.0, "random_std": 1.5, "distilled_mean": 61.5, "distilled_std": 1.2,
            "best_on_test_mean": 62.5, "best_on_test_std": 0.9, "full_mean": 91.0,
            "full_std": 0.4, "num_eval": 5, "seconds": 254.0, "peak_memory_mb": 1700.0,
            "select": "last", "workdir": str(workdir),
            "command": "python -m edf_jax.main --x='<y>'",
            "versions": {"jax": "0.10.2"}, "hardware": {"device": "cpu", "cores": 2},
            "stages": {"experts": 91.0, "distill": 150.0}, **result,
        }  # fmt: skip
        (workdir / "result.json").write_text(json.dumps(finals))
    return workdir


def _write_metrics(workdir, iterations, rng):
    with MetricsWriter(workdir, tensorboard=False) as metrics:
        for epoch in range(6):
            for group in range(3):
                accuracy = 90 - 70 * np.exp(-epoch / 2) + rng.normal()
                metrics.write(epoch, "experts", epoch=epoch, group=group, test_accuracy=accuracy)
        for step in range(iterations):
            loss = 0.5 + 0.4 * np.exp(-step / 200) + rng.exponential(0.1)
            metrics.write(
                step, "distill", loss=np.nan if step == 3 else loss, skipped=bool(loss > 1.0),
                start_epoch=int(rng.integers(0, 3)), max_start_epoch=3, alpha=0.01,
            )  # fmt: skip
        for step in range(0, iterations + 1, max(1, iterations // 8)):
            mean = 30 + 32 * (1 - np.exp(-3 * step / iterations))
            metrics.write(step, "evaluate", accuracy_mean=mean, accuracy_std=1.0)


def _write_set(workdir, name, pixels, labels, class_names, step):
    normalisation = IMAGENET if pixels.shape[-1] == 3 else Normalisation((0.5,), (0.25,))
    DistilledSet(
        parameters=normalisation.apply(np.asarray(pixels, np.float32)),
        labels=4.0 * np.eye(len(class_names), dtype=np.float32)[labels],
        alpha=0.0123,
        class_names=tuple(class_names),
        normalisation=normalisation,
        step=step,
    ).save(workdir / "distilled" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "fake")


@pytest.fixture(scope="module")
def page(run_folder):
    return report.write_report(run_folder).read_text()


class _Page(HTMLParser):
    """What a page refers to, its text, and whether its tags match."""

    VOID = frozenset({"meta", "img", "source", "input", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.words = [], [], []
        self._open = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_page_is_one_file_that_needs_nothing_else(page):
    references = _Page(page).references
    assert len(references) > 20
    assert all(reference.startswith("data:image/") for reference in references)
    assert "http:" not in page and "https:" not in page


def test_the_page_says_what_came_of_the_run(page):
    text = _Page(page).text
    assert "reach 61.5%" in text.replace(" %", "%")
    assert "29.5 points more" in text
    for words in (
        "Random real images", "Distilled, last", "chosen on test data", "All real data",
        "61.5 ± 1.2", "59.8 to 63.2", "4 min 14 s", "1.66 GiB", "lr_img 100.0", "jax 0.10.2",
        "python -m edf_jax.main --x='<y>'", "the first expert",
    ):  # fmt: skip
        assert words in text, words


def test_class_names_are_text_not_markup(page):
    assert "<cat>" in _Page(page).text
    assert "<cat>" not in page and "&lt;cat&gt;" in page


def test_figures_are_written_beside_the_report(run_folder, page):
    names = {path.stem for path in (run_folder / "figures").glob("*.png")}
    charts = {"loss", "accuracy", "experts", "start_epochs"}
    assert names == charts | {"before_after", "activation_maps"}


def test_without_a_distilled_set_the_rest_is_still_told(tmp_path):
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "distilled")
    text = _Page(report.write_report(run).read_text()).text
    assert "Result" in text and "Distilled images" not in text


@pytest.mark.parametrize("gone", ["metrics.jsonl", "result.json", "config.json", "figures"])
def test_what_is_missing_is_left_out(tmp_path, gone):
    run = make_run(tmp_path / "run", iterations=8)
    shutil.rmtree(run / gone) if gone == "figures" else (run / gone).unlink()
    _Page(report.write_report(run).read_text())


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "has not finished" in report.write_report(tmp_path).read_text()


def test_what_is_stored_is_shown_beside_what_it_decodes_to(tmp_path):
    workdir = make_run(tmp_path / "run")
    # Those of the images as pixels.
    (workdir / "figures" / "activation_maps.safetensors").unlink()
    for path in (workdir / "distilled").glob("*.safetensors"):
        found = distilled_set.load(path)
        labels = np.repeat(found.labels, 4, axis=0)
        grids = dataclasses.replace(found, labels=labels, parametrisation=multi_formation(2))
        grids.save(path)
    run = open_run(workdir)
    facts = sections.results(run)["facts"]
    count = len(run.last.parameters)
    assert facts["Stored as"] == f"{count} (multi_formation, factor 2)"
    assert facts["Distilled images"].startswith(f"{4 * count} of ")
    assert facts["Bytes, images + labels"] == f"{run.last.stored_bytes.text} (float32)"
    assert sum(len(tiles) for _, tiles in sections.gallery(run)["classes"]) == 4 * count
    stored = sections.stored_images(run)
    assert [name for name, _ in stored["figures"]] == list(run.last.class_names)
    assert stored["each"] == 4
    assert "What is stored" in report.write_report(workdir).read_text()
    assert sections.stored_images(open_run(make_run(tmp_path / "pixels"))) is None


def test_grey_rectangular_images_and_large_ones(tmp_path):
    grey = make_run(tmp_path / "grey", shape=(8, 20, 1), iterations=8)
    _Page(report.write_report(grey).read_text())
    large = make_run(tmp_path / "large", shape=(96, 80, 3), ipc=1, iterations=8)
    assert "data:image/jpeg" in report.write_report(large).read_text()


def test_mostly_skipped_runs_are_warned_about(tmp_path):
    run = make_run(tmp_path / "run", iterations=8)
    with MetricsWriter(run, tensorboard=False) as metrics:
        for step in range(8, 120):
            metrics.write(step, "distill", loss=2.0, skipped=True, start_epoch=0)
    assert "100 of the last 100 iterations were skipped" in report.write_report(run).read_text()


def test_the_selected_set_is_the_headline(tmp_path):
    run = make_run(tmp_path / "run", select="test")
    row = report.write_report(run).read_text().split("<tr class=headline>")[1].split("</tr>")[0]
    assert "best on test" in row


def test_what_distillation_added_is_told_against_where_it_started(tmp_path):
    run = make_run(tmp_path / "run", initial_mean=49.2, initial_std=1.0)
    text = _Page(report.write_report(run).read_text()).text.replace(" ,", ",")
    assert (
        "reach 61.5%, 12.3 points more than on their initial images (49.2%), 29.5 more than on "
        "random real images (32.0%) and 68% of what all the data gives." in text
    )
    assert "Initial images what distillation started from" in text
    result = open_run(run).result
    assert "12.3 points more than on their initial images" in result_table(result)
    assert run_table([run])[0]["initial images"] == "49.2 ± 1.0"
    worse = headline({**result, "initial_mean": 65.0, "select": "last"})[1]
    assert worse.startswith(", 3.5 points less than on their initial images (65.0%)")
    assert headline({"distilled_mean": 50.0}) is None


def test_a_matching_loss_that_stays_near_1_is_told(tmp_path):
    near = [{"loss": 0.99, "skipped": False}] * 150
    (told,) = warnings(near)
    assert "stayed near 1: 0.99 at the start, 0.99 at the end" in told
    assert warnings(near + [{"loss": 0.6, "skipped": False}] * 100) == []
    assert warnings([{"loss": float("nan")}]) == warnings([]) == []
    run = make_run(tmp_path / "run", iterations=8)
    with MetricsWriter(run, tensorboard=False) as metrics:
        for step in range(8, 300):
            metrics.write(step, "distill", loss=1.2, skipped=False, start_epoch=0)
    (run / "metrics.jsonl").write_text(
        "".join((run / "metrics.jsonl").read_text().splitlines(True)[-200:])
    )
    assert "The matching loss stayed near 1" in report.write_report(run).read_text()


def test_nothing_of_a_strangers_run_is_markup(tmp_path):
    script = "<script>alert(1)</script>"
    row = {"kind": "distilled", "network": script, "mean": 1.0, "std": None, "num_eval": script}
    score = {"network": script, "lrs": 1.0, "lrs_std": 0.0, "ior": 1, "hlr": 1}
    run = make_run(
        tmp_path / "run", distilled_num_eval=script, distilled_std=None, network="a net",
        rows=[{**row, "how": script}], scores=[score], hardware={script: script},
        versions={script: script}, stages={script: 1.0},
    )  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, script: script, "method": script}))
    page = report.write_report(run).read_text()
    assert script not in page and page.count("&lt;script&gt;") > 8
    assert _Page(page).tags.count("script") == 2  # The page's own, and its frames' data.


def test_a_result_that_is_none_ends_in_a_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", rows=[{"network": "x"}])
    assert main([str(run)]) == 2
    assert "holds what edf_jax doesn't write" in capsys.readouterr().err


def test_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="is no run"):
        open_run(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_interval_is_students(tmp_path):
    values = np.array([60.0, 62.0, 61.0, 63.0])
    row = Accuracy("full", "all", "", values.mean(), values.std(), 4)
    half = 3.182446 * values.std(ddof=1) / 2
    np.testing.assert_allclose(row.interval, (61.5 - half, 61.5 + half), rtol=1e-6)
    assert Accuracy("full", "all", "", 60.0, 0.0, 1).interval is None


def test_the_result_is_a_table_of_text_too(run_folder):
    result = open_run(run_folder).result
    lines = result_table({**result, "full_num_eval": 3, "full_how": "the experts"}).splitlines()
    assert len(lines) == 6
    assert lines[2].split("  ")[0] == "Distilled, last" and "61.5 ± 1.2" in lines[2]
    assert "chosen on test data" in lines[3]
    assert lines[4].endswith("3  the experts")
    assert lines[5].startswith("distilled images: 61.5%, 29.5 points more than on random real")


def test_the_table_shows_what_runs_differ_in_and_what_came_of_it(tmp_path, capsys):
    first = make_run(tmp_path / "one", ipc=1, iterations=8, distilled_mean=50.0)
    second = make_run(tmp_path / "two", ipc=2, iterations=8)
    third = make_run(tmp_path / "three", ipc=2, iterations=8, finished=False)
    rows = run_table([first, second, third])
    assert [row["distill.ipc"] for row in rows] == ["1", "2", "2"]
    assert "seed" not in rows[0] and not any("cache_dir" in key for key in rows[0])
    assert rows[0]["distilled, last"] == "50.0 ± 1.2" and rows[2]["time"] == "not finished"
    head = tables.to_markdown(rows).splitlines()[0]
    assert head.startswith("| run | distill.ipc | random real images |")
    assert main([str(first), str(second), "--csv"]) == 0
    parsed = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["run"] for row in parsed] == ["one", "two"]
    assert tables.to_csv(rows).count("\n") == 4


def _png_size(png):
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.parametrize("theme", [charts.LIGHT, charts.DARK])
@pytest.mark.parametrize("ipc", [1, 2, 6])
def test_pictures_hold_every_class_whatever_the_number_of_images(ipc, theme):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), ipc)
    images = rng.uniform(size=(12 * ipc, 6, 9, 1))
    names = [f"a rather long class name {i}" for i in range(12)]
    width, height = _png_size(figures.before_after(images, images, labels, names, theme=theme))
    assert width > 300 and height > 100
    maps = images[..., 0]
    png = figures.activation_maps(images, maps, 1 + maps, labels, names, theme=theme)
    assert _png_size(png)[0] > 300


def test_curves_bear_few_points_and_strange_numbers():
    assert charts.loss_curve([0], [np.nan], [True])
    assert charts.loss_curve([0, 1], [0.5, np.inf], [False, True], threshold=1.0)
    assert charts.accuracy_curve([0], [50.0], [1.0])
    assert charts.expert_accuracy([0, 1], [[np.nan, 50.0]])
    assert charts.start_epochs([0, 1], [0, 0])


def test_the_same_numbers_give_the_same_bytes():
    first, second = (charts.accuracy_curve([0, 1], [50.0, 60.0], [1.0, 1.0]) for _ in range(2))
    assert first == second


_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_BROWSER = next(filter(None, map(shutil.which, _BROWSERS)), None)


def _browse(address: str, folder: Path, *flags: str) -> str:
    command = [
        _BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", *flags, address,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium here to open the report in")
def test_a_browser_opens_the_page_and_runs_its_script(run_folder, page, tmp_path):
    probe = (
        "<script>const broken = [...document.images].filter(i => i.complete && !i.naturalWidth);"
        "document.title = JSON.stringify([document.documentElement.dataset.ready, broken.length,"
        "document.images.length, document.documentElement.scrollWidth <= innerWidth,"
        "document.getElementById('history-label').textContent])</script></body>"
    )
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", probe))
    dom = _browse(probed.as_uri(), tmp_path, "--window-size=500,900", "--dump-dom")
    title = dom.split("<title>")[1].split("</title>")[0]
    ready, broken, images, fits, label = json.loads(title)
    assert ready == "yes" and broken == 0 and images > 20 and fits
    assert label.startswith("iteration 40, pixels changed by ")


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium here to open the report in")
def test_a_browser_shows_the_page_dark_where_dark_is_preferred(run_folder, page, tmp_path):
    from PIL import Image

    corner = {}
    for name, flags in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        picture = tmp_path / f"{name}.png"
        path = run_folder / "report.html"
        _browse(path.as_uri(), tmp_path, *flags, "--window-size=500,900", f"--screenshot={picture}")
        with Image.open(picture) as image:
            corner[name] = sum(image.convert("RGB").getpixel((2, 2)))
    assert corner["light"] > 600 and corner["dark"] < 150


_LONG = ("a name of so many words that no column of a page is wide enough for all of them",)


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium here to open the report in")
@pytest.mark.parametrize("width", [390, 1200])
def test_long_class_names_leave_the_images_in_rows(tmp_path, width):
    run = make_run(tmp_path / "run", class_names=(*_LONG, "cat", "dog"), iterations=8)
    probe = (
        "<script>const tops = [...document.querySelectorAll('.classes > div')].map(d => ["
        "d.getBoundingClientRect().top, d.querySelector('.tiles').getBoundingClientRect().top]);"
        "document.title = JSON.stringify([tops, document.documentElement.scrollWidth,"
        "innerWidth])</script></body>"
    )
    probed = tmp_path / "probed.html"
    probed.write_text(report.write_report(run).read_text().replace("</body>", probe))
    dom = _browse(probed.as_uri(), tmp_path, f"--window-size={width},900", "--dump-dom")
    tops, needed, there = json.loads(dom.split("<title>")[1].split("</title>")[0])
    heights = {round(tiles - top) for top, tiles in tops}
    assert len(tops) == 3 and len(heights) == 1 and needed <= there


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium here to open the report in")
def test_the_page_prints(run_folder, page, tmp_path):
    address = (run_folder / "report.html").as_uri()
    _browse(address, tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    pages = (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n")
    assert 1 <= pages <= 6


def test_the_command_writes_the_report(run_folder):
    command = [sys.executable, "-m", "edf_jax.report", str(run_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == run_folder / "report.html"
