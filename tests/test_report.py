"""``sde-diffusion report``: the page in a real browser, at two widths, and what it refuses."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sde_diffusion.commands.main import main
from sde_diffusion.evaluation.sweep import RECORD, read_rows
from tests.test_commands import refused, trained

__all__ = ["trained"]

CHROMIUM = next((p for name in ("chromium", "google-chrome", "chrome") if (p := shutil.which(name))), None)


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a sweep of three samplers, a likelihood and its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        arguments = [f"--workdir={trained}", "--quiet", "--device=cpu"]
        sweep = ["--samplers=ddim,ancestral,probability_flow", "--steps=2,3", "--tolerances=0.1", "--num_samples=70"]
        assert main(["benchmark", *arguments, *sweep, "--seeds=0,1"]) == 0
        few = ["--num_images=4", "--bound_draws=4", "--bound_steps=10", "--tolerance=0.1"]
        assert main(["likelihood", *arguments, *few]) == 0
    assert main(["report", f"--workdir={trained}", "--quiet"]) == 0
    return trained


def copy(run: Path, target: Path, **changes: Any) -> Path:
    """Return a copy of a run whose sweep has other fields."""
    shutil.copytree(run, target)
    rows = [{**row, **changes} for row in read_rows(run / RECORD)]
    (target / RECORD).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


def test_page_holds_all_it_needs(measured: Path) -> None:
    page = (measured / "report.html").read_text()
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', outside) == []  # opens from disk, without a network
    rows = read_rows(measured / RECORD)
    for fact in (rows[0]["checkpoint"], rows[0]["extractor"], rows[0]["reference"].split()[-1]):
        assert fact in outside
    assert outside.count('alt="samples of') == 5
    assert outside.count('alt="reverse process of') == 3
    assert "ODE (probability flow)" in outside
    assert outside.count("± is a 95 % interval") == 2  # of the likelihood and of its budget
    assert "± and bands are 95 % intervals" in outside
    bound = json.loads((measured / "likelihood.json").read_text())["bits_per_dim"]["continuous"]
    assert f"{bound['mean']:.4f} ± {1.96 * bound['std_error']:.4f}" in outside
    assert "sampler.ddim.eta" in outside
    assert "At most 10 evaluations" in outside


def test_figures_for_papers(measured: Path) -> None:
    names = {path.name for path in (measured / "report").iterdir()}
    for stem in ("FD-digits_nfe", "FD-digits_seconds", "solver_error_nfe", "training"):
        assert {f"{stem}.svg", f"{stem}.png"} <= names
        assert "<text" in (measured / "report" / f"{stem}.svg").read_text()  # text, to be set in the paper's own type
    assert len((measured / "report" / "benchmark.csv").read_text().splitlines()) == 1 + len(
        read_rows(measured / RECORD)
    )


def test_a_sweep_that_is_extended_concludes_from_all_rows(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its sentences are those of the page; table and figure do not shrink; rows of another measurement stay out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    size = len(read_rows(run / RECORD))
    old = {k: v for k, v in read_rows(run / RECORD)[0].items() if k != "estimator"}  # as of 0.1.0
    old["metrics"] = {**old["metrics"], "FD-digits": 0.0}  # it would be the best
    with open(run / RECORD, "a") as file:
        file.write(json.dumps(old) + "\n")
    few = ["--samplers=ddim", "--steps=4", "--num_samples=70", "--device=cpu", "--quiet"]
    capsys.readouterr()
    assert main(["benchmark", f"--workdir={run}", *few]) == 0
    text = capsys.readouterr().out
    assert f"of all {size + 1} rows that can be compared, {size} of other sweeps among them" in text
    with open(run / "benchmark.csv", newline="", encoding="utf-8") as table:
        steps = {(line["sampler"], float(line["value"])) for line in csv.DictReader(table)}
    expected = {("ddim", 2.0), ("ddim", 3.0), ("ddim", 4.0), ("ancestral", 2.0), ("ancestral", 3.0)}
    assert steps == expected | {("probability_flow", 0.1)}
    sentences = [line for line in text.splitlines() if line.startswith(("At most", "Cheapest"))]
    assert len(sentences) == 5
    assert main(["report", f"--workdir={run}", "--quiet"]) == 0
    page = (run / "report.html").read_text()
    assert all(html.escape(sentence) in page for sentence in sentences)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome here")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser: Any, path: Path, width: int) -> tuple[Any, list[str]]:
    page, problems = browser.new_page(viewport={"width": width, "height": 800}), []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#figure-0 .legend .traces")
    return page, problems


@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(measured: Path, browser: Any, width: int) -> None:
    page, problems = open_page(browser, measured / "report.html", width)
    assert problems == []
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing to be scrolled sideways to
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    for figure in page.query_selector_all(".plotly-graph-div"):
        box = figure.bounding_box()
        assert box["width"] <= width
        assert box["height"] > 200
    page.close()


def test_curves_can_be_hidden_and_metrics_chosen(measured: Path, browser: Any) -> None:
    page, problems = open_page(browser, measured / "report.html", 1280)
    shown = "document.getElementById('figure-0').data.filter(d => d.visible !== 'legendonly').length"
    before = page.evaluate(shown)
    assert before == 2 * 3 + 1  # a band and a curve for each sampler, and the training images
    page.click("#figure-0 .legend .traces .legendtoggle >> nth=0", force=True)
    page.wait_for_function(f"{shown} === {before - 2}")  # the band goes with its curve
    page.click("#figure-0 .updatemenu-header")
    page.click("#figure-0 .updatemenu-dropdown-button:has-text('recall')")
    page.wait_for_function("document.getElementById('figure-0').layout.yaxis.title.text === 'recall'")
    recalls = {row["metrics"]["recall"] for row in read_rows(measured / RECORD) if row["sampler"] == "probability_flow"}
    drawn = "document.getElementById('figure-0').data.find(d => d.name === 'probability_flow' && d.text).y"
    assert page.evaluate(drawn) == [pytest.approx(sum(recalls) / len(recalls))]
    curve = page.evaluate("document.getElementById('figure-0').data.findIndex(d => d.name === 'ddim' && d.text)")
    page.evaluate(f"Plotly.Fx.hover('figure-0', [{{curveNumber: {curve}, pointNumber: 0}}])")
    label = page.text_content("#figure-0 .hoverlayer .hovertext")
    for fact in ("ddim, 2 steps", "seeds 0, 1", "eta=0.0", "checkpoint", "extractor", "weights ema", "float32 on cpu"):
        assert fact in label
    assert problems == []
    page.close()


def test_runs_side_by_side(measured: Path, tmp_path: Path, browser: Any) -> None:
    other = copy(measured, tmp_path / "other", checkpoint="another")
    assert main(["report", f"--compare={measured},{other}", "--quiet"]) == 0
    page, problems = open_page(browser, measured / "comparison.html", 390)
    assert problems == []
    names = page.evaluate("document.getElementById('figure-0').data.map(d => d.name)")
    assert {f"{run.name}: ddim" for run in (measured, other)} <= set(names)
    page.close()


@pytest.mark.parametrize("field", ["metric", "extractor", "reference", "num_samples", "kid_subset", "dtype"])
def test_unlike_runs_are_refused(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    unlike: dict[str, Any] = {field: 1 if field in ("num_samples", "kid_subset") else "unlike"}
    if field == "metric":
        unlike["metrics"] = {"unlike": 1.0, "unlike error": 0.1}
    other = copy(measured, tmp_path / "other", **unlike)
    text = refused(capsys, "report", f"--workdir={measured}", f"--compare={other}")
    assert re.search(rf"{field}: .* cannot be compared", text)


def test_unlike_measurements_of_a_run_are_drawn_apart(measured: Path, tmp_path: Path) -> None:
    other = copy(measured, tmp_path / "other")
    rows = read_rows(other / RECORD)
    with open(other / RECORD, "a") as file:
        file.writelines(json.dumps({**row, "num_samples": 99}) + "\n" for row in rows)
    assert main(["report", f"--workdir={other}", "--quiet"]) == 0
    page = (other / "report.html").read_text()
    assert "These measurements differ in num_samples" in page
    assert page.index("FD-digits of 99 samples") < page.index("FD-digits of 70 samples")


def test_a_run_without_a_sweep_says_how_to_make_one(measured: Path, tmp_path: Path) -> None:
    other = copy(measured, tmp_path / "other")
    (other / RECORD).unlink()
    assert main(["report", f"--workdir={other}", "--quiet"]) == 0
    assert "sde-diffusion benchmark --workdir=" in (other / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "workdir=None"),
        (["--workdir=nowhere"], "workdir='nowhere': expected the folder of a run"),
        (["--compare=nowhere"], "two different runs"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert words in refused(capsys, "report", *arguments)


def test_damaged_files_are_named(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (("train.jsonl", "line 1 is not one of a training"), (RECORD, "line 1 is not a row")):
        other = copy(measured, tmp_path / name)
        (other / name).write_text("{}\n{}\n")
        assert words in refused(capsys, "report", f"--workdir={other}")
