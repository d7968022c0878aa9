"""What stands beside the work, pictures, logs, caches, never ends it: a line says what is left out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from sde_diffusion.commands.main import main
from sde_diffusion.evaluation.metrics import cache_folder
from sde_diffusion.evaluation.sweep import read_rows
from sde_diffusion.networks.execution import execute
from sde_diffusion.training import checkpoints
from sde_diffusion.training.log import read_log
from tests.test_commands import trained
from tests.test_full_disk import room_for
from tests.test_resume import SMALL, on

__all__ = ["trained"]


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@contextmanager
def blocked(*paths: Path) -> Iterator[None]:
    """Let no file be written to a path: a folder with something in it is there."""
    for path in paths:
        path.unlink(missing_ok=True)
        (path / "somebody's").mkdir(parents=True)
    yield
    for path in paths:
        shutil.rmtree(path)


def test_training_goes_on_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", f"--workdir={tmp_path}", *SMALL]) == 0
    [line] = lines(capsys)
    assert "tensorboard from step 0 on is left out: " in line
    assert len(read_log(tmp_path)) == 1


@pytest.mark.parametrize("name", ["train.jsonl", "tensorboard"])
def test_training_goes_on_without_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    if name == "tensorboard":
        (tmp_path / name).write_text("a file in its place")
    with blocked(tmp_path / "train.jsonl") if name == "train.jsonl" else nullcontext():
        assert main(["train", f"--workdir={tmp_path}", *SMALL]) == 0
    [line] = lines(capsys)
    assert f"{name} from step 0 on is left out: " in line
    assert checkpoints.read(tmp_path).step == 2


def test_training_goes_on_where_its_log_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line that did not fit is gone, those before it stay, and when there is room it is written again."""
    assert main(["train", f"--workdir={tmp_path}", *SMALL]) == 0
    log = tmp_path / "train.jsonl"
    log.write_bytes(log.read_bytes() * 2000)
    before = log.read_bytes()
    with room_for(len(before) + 10):
        assert on(tmp_path, steps=4) == 0
    [line] = lines(capsys)
    assert "train.jsonl from step 4 on is left out: " in line
    assert log.read_bytes() == before
    assert on(tmp_path, steps=6) == 0
    assert lines(capsys) == []
    assert [row["step"] for row in read_log(tmp_path)] == [2] * 2000 + [6]


def test_no_traceback_of_tensorboard_on_a_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its file may not grow beyond a few bytes, while the checkpoint before it is there."""
    assert main(["train", f"--workdir={tmp_path}", *SMALL]) == 0
    capfd.readouterr()
    with room_for(1000):
        assert on(tmp_path, "--config.training.log_every=1", steps=50) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert "nothing is left half-written" in error


@pytest.mark.parametrize(("write", "name"), [("save_grid", "samples.png"), ("save_strip", "samples_trajectory.png")])
def test_samples_are_kept_without_their_picture(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: str,
    name: str,
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise OSError("no room for it")

    monkeypatch.setattr(f"sde_diffusion.runs.sample.{write}", fails)
    about = ["--steps=2", "--num_samples=2", "--device=cpu", "--trajectory", f"--out={tmp_path}"]
    assert main(["sample", f"--workdir={trained}", *about]) == 0
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if f"{name} is left out: " in line]
    assert (tmp_path / "samples.npz").exists()
    assert "wrote samples.npz, .json" in out
    assert not (tmp_path / name).exists()


def test_a_likelihood_is_kept_without_its_picture(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--num_images=2", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5", "--quiet", "--device=cpu"]
    with blocked(trained / "likelihood.png"):
        assert main(["likelihood", f"--workdir={trained}", *few]) == 0
    assert [line for line in lines(capsys) if "likelihood.png is left out: " in line]
    assert (trained / "likelihood.json").exists()


def test_a_sweep_is_kept_without_cache_table_and_pictures(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    flags = ["--samplers=ddim", "--steps=2", "--num_samples=70", "--quiet", "--device=cpu"]
    with blocked(trained / "benchmark.csv", trained / "benchmark.png"):
        assert main(["benchmark", f"--workdir={trained}", *flags]) == 0
    said = "\n".join(lines(capsys))
    for name in ("benchmark.csv", "benchmark.png", ".npz"):
        assert f"{name} is left out: " in said
    assert read_rows(trained / "benchmark.jsonl")


def test_a_report_is_kept_without_its_figures(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "report").write_text("a file in the place of the folder")
    assert main(["report", f"--workdir={trained}", "--quiet"]) == 0
    assert [line for line in lines(capsys) if "training.svg and training.png is left out" in line]
    assert (trained / "report.html").exists()


def test_there_is_a_cache_for_who_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_folder().is_absolute()


def test_a_compiler_keeps_its_work_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is compiled yet: the place is looked at first."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc")
    execute(torch.nn.Linear(2, 2), compiled=True)
    [line] = lines(capsys)
    assert "the cache of the compiler is left out: " in line
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_dir()
