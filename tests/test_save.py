"""Samples in shards: they are the samples, a killed draw goes on bit for bit, one shard at a time is in memory."""

from __future__ import annotations

import errno
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.records import read_record
from sde_diffusion.runs import save
from sde_diffusion.runs.sample import Drawn
from sde_diffusion.runs.save import SavingOptions
from tests.test_interrupts import started
from tests.test_training import train

DRAW = ["--steps=2", "--num_samples=10", "--batch_size=2", "--device=cpu"]
SHARDS = [*DRAW, "--shard_size=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with classes."""
    workdir = tmp_path_factory.mktemp("run")
    assert train(workdir, "--config.training.num_steps=2", "--config.network.unet.num_classes=10") == 0
    return workdir


def sample(run: Path, *flags: str) -> int:
    return main(["sample", f"--workdir={run}", *flags])


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def content(folder: Path) -> dict[str, bytes]:
    """What was drawn: everything but the record, in which times are."""
    return {name: data for name, data in files(folder).items() if not name.endswith(".json")}


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """First sample and number of samples of every shard that is drawn."""
    seen: list[tuple[int, int]] = []
    original = save.draw

    def draw(run: Any, sampler: Any, n: int, **how: Any) -> Drawn:
        seen.append((how["first_index"], n))
        return original(run, sampler, n, **how)

    monkeypatch.setattr(save, "draw", draw)
    return seen


def in_the_third(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen as the third shard is begun."""
    original, begun = save.draw, []

    def draw(*given: Any, **how: Any) -> Drawn:
        begun.append(how["first_index"])
        if len(begun) == 3:
            happens()
        return original(*given, **how)

    monkeypatch.setattr(save, "draw", draw)


# --- shards -------------------------------------------------------------------------------------------------------


def test_shards_are_the_samples(run: Path, tmp_path: Path) -> None:
    """Those that Python draws at once, bit for bit, for the batches are the same."""
    whole = sd.open_run(run, device="cpu").sample(num_steps=2, n=10, batch_size=2, classes="3,5", quiet=True)
    assert sample(run, *SHARDS, "--classes=3,5", "--quiet", f"--out={tmp_path}") == 0
    names = ["000000.npz", "000004.npz", "000008.npz"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names
    shards = [dict(np.load(tmp_path / "samples" / name)) for name in names]
    assert [len(shard["x"]) for shard in shards] == [4, 4, 2]
    for name, values in {"x": whole.x, "z": whole.z, "classes": whole.conditions["classes"]}.items():
        assert np.array_equal(np.concatenate([shard[name] for shard in shards]), values.numpy())
    record = read_record(tmp_path / "samples.json")
    assert (record["drawn"], record["nfe"], record["step"]) == (10, whole.nfe, 2)
    assert record["identity"]["num_samples"] == 10


def test_from_python(run: Path, tmp_path: Path) -> None:
    opened = sd.open_run(run, device="cpu")
    how: dict[str, Any] = {"num_steps": 2, "n": 10, "batch_size": 2, "quiet": True, "eta": 0.5}
    saved = opened.save_samples("ddim", saving=SavingOptions(tmp_path / "a", shard_size=4), **how)
    assert saved.files == tuple(tmp_path / "a" / name for name in ("samples", "samples.json", "samples.png"))
    assert (saved.count, saved.before, saved.changed, saved.shown, saved.nfe) == (10, 0, True, 4, 2.0)
    assert sample(run, *SHARDS, "--config.sampler.ddim.eta=0.5", "--quiet", f"--out={tmp_path / 'b'}") == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")
    again = opened.save_samples("ddim", saving=SavingOptions(tmp_path / "a", shard_size=4), **how)
    assert (again.before, again.changed, again.nfe, again.seconds) == (10, False, saved.nfe, saved.seconds)
    for bad in ({"format": "tar"}, {"shard_size": 0}, {"shard_size": 2.0}):
        with pytest.raises(sd.InputError, match=next(iter(bad))):
            SavingOptions(**bad)  # type: ignore[arg-type]


def test_no_more_than_two_shards_are_in_memory(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 shards, whenever one has been drawn; and none of them is a view of something larger."""
    kept: list[weakref.ref[torch.Tensor]] = []
    alive, sizes = [], []
    original = save.draw

    def draw(*given: Any, **how: Any) -> Drawn:
        drawn = original(*given, **how)
        for part in (drawn.x, drawn.z, *drawn.conditions.values()):
            kept.append(weakref.ref(part))
            sizes.append(part.untyped_storage().nbytes() / part.element_size() / part[0].numel())
        alive.append(sum(ref() is not None for ref in kept))
        return drawn

    monkeypatch.setattr(save, "draw", draw)
    flags = ["--steps=1", "--num_samples=40", "--shard_size=2", "--classes=1", "--device=cpu", "--quiet"]
    assert sample(run, *flags, f"--out={tmp_path}") == 0
    assert len(alive) == 20
    assert max(alive) <= 2 * 3
    held = [size for i, size in enumerate(sizes) if i % 3 < 2]  # a shard's conditions are a view of all: no samples
    assert set(held) == {2.0}


# --- killed, and gone on with -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What uninterrupted draws write, by format."""
    found = {}
    for form in ("npz", "png"):
        out = tmp_path_factory.mktemp(form)
        assert sample(run, *SHARDS, f"--format={form}", "--quiet", f"--out={out}") == 0
        found[form] = content(out)
    return found


@pytest.mark.parametrize("form", ["npz", "png"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_draw_that_was_stopped_goes_on(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    draws: list[tuple[int, int]],
    whole: dict[str, dict[str, bytes]],
    number: signal.Signals,
    code: int,
    form: str,
) -> None:
    command = [*SHARDS, f"--format={form}", f"--out={tmp_path}"]
    with monkeypatch.context() as patch:
        in_the_third(patch, lambda: signal.raise_signal(number))
        capsys.readouterr()
        assert sample(run, *command, "--quiet") == code
    said = capsys.readouterr().err
    where = tmp_path / "samples"
    assert said == f"sde-diffusion: stopped with 8 of 10 samples in {where}; the same command goes on from there\n"
    lacking = {"npz": {"samples/000008.npz"}, "png": {"samples/000008.png", "samples/000009.png"}}[form]
    assert content(tmp_path) == {name: data for name, data in whole[form].items() if name not in lacking}
    assert read_record(tmp_path / "samples.json")["drawn"] == 8
    draws.clear()
    assert sample(run, *command) == 0
    assert draws == [(8, 2)]
    assert "8 of them were there already" in capsys.readouterr().out
    assert content(tmp_path) == whole[form]
    assert read_record(tmp_path / "samples.json")["nfe"] == 2.0


def test_stopped_at_once_nothing_is_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = save.draw

    def draw(*given: Any, **how: Any) -> Drawn:
        signal.raise_signal(signal.SIGTERM)
        return original(*given, **how)

    monkeypatch.setattr(save, "draw", draw)
    capsys.readouterr()
    assert sample(run, *DRAW, f"--out={tmp_path / 'o'}", "--quiet") == 143
    assert capsys.readouterr().err == "sde-diffusion: stopped before the first shard was drawn; nothing is written\n"
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("form", ["npz", "png"])
def test_killed_between_a_shard_and_its_record(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, dict[str, bytes]], form: str
) -> None:
    """The shard is there and not counted: it is drawn again, and the same, and then counted."""
    command = [*SHARDS, f"--format={form}", f"--out={tmp_path}", "--quiet"]
    original = save.write_record

    def write(path: Path, record: dict[str, Any]) -> None:
        if record["drawn"] == 8:
            raise ZeroDivisionError
        original(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(save, "write_record", write)
        with pytest.raises(ZeroDivisionError):
            sample(run, *command)
    assert read_record(tmp_path / "samples.json")["drawn"] == 4
    assert sample(run, *command) == 0
    assert content(tmp_path) == whole[form]
    record = read_record(tmp_path / "samples.json")
    assert (record["drawn"], record["nfe"]) == (10, 2.0)


def test_a_full_disk_keeps_finished_shards(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    whole: dict[str, dict[str, bytes]],
) -> None:
    command = [*SHARDS, f"--out={tmp_path}", "--quiet"]

    def full(path: Path, **arrays: Any) -> None:
        Path(path).write_bytes(b"PK half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    capsys.readouterr()
    with monkeypatch.context() as patch:
        in_the_third(patch, lambda: patch.setattr(np, "savez_compressed", full))
        assert sample(run, *command) == 1
    said = capsys.readouterr().err
    assert "No space left on device; nothing is left half-written, and what was finished is kept" in said
    assert said.count("\n") == 1
    assert content(tmp_path).keys() == whole["npz"].keys() - {"samples/000008.npz"}
    assert sample(run, *command) == 0
    assert content(tmp_path) == whole["npz"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("form", ["npz", "png"])
def test_a_process_that_is_killed_leaves_whole_shards(
    run: Path, tmp_path: Path, number: signal.Signals, form: str
) -> None:
    """At any moment; the same command then gives what an uninterrupted one does, bit for bit."""
    flags = ["--steps=10", "--num_samples=200", "--shard_size=20", "--batch_size=20", "--device=cpu"]
    command = ["sample", f"--workdir={run}", *flags, f"--format={form}", "--quiet"]
    process = started(*command, f"--out={tmp_path / 'killed'}")
    deadline = time.monotonic() + 120.0
    folder = tmp_path / "killed" / "samples"
    while len(list(folder.glob("*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert len(said.splitlines()) == (number != signal.SIGKILL)
    left = content(folder)
    assert main([*command, f"--out={tmp_path / 'whole'}"]) == 0
    expected = content(tmp_path / "whole")
    assert 0 < len(left) < len(expected) - 1
    assert {f"samples/{name}": data for name, data in left.items()}.items() <= expected.items()
    assert main([*command, f"--out={tmp_path / 'killed'}"]) == 0
    assert content(tmp_path / "killed") == expected
    assert not list(tmp_path.rglob(".*"))
