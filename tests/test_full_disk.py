"""A disk that is full: one line, exit code 1, nothing half-written, and the same command goes on when there is room."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sde_diffusion.commands.main import main
from tests.test_commands import trained
from tests.test_training import SMALL

__all__ = ["trained"]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes: the system refuses the write, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stopped(capsys: pytest.CaptureFixture[str], size: int, *arguments: str) -> None:
    capsys.readouterr()
    with room_for(size):
        assert main([*arguments, "--quiet"]) == 1
    *before, text = capsys.readouterr().err.splitlines()
    assert text.startswith("sde-diffusion: ")
    assert "File too large; nothing is left half-written" in text
    assert all(" is left out: " in line for line in before)  # what stands beside, and ended nothing


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--num_samples=64", "--steps=2"],
        ["likelihood", "--num_images=2", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5"],
        ["report"],
    ],
)
def test_nothing_is_left_half_written(trained: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    before = files(trained)
    stopped(capsys, 1000, command[0], f"--workdir={trained}", *command[1:])
    assert files(trained) == before


def test_a_sweep_goes_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["benchmark", f"--workdir={trained}", "--samplers=ddim", "--num_samples=70"]
    assert main([*command, "--steps=2", "--quiet"]) == 0
    whole = (trained / "benchmark.jsonl").read_bytes()
    (trained / "benchmark").rename(tmp_path / "pictures")  # they are smaller than the record: let it be what is full
    stopped(capsys, len(whole) + 100, *command, "--steps=2,3")
    assert (trained / "benchmark.jsonl").read_bytes() == whole
    assert main([*command, "--steps=2,3", "--quiet"]) == 0
    assert (trained / "benchmark.jsonl").read_bytes().startswith(whole)


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", f"--workdir={tmp_path}", "--device=cpu", *SMALL, "--config.training.num_steps=2"]
    stopped(capsys, 12_000, *command)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert main([*command, "--quiet"]) == 0
