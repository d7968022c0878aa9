"""Where samples lie: draws that differ never share a file, nothing is overwritten unasked, nothing of others ever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.locks import one_writer
from sde_diffusion.records import read_record, write_record
from sde_diffusion.runs import save
from sde_diffusion.runs.sample import Drawn
from tests.test_commands import refused
from tests.test_save import DRAW, SHARDS, content, draws, files, run, sample, times
from tests.test_training import train

__all__ = ["draws", "run"]

# --- names --------------------------------------------------------------------------------------------------------

DIFFERENT = [
    [],
    ["--num_samples=4"],
    ["--seed=1"],
    ["--steps=3"],
    ["--config.sampler.ddim.eta=1.0"],
    ["--config.sampler.ddim.eta=0.5"],
    ["--config.sampler.ddim.t_min=0.01"],
    ["--config.sampler.ddim.denoise=False"],
    ["--config.denoiser.thresholding.name=static"],
    ["--config.guidance.name=classifier_free", "--config.guidance.classifier_free.scale=2.0"],
    ["--config.guidance.name=classifier_free", "--config.guidance.classifier_free.scale=3.0"],
    ["--config.precision=bfloat16"],
    ["--config.tf32=True"],
    ["--config.sde.vp.beta_max=19.0"],
    ["--classes=0,1"],
    ["--classes=1,0"],
    ["--conditions=0011.npz"],
    ["--conditions=0110.npz"],
    ["--format=png"],
    ["--shard_size=2"],
    ["--shard_size=3"],
    ["--sampler=ancestral"],
    ["--sampler=pc", "--config.sampler.pc.snr=0.2"],
    ["--sampler=pc", "--config.sampler.pc.predictor=ancestral"],
    ["--sampler=probability_flow", "--config.sampler.probability_flow.rtol=0.1"],
    ["--sampler=probability_flow", "--config.sampler.probability_flow.rtol=0.2"],
]


def test_draws_that_differ_in_anything_never_share_a_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draws: list[tuple[int, int]]
) -> None:
    """Each is drawn, and leaves the files of those before as they are; after all, each is found again."""
    (tmp_path / "run").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for order in ("0011", "0110"):
        np.savez(f"{order}.npz", classes=[int(digit) for digit in order])
    commands = [["--quiet", "--device=cpu", "--num_samples=4", *flags] for flags in DIFFERENT]
    commands[1] = [flag.replace("=4", "=3") for flag in commands[1]]
    for flags in commands:
        if "probability_flow" not in " ".join(flags) and "--steps=3" not in flags:
            flags.append("--steps=2")
    before = content(run / "samples") if (run / "samples").exists() else {}
    for flags in commands:
        draws.clear()
        assert sample(Path("run"), *flags) == 0
        after = content(run / "samples")
        assert draws, flags
        assert before.items() <= after.items(), flags
        assert len(after) > len(before), flags
        before = after
    draws.clear()
    for flags in commands:
        assert sample(Path("run"), *flags) == 0
    assert not draws
    assert content(run / "samples") == before


def test_another_checkpoint_is_another_draw(run: Path, tmp_path: Path, draws: list[tuple[int, int]]) -> None:
    own = tmp_path / "own"
    for steps in (1, 2):
        assert train(own, f"--config.training.num_steps={steps}") == 0
        assert sample(own, *DRAW, "--quiet") == 0
    assert len(list((own / "samples").glob("ddim_2_n10_seed0_*.npz"))) == len(draws) == 2


def test_an_edited_plug_in_is_another_draw(run: Path, tmp_path: Path) -> None:
    """Whose sampler has the same options, and draws otherwise."""
    text = (Path(__file__).parent / "dpmpp_2m.py").read_text()
    found = []
    for comment in ("", "# edited\n"):
        (tmp_path / "mine.py").write_text(text + comment)
        assert sample(run, *DRAW, "--seed=8", "--quiet", f"--plugins={tmp_path / 'mine.py'}") == 0
        found.append(len(list((run / "samples").glob("ddim_2_n10_seed8_*.npz"))))
    assert found == [1, 2]


# --- again, and overwritten ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["--shard_size=4"], ["--format=png", "--shard_size=4"]], ids=str)
def test_the_same_again_changes_nothing_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], draws: list[tuple[int, int]], form: list[str]
) -> None:
    command = [*DRAW, f"--out={tmp_path / 'o'}", *form]
    assert sample(run, *command) == 0
    before, stamps = files(tmp_path), times(tmp_path)
    draws.clear()
    capsys.readouterr()
    assert sample(run, *command, "--batch_size=5") == 0  # which changes no sample
    assert not draws
    said = capsys.readouterr().out
    assert "all of them were there already; --overwrite draws them again" in said
    assert "NFE 2" in said
    assert (files(tmp_path), times(tmp_path)) == (before, stamps)
    assert sample(run, *command, "--overwrite") == 0
    assert sum(n for _, n in draws) == 10
    assert {name: data for name, data in files(tmp_path).items() if "json" not in name} == content(tmp_path)
    assert times(tmp_path).keys() == stamps.keys()
    assert all(stamp > stamps[name] for name, stamp in times(tmp_path).items())


def test_what_is_gone_is_drawn_again_and_nothing_else(run: Path, tmp_path: Path, draws: list[tuple[int, int]]) -> None:
    out = tmp_path / "o"
    command = [*SHARDS, f"--out={out}", "--trajectory", "--quiet"]
    for form, gone, shards in (
        ("npz", ["samples/000004.npz"], [(4, 4)]),
        ("npz", ["samples.png"], [(0, 4)]),
        ("npz", ["samples_trajectory.npz", "samples/000008.npz"], [(0, 4), (8, 2)]),
        ("png", ["samples/000003.png", "samples/000009.png"], [(0, 4), (8, 2)]),
    ):
        assert sample(run, *command, f"--format={form}", "--overwrite") == 0
        before, stamps, record = content(out), times(out), read_record(out / "samples.json")
        for name in gone:
            (out / name).unlink()
        draws.clear()
        assert sample(run, *command, f"--format={form}") == 0
        assert draws == shards
        assert content(out) == before
        assert {name for name, stamp in times(out).items() if stamp != stamps[name]} == set(gone)
        assert read_record(out / "samples.json") == record


def test_a_trajectory_is_added_to_what_was_drawn_without(run: Path, tmp_path: Path) -> None:
    command = [*DRAW, f"--out={tmp_path / 'o'}", "--quiet"]
    assert sample(run, *command) == 0
    stamps = times(tmp_path)
    assert sample(run, *command, "--trajectory") == 0
    after = times(tmp_path)
    assert after.keys() - stamps.keys() == {"o/samples_trajectory.png", "o/samples_trajectory.npz"}
    assert after.items() >= stamps.items()


def test_overwriting_removes_samples_alone(run: Path, tmp_path: Path) -> None:
    """What a person keeps beside and among them stays; of the draw that was there nothing does."""
    out = tmp_path / "o"
    assert sample(run, *SHARDS, f"--out={out}", "--format=png", "--trajectory", "--quiet") == 0
    mine = {"notes.txt", "samples/notes.txt", "samples/7.png", "samples_of_mine.png"}
    for name in mine:
        (out / name).write_text("mine")
    assert sample(run, "--steps=3", "--num_samples=2", "--device=cpu", "--quiet", f"--out={out}", "--overwrite") == 0
    assert files(out).keys() == mine | {"samples.npz", "samples.json", "samples.png"}
    assert all((out / name).read_text() == "mine" for name in mine)
    assert np.load(out / "samples.npz")["x"].shape == (2, 1, 8, 8)


def test_a_draw_that_fails_overwrites_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*DRAW, f"--out={tmp_path / 'o'}", "--quiet"]
    assert sample(run, *command) == 0
    before = files(tmp_path)

    def fail(*given: Any, **how: Any) -> Drawn:
        raise sd.InputError("the state is not finite")

    monkeypatch.setattr(save, "draw", fail)
    assert "not finite" in refused(capsys, "sample", f"--workdir={run}", *command, "--overwrite", "--seed=1")
    assert files(tmp_path) == before


# --- a place of one's own -----------------------------------------------------------------------------------------


def test_out_is_a_folder_of_ones_own(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "samples.txt").write_text("mine")
    before = files(run)
    for out in ("~/deep/er", str(tmp_path / "empty"), "~/notes"):
        assert sample(run, *DRAW, f"--out={out}", "--quiet") == 0
        path = Path(out).expanduser()
        assert {"samples.npz", "samples.json", "samples.png"} <= {p.name for p in path.iterdir()}
    assert files(run) == before


def foreign(out: Path, name: str) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("name", ["samples.npz", "samples.png", "samples/cat.png", "samples", "samples_trajectory.npz"])
def test_files_of_others_are_never_touched(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, overwrite: list[str]
) -> None:
    foreign(tmp_path / "o", name)
    text = refused(capsys, "sample", f"--workdir={run}", *DRAW, f"--out={tmp_path / 'o'}", *overwrite)
    place = str(tmp_path / "o" / name.partition("/")[0])
    assert f"out='{place}': expected nothing there, for no samples.json tells what it is; move it away" in text
    assert files(tmp_path) == {f"o/{name}": b"mine"}


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_a_record_that_is_none_of_samples(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overwrite: list[str]
) -> None:
    command = ["sample", f"--workdir={run}", *DRAW, f"--out={tmp_path}", *overwrite]
    (tmp_path / "samples.json").write_text("{}")
    assert "expected a record of samples, or no such file; give another --out" in refused(capsys, *command)
    (tmp_path / "samples.json").write_text("[")
    assert "expected a JSON file" in refused(capsys, *command)
    write_record(tmp_path / "samples.json", {"identity": {}, "drawn": 3})
    damaged = (tmp_path / "samples.json").read_text().replace("3", "4", 1)
    (tmp_path / "samples.json").write_text(damaged)
    assert "is not as it was written" in refused(capsys, *command)
    assert files(tmp_path) == {"samples.json": damaged.encode()}


@pytest.mark.parametrize(
    ("flags", "differs"),
    [
        (["--seed=3"], "seed"),
        (["--num_samples=9"], "num_samples"),
        (["--shard_size=5"], "shard_size"),
        (["--format=png"], "format"),
        (["--config.sampler.ddim.eta=1.0", "--classes=7"], "sampler, conditions"),
    ],
)
def test_another_draw_in_one_place_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], differs: str
) -> None:
    command = ["sample", f"--workdir={run}", *SHARDS, f"--out={tmp_path}", "--quiet"]
    assert main(command) == 0
    before = files(tmp_path)
    text = refused(capsys, *command, *flags)
    assert f"no samples of another draw there; these differ in {differs}; give another --out, or --overwrite" in text
    assert files(tmp_path) == before
    assert main([*command, *flags, "--overwrite"]) == 0


def test_a_place_that_is_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    command = ["sample", f"--workdir={run}", *DRAW]
    assert f"out='{tmp_path / 'file'}': expected a folder" in refused(capsys, *command, f"--out={tmp_path / 'file'}")
    assert "Not a directory; give another path" in refused(capsys, *command, f"--out={tmp_path / 'file' / 'o'}")
    assert "expected a whole number of at least 1" in refused(capsys, *command, "--shard_size=0")
    refused(capsys, *command, "--format=jpg")
    assert files(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_may_not_be_written_to(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    text = refused(capsys, "sample", f"--workdir={run}", *DRAW, f"--out={tmp_path}")
    assert "Permission denied; give another path" in text


def test_one_process_draws_into_one_place(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_writer(tmp_path, "samples"):
        text = refused(capsys, "sample", f"--workdir={run}", *DRAW, f"--out={tmp_path}")
    assert "its samples is being written by process" in text
