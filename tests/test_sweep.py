"""``sde-diffusion benchmark``: rows that are never repeated or mixed, repair of the record, the recommendation."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.evaluation import sweep as sweeping
from sde_diffusion.evaluation.curves import (
    SOLVER_ERROR,
    Point,
    curve_names,
    measurements,
    metric_names,
    points,
    recommendation,
)
from sde_diffusion.evaluation.sweep import Setting, append_row, read_rows, settings
from sde_diffusion.records import drop_torn_line
from sde_diffusion.runs import sweep as command
from tests.test_commands import refused, trained

__all__ = ["trained"]


def row(sampler: str = "ddim", value: float = 10, seed: int = 0, metric: float = 5.0, **fields: Any) -> dict[str, Any]:
    alike = {
        "metric": "FD-x",
        "extractor": "e",
        "reference": "r",
        "num_samples": 9,
        "kid_subset": 0,
        "checkpoint": "c",
        "dtype": "f",
        "estimator": 2,
    }
    numbers = {"nfe": value, "seconds": 1.0, "metrics": {"FD-x": metric, "FD-x error": 0.3}}
    return {
        **alike,
        "options": {"eta": 0.0},
        "solver_error": None,
        "provenance": {},
        "sampler": sampler,
        "option": "num_steps",
        "value": value,
        "seed": seed,
        **numbers,
        **fields,
    }


def test_plan_covers_all_and_takes_the_cheap_first() -> None:
    plan = settings({"ddim": ["num_steps"], "flow": ["rtol", "atol"]}, [5, 10], [1e-1, 1e-2, 1e-3], [0, 1])
    assert len(plan) == len(set(plan)) == 2 * (2 + 3)
    assert [s.value for s in plan[:4]] == [5, 1e-1, 5, 1e-1]


def test_torn_last_line_is_repaired_and_others_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "benchmark.jsonl"
    assert read_rows(path) == []
    append_row(path, row())
    append_row(path, row(value=20))
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 3])
    capsys.readouterr()
    assert [r["value"] for r in read_rows(path)] == [10, 20]
    assert "its last line, number 3, is torn" in capsys.readouterr().err
    drop_torn_line(path)  # by the writer alone: a reader may see a line that is being written
    assert path.read_text() == whole
    path.write_text(whole.replace('{"metric"', '{"metr', 1))
    with pytest.raises(sd.InputError, match=r"benchmark.jsonl: line 1 is not a row"):
        read_rows(path)


def test_a_killed_sweep_goes_on_without_repeating(tmp_path: Path) -> None:
    path, plan = tmp_path / "b.jsonl", settings({"a": ["num_steps"], "b": ["num_steps"]}, [1, 2, 3], [], [0, 1])
    key = {name: row()[name] for name in sweeping.ALIKE}
    numbers = {name: value for name, value in row().items() if name not in (*key, *vars(plan[0]), "options")}
    ran: list[Setting] = []
    stems: set[str] = set()

    def run(setting: Setting, stem: str) -> dict[str, Any]:
        stems.add(stem)
        if len(ran) == limit:
            raise KeyboardInterrupt
        ran.append(setting)
        return {**numbers, "nfe": setting.value}

    def go(key: dict[str, Any]) -> list[dict[str, Any]]:
        return sweeping.sweep(path, read_rows(path), plan, key, lambda s: {"eta": 0.0}, run, lambda row, new: None)

    limit = 5
    with pytest.raises(KeyboardInterrupt):
        go(key)
    limit = 99
    rows = go(key)
    assert ran == plan  # each once
    assert [(r["sampler"], r["value"], r["seed"]) for r in rows] == [(s.sampler, s.value, s.seed) for s in plan]
    assert rows == read_rows(path)
    go({**key, "checkpoint": "d"})  # another checkpoint is another measurement
    assert len(ran) == 2 * len(plan)
    assert len(stems) == len(ran)  # files of one run never overwrite those of another


@pytest.mark.parametrize("field", sweeping.ALIKE)
def test_unlike_rows_are_not_compared(field: str) -> None:
    with pytest.raises(sd.InputError, match=f'{field}: .*"?other"? cannot be compared'):
        points([row(), row(value=20) | {field: "other"}])


def test_points_are_means_with_the_larger_error() -> None:
    (one,) = points([row(seed=0, metric=4.0), row(seed=1, metric=6.0)])
    assert (one.metric, len(one.rows)) == (5.0, 2)
    assert one.error == pytest.approx(math.sqrt(2.0) / math.sqrt(2.0))  # spread of the seeds over that of the bootstrap
    (two,) = points([row()])
    assert two.error == 0.3
    assert one.interval == pytest.approx((5.0 - 1.96 * one.error, 5.0 + 1.96 * one.error))
    assert one.told == "5 ± 2 (95 %)"


def test_a_point_without_an_error_has_no_interval() -> None:
    unknown = {"FD-x": 5.0, "FD-x error": None}  # NaN, as it is stored
    for rows in ([row(metrics=unknown)], [row(metrics=unknown), row(seed=1, metrics=unknown)]):
        (one,) = points(rows)
        assert math.isnan(one.error)
        assert (one.text, one.told, one.interval) == ("5", "5", (5.0, 5.0))
        assert "(a with" not in recommendation([one], "FD-x")[-1]
    assert "± " not in command.line_of(row(metrics=unknown))
    assert command.line_of(row()).endswith("FD-x 5 ± 0.59 (95 %)")  # 1.96 · 0.3
    (bad,) = points([row(metric=math.nan), row(seed=1, metric=math.nan)])
    assert math.isnan(bad.metric)
    (alone,) = points([row(metrics={"FD-x": 1.0, "FD-x error": 0.1, "other": 2.0})], "other")
    assert alone.text == "2"


def test_curves_are_told_apart_by_what_differs() -> None:
    rows = [row(), row() | {"options": {"eta": 1.0}}, row("pc")]
    assert curve_names(rows) == ["ddim (eta=0.0)", "ddim (eta=1.0)", "pc"]
    assert [p.curve for p in points(rows)] == curve_names(rows)
    runs = [row() | {"run": "a"}, row() | {"run": "b", "checkpoint": "d"}]
    assert [p.curve for p in points(runs)] == ["a: ddim", "b: ddim"]  # runs may differ in checkpoint, and only there
    with pytest.raises(sd.InputError, match="num_samples: 9 and 10 cannot be compared"):
        points([runs[0], runs[1] | {"num_samples": 10}])


def test_other_metrics_and_what_is_missing() -> None:
    rows = [row(metrics={"FD-x": 1.0, "FD-x error": 0.1, "KID": 2.0}), row(seed=1, metrics={"FD-x": 3.0, "KID": 4.0})]
    assert metric_names(rows) == ["FD-x", "KID"]
    (kid,) = points(rows, "KID")
    assert (kid.metric, kid.error) == (3.0, 1.0)  # the two seeds differ by 2: √2 / √2
    assert points(rows, SOLVER_ERROR) == []
    (solver,) = points([row(solver_error=0.25), row("pc")], SOLVER_ERROR)
    assert (solver.curve, solver.metric, solver.error) == ("ddim", 0.25, 0.0)


def test_the_newest_measurement_comes_first() -> None:
    a, b = row(), row(value=20) | {"num_samples": 99}
    assert measurements([a, b, row(value=50)]) == [[a, row(value=50)], [b]]


def test_recommendation() -> None:
    def point(sampler: str, nfe: float, metric: float, error: float) -> Point:
        return Point(sampler, "num_steps", nfe, nfe, 1.0, metric, error, ())

    found = [point("a", 5, 30.0, 1.0), point("b", 19, 6.0, 0.5), point("a", 50, 5.5, 0.4), point("a", 400, 1.0, 0.1)]
    found += [point("c", 90, 1.1, 0.1), point("broken", 8, math.nan, 0.1)]
    sentences = recommendation(found, "FD-x")
    assert sentences[0] == "At most 10 evaluations: a with 5 steps (5 evaluations), FD-x 30 ± 2 (95 %)."
    assert "b with 19 steps" in sentences[1]
    assert "a with 50 steps" in sentences[2]
    assert "c with 90 steps" in sentences[3]
    assert sentences[4].startswith("Cheapest within the error of the best (a with 400 steps")
    assert "c with 90 steps (90 evaluations)" in sentences[4]


def benchmark(workdir: Path, *flags: str) -> int:
    return main(["benchmark", f"--workdir={workdir}", "--quiet", "--device=cpu", "--num_samples=80", *flags])


def test_command(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ("--samplers=ddim,ancestral,probability_flow", "--steps=2,3", "--tolerances=0.1", "--seeds=0,1")
    assert benchmark(trained, *flags) == 0
    rows = read_rows(trained / "benchmark.jsonl")
    assert len(rows) == 2 * (2 + 2 + 1)
    for r in rows:
        assert r["metric"] == "FD-digits"
        assert r["metrics"]["FD-digits"] > 0.0
        assert (r["solver_error"] is None) == (r["sampler"] == "ancestral")
        assert r["nfe"] == r["value"] or r["option"] == "tolerance"
    errors = {r["value"]: r["solver_error"] for r in rows if r["sampler"] != "ancestral" and r["seed"] == 0}
    assert errors[0.1] < errors[2]  # an adaptive solution lies nearer to the exact one than two steps
    assert benchmark(trained, *flags) == 0
    assert read_rows(trained / "benchmark.jsonl") == rows
    table = list(csv.DictReader((trained / "benchmark.csv").read_text().splitlines()))
    assert [float(line["FD-digits"]) for line in table] == [
        pytest.approx(r["metrics"]["FD-digits"]) for r in sorted(rows, key=lambda r: _place(r, table))
    ]
    assert (trained / "benchmark.png").read_bytes()[:4] == b"\x89PNG"


def test_a_killed_row_goes_on_with_its_next_batch(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ("--samplers=ancestral,ddim", "--steps=7", "--batch_size=30")  # 7 of no other test
    whole = shutil.copytree(trained, tmp_path / "whole")
    assert benchmark(whole, *flags) == 0
    killed = shutil.copytree(trained, tmp_path / "killed")
    firsts: list[int] = []
    draw = command.draw

    def dying_draw(*arguments: Any, **options: Any) -> Any:
        if len(firsts) == 2:
            raise KeyboardInterrupt
        firsts.append(options.get("first_index", -1))
        return draw(*arguments, **options)

    monkeypatch.setattr(command, "draw", dying_draw)
    benchmark(killed, *flags)
    firsts.append(-1)  # one more than it dies at
    assert benchmark(killed, *flags) == 0
    assert [first for first in firsts if first >= 0] == [0, 30, 60, 0, 30, 60]  # each batch of both rows once
    assert not [path for path in (killed / "benchmark").iterdir() if path.is_dir()]
    for a, b in zip(*(read_rows(folder / "benchmark.jsonl")[-2:] for folder in (whole, killed)), strict=True):
        assert {name: a[name] for name in FOUND} == {name: b[name] for name in FOUND}


FOUND = ("sampler", "nfe", "metrics", "solver_error", "training_images")
"""Of a row, what is the same however often it is computed."""


def _place(r: dict[str, Any], table: list[dict[str, str]]) -> int:
    keys = [(line["sampler"], float(line["value"]), int(line["seed"])) for line in table]
    return keys.index((r["sampler"], float(r["value"]), r["seed"]))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--steps=0", "steps=0"),
        ("--steps=ten", "steps='ten'"),
        ("--steps=5,1.5", "numbers separated by commas"),
        ("--seeds=-1", "seeds=-1"),
        ("--tolerances=0", "rtol=0"),
        ("--samplers=dddim", "dddim"),
        ("--num_samples=20", "samples=20: expected at least 65 images"),
        ("--extractor=resnet", "extractor='resnet'"),
        ("--extractor=fashion", "for extractor 'fashion'"),
        ("--kid_subset=81", "expected at least 81 images"),
        ("--inception_weights=none.pth", "none.pth"),
    ],
)
def test_bad_input(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    words: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = [
        "--samplers=ddim,probability_flow",
        "--steps=2",
        "--tolerances=0.1",
        "--num_samples=80",
        "--quiet",
        "--device=cpu",
    ]
    name = flag.partition("=")[0]
    arguments = [f for f in base if f.partition("=")[0] != name]
    assert words in refused(capsys, "benchmark", f"--workdir={trained}", *arguments, flag)


def test_broken_record_is_one_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained / "benchmark.jsonl"
    kept = path.read_text() if path.exists() else None
    path.write_text(json.dumps({"not": "a row"}) + "\n" + json.dumps(row()) + "\n")
    text = refused(capsys, "benchmark", f"--workdir={trained}", "--samplers=ddim", "--steps=2", "--num_samples=80")
    assert "line 1" in text
    path.write_text(kept) if kept is not None else path.unlink()
