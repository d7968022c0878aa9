"""Runs that come with the package: drawn from at once, scored and reported like one's own, and never written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import samplers
import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.training import checkpoints, shipped
from tests.test_commands import refused
from tests.test_training import draw_of


@pytest.mark.parametrize("name", shipped.names())
def test_small_and_documented(name: str) -> None:
    files = [path for path in shipped.folder(name).rglob("*") if path.is_file()]
    assert checkpoints.newest(shipped.folder(name)) in {path.parent for path in files}
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 6e6
    card = (shipped.folder(name) / "README.md").read_text()
    for fact in ("FD-", "bits/dim", "seed", "step"):
        assert fact in card


def test_sampled_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--sampler=heun", "--steps=3", "--num_samples=2", "--device=cpu", "--quiet"]
    assert main(["sample", "--pretrained=fashion_mnist", *flags]) == 0
    run = tmp_path / "runs" / "fashion_mnist"
    drawn = np.load(draw_of(run, "heun_3_n2_seed0"))["z"]
    assert drawn.shape == (2, 1, 28, 28)
    assert main(["sample", "--pretrained=fashion_mnist", *flags, "--seed=1"]) == 0  # it is there already
    denoiser = sd.load_pretrained("fashion_mnist")
    heun = samplers.build("heun", num_steps=3, t_min=0.08)  # where the run's configuration stops
    own = heun.draw(denoiser, (2, 1, 28, 28), seed=0)
    np.testing.assert_allclose(own.x.numpy(), drawn, atol=1e-5)
    assert main(["report", "--pretrained=fashion_mnist", "--quiet"]) == 0
    page = (run / "report.html").read_text()
    for part in ("FD-fashion", "ODE (probability flow)", 'alt="samples of heun'):
        assert part in page


def test_unpacked_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty", target_is_directory=True)
    shipped.unpack("fashion_mnist", tmp_path / "link")
    shipped.unpack("fashion_mnist", tmp_path / "empty")
    assert checkpoints.newest(tmp_path / "empty").name == checkpoints.newest(shipped.folder("fashion_mnist")).name
    assert (tmp_path / "link").is_symlink()


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "pretrained='imagenet': expected one of fashion_mnist" in refused(capsys, "sample", "--pretrained=imagenet")
    (tmp_path / "notes.txt").write_text("mine")
    text = refused(capsys, "sample", "--pretrained=fashion_mnist", f"--workdir={tmp_path}")
    assert "it holds something else" in text
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    shipped.unpack("fashion_mnist", tmp_path / "run")
    text = refused(capsys, "train", f"--workdir={tmp_path / 'run'}", "--config.training.num_steps=5000")
    assert "averaged weights alone" in text
