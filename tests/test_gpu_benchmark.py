"""``benchmarks/gpu.py`` in miniature on the CPU, and how it keeps its time and goes on after a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


@pytest.fixture
def parts(gpu: ModuleType) -> ModuleType:
    import gpu_parts

    return gpu_parts


def test_what_would_pass_the_time_is_left_out(parts: ModuleType) -> None:
    until = parts.Until(time.monotonic() + 60.0)
    assert until.measure({"batch": 1}, 1.0, lambda: {"found": 2})["found"] == 2
    row = until.measure({"batch": 512}, 61.0, lambda: pytest.fail("was run"))
    assert row["batch"] == 512
    assert "would take about 61 s of the" in row["left_out"]


def test_a_failure_is_recorded_and_raises_nothing(parts: ModuleType) -> None:
    row = parts.Until(time.monotonic() + 60.0).measure({"batch": 1}, 1.0, lambda: {"found": 1 // 0})
    assert row["error"] == "ZeroDivisionError: integer division or modulo by zero"
    assert "found" not in row


WRITES_ONE = "import sys, pathlib, time; pathlib.Path(sys.argv[-1]).write_text('{\"a\": 1}\\n{\"b\"'); print('said'); "


@pytest.mark.parametrize(
    ("ends", "key", "words"),
    [("time.sleep(600)", "left_out", "the rest of it, for its 2 s were over"), ("sys.exit(3)", "error", "code 3")],
)
def test_a_part_that_hangs_or_breaks_is_ended_and_its_whole_rows_are_kept(
    ends: str, key: str, words: str, gpu: ModuleType, tmp_path: Path
) -> None:
    until = time.monotonic() + 2.4
    rows, failed = gpu.in_time([sys.executable, "-u", "-c", WRITES_ONE + ends], until, tmp_path)
    assert rows == [{"a": 1}]
    assert words in failed[key]
    assert failed["output"] == "said\n"


def test_costs_are_taken_along_a_straight_line(parts: ModuleType) -> None:
    """Of two batches that took 1 and 3 s for 10 steps, at 4 and 8 images; before them in proportion to the one."""
    costs = parts.Costs()

    def learn(batch: int, seconds: float, mode: str, compiles: bool = False) -> None:
        row = {"network": "a", "ours": mode, "batch": batch, "steps": 10, "seconds": seconds, parts.IMAGES: {}}
        costs.learn(row, compiles)

    learn(4, 1.0, "bfloat16")
    assert costs.of("a", "bfloat16", 8, 10, False) == pytest.approx(2.0)
    learn(8, 3.0, "bfloat16")
    assert costs.of("a", "bfloat16", 16, 20, False) == pytest.approx(2 * (3.0 + 8 * 0.5))
    learn(4, 21.0, "bfloat16, graphs", compiles=True)
    assert costs.of("a", "bfloat16, compiled", 4, 10, True) == pytest.approx(1.0 + 20.0)


def test_without_a_card_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "no CUDA device is here; --dry runs in miniature on the CPU" in capsys.readouterr().err


NO_DIFFUSERS = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "diffusers" else find(name, *rest)
"""


@pytest.mark.slow
@pytest.mark.parametrize("diffusers", [True, False])
def test_in_miniature(diffusers: bool, tmp_path: Path) -> None:
    """Every part runs, nothing fails; without `diffusers` ours alone, which is said."""
    out, environment = tmp_path / "gpu.json", dict(os.environ)
    if not diffusers:
        (tmp_path / "sitecustomize.py").write_text(NO_DIFFUSERS)
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(BENCHMARKS.parent)])
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry", f"--output={out}", "--seconds=3000"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert not [row for row in rows if "error" in row]
    assert [row["part"] for row in rows if "left_out" in row] == [*([] if diffusers else ["all"]), "tests"]
    assert {row["part"] for row in rows} >= {"tests", "training", "likelihood", "sampling"}
    sampled = [row for row in rows if row["part"] == "sampling"]
    assert {row["ours"] for row in sampled} == {"float32", "bfloat16", "bfloat16, compiled", "bfloat16, graphs"}
    assert all(
        ("over_theirs" in row) == diffusers for row in rows if row["part"] in ("training", "likelihood", "sampling")
    )
    assert "| sampling | mnist | 2 | 3 | bfloat16, graphs |" in done.stdout
