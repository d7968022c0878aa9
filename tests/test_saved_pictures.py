"""Samples as pictures for evaluators elsewhere, as one grid, and on their way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sde_diffusion as sd
from sde_diffusion.codecs.grey_levels import to_uint8
from sde_diffusion.records import read_record
from sde_diffusion.runs.save import SavingOptions
from tests.test_runs import Net
from tests.test_save import SHARDS, draws, files, run, sample

__all__ = ["draws", "run"]

# --- pictures -----------------------------------------------------------------------------------------------------


def test_pictures_are_what_a_sweep_measures(run: Path, tmp_path: Path) -> None:
    """8-bit grey, a file a sample and nothing else in the folder, read by torch-fidelity; classes in the record."""
    from torch_fidelity.datasets import ImagesPathDataset

    opened = sd.open_run(run, device="cpu")
    drawn = opened.sample(num_steps=2, n=10, batch_size=2, classes="3,5", quiet=True)
    assert sample(run, *SHARDS, "--classes=3,5", "--format=png", "--quiet", f"--out={tmp_path}") == 0
    paths = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in paths] == [f"{i:06}.png" for i in range(10)]
    expected = to_uint8(drawn.x, opened.levels or 0)
    for path, pixels in zip(paths, expected, strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "L"
            assert np.array_equal(np.asarray(picture), pixels[0].numpy())
    read = torch.stack([ImagesPathDataset([str(path) for path in paths])[i] for i in range(10)])
    assert torch.equal(read, expected.expand(-1, 3, -1, -1))
    assert read_record(tmp_path / "samples.json")["conditions"] == {"classes": [3, 5] * 5}


def test_colour_pictures(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    opened = sd.fit(Net(192), images, steps=2, workdir=tmp_path / "run", batch_size=4, device="cpu", quiet=True)
    how: dict[str, Any] = {"num_steps": 2, "n": 3, "batch_size": 3, "quiet": True}
    saved = opened.save_samples("ddim", saving=SavingOptions(format="png"), **how)
    pixels = opened.sample("ddim", **how).x
    for i, path in enumerate(sorted(saved.files[0].iterdir())):
        with Image.open(path) as picture:
            assert picture.mode == "RGB"
            assert np.array_equal(np.asarray(picture), pixels[i].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8), (2, 16), (1, 4, 4, 4)])
def test_what_is_no_picture_of_grey_levels_is_refused_as_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = torch.randn(30, *shape, generator=torch.Generator().manual_seed(0))
    size = data[0].numel()
    opened = sd.fit(Net(size), data, steps=1, workdir=tmp_path / "run", batch_size=4, device="cpu", quiet=True)
    before = files(tmp_path)
    with pytest.raises(sd.InputError, match=r"format='png': expected npz, for samples of shape .* are no pictures of"):
        opened.save_samples(n=2, num_steps=1, saving=SavingOptions(format="png"), quiet=True)
    assert files(tmp_path) == before
    saved = opened.save_samples(n=3, num_steps=1, saving=SavingOptions(shard_size=2), quiet=True)
    assert [len(np.load(path)["x"]) for path in sorted(saved.files[0].iterdir())] == [2, 1]
    assert saved.shown == 2


def test_a_grid_shows_at_most_256_and_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--steps=1", "--batch_size=300", "--device=cpu", "--num_samples=300"]
    for size, shown, columns in ((300, 256, 16), (9, 9, 3)):
        capsys.readouterr()
        out = tmp_path / str(size)
        assert sample(run, *command, f"--shard_size={size}", f"--out={out}") == 0
        assert f".png (the first {shown})" in capsys.readouterr().out
        with Image.open(out / "samples.png") as grid:
            assert grid.size == (34 * columns + 2, 34 * columns + 2)  # 8×8 enlarged to 32×32, and 2 of white between
    assert sample(run, "--steps=1", "--device=cpu", "--num_samples=4", f"--out={tmp_path / 'few'}") == 0
    assert "the first" not in capsys.readouterr().out


# --- trajectories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "columns"), [(["--sampler=ancestral", "--steps=20"], 12), (["--sampler=heun", "--steps=3"], 4)]
)
def test_a_trajectory_keeps_the_states_that_it_shows(
    run: Path, tmp_path: Path, sampler: list[str], columns: int
) -> None:
    flags = ["--num_samples=10", "--device=cpu", "--quiet", "--trajectory"]
    assert sample(run, *sampler, *flags, f"--out={tmp_path}") == 0
    way, drawn = (np.load(tmp_path / name) for name in ("samples_trajectory.npz", "samples.npz"))
    opened = sd.open_run(run, device="cpu")
    sde, t = opened.denoiser.sde, way["times"]
    assert t.shape == way["scale"].shape == (columns, 8)
    assert way["states"].shape == (columns, 8, 1, 8, 8)
    assert (np.diff(t, axis=0) < 0.0).all()
    np.testing.assert_allclose(t[0], sde.T)
    own = opened.sampler(sampler[0].removeprefix("--sampler="))
    np.testing.assert_allclose(t[-1], 0.0 if own.denoise else own.stop_time(sde))
    now = torch.from_numpy(t)
    np.testing.assert_allclose(way["scale"], (sde.alpha(now) ** 2 + sde.sigma(now) ** 2).sqrt())
    assert np.array_equal(way["states"][-1], drawn["z"][:8])
    noise = sd.NoiseStream(0, range(8))(torch.empty(8, 1, 8, 8))
    np.testing.assert_allclose(way["states"][0], noise * sde.prior_std, rtol=1e-6)
    with Image.open(tmp_path / "samples_trajectory.png") as strip:
        assert strip.size == (34 * columns + 2, 34 * 8 + 2)


def test_samples_that_choose_their_times_keep_their_own(run: Path, tmp_path: Path) -> None:
    flags = ["--sampler=probability_flow", "--num_samples=4", "--device=cpu", "--quiet", "--trajectory"]
    assert sample(run, *flags, f"--out={tmp_path}") == 0
    t = np.load(tmp_path / "samples_trajectory.npz")["times"]
    assert t.shape[1] == 4
    assert (np.diff(t, axis=0) <= 0.0).all()  # one that is finished waits for the others
    assert (np.ptp(t, axis=1) > 0.0).any()
