"""A run of version 0.1.0 opens, resumes, is scored, swept and reported, and draws what it drew then."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.config import build_objective
from sde_diffusion.evaluation.sweep import read_rows
from sde_diffusion.objectives.times import Uniform
from sde_diffusion.objectives.weightings import EDM
from sde_diffusion.records import read_record
from sde_diffusion.stored_config import load_config
from sde_diffusion.training import checkpoints
from tests.test_training import draw_of

EARLY = Path(__file__).parent / "data" / "early_run"


@pytest.fixture
def early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(EARLY, tmp_path / "run"))


def run(name: str, workdir: Path, *flags: str) -> int:
    return main([name, f"--workdir={workdir}", "--quiet", *flags])


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_it_draws_what_it_drew(early: Path, sampler: str) -> None:
    """``ancestral`` with the bound on x₀ that its configuration asks for; to the rounding of float32."""
    assert run("sample", early, f"--sampler={sampler}", "--steps=3", "--num_samples=2", "--device=cpu") == 0
    now = np.load(draw_of(early, f"{sampler}_3_n2_seed0"))["z"]
    then = np.load(EARLY / "samples" / f"{sampler}_3_seed0.npz")["x"]
    np.testing.assert_allclose(now, then, atol=2e-5)
    assert np.abs(then).max() > 0.1


def test_it_is_trained_on(early: Path) -> None:
    more = ["--config.training.num_steps=5", "--device=cpu"]
    assert run("train", early, *more) == 0
    assert checkpoints.read(early).step == 5
    assert read_record(early / "config.json")["config"]["training"]["batch_size"] == 8


def test_its_loss_is_an_objective(early: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``loss``, of what it stores and of flags, is read as the objective that it was, and stored by its new name."""
    stored = read_record(early / "config.json")["config"]["loss"]
    config = load_config(early)
    assert config.objective.name == "denoising"
    assert config.objective.denoising.to_dict() == stored
    objective = build_objective(config)
    assert isinstance(objective, sd.DenoisingScoreMatching)
    assert (objective.times, objective.weighting) == (Uniform(t_min=1e-5), EDM(sigma_data=1.0))
    same = ["--config.loss.weighting=edm", "--config.loss.times.uniform.t_min=1e-5", "--config.training.num_steps=5"]
    assert run("train", early, "--device=cpu", *same) == 0
    now = read_record(early / "config.json")["config"]
    assert "loss" not in now
    assert now["objective"]["denoising"]["weighting"]["name"] == "edm"
    assert now["objective"]["denoising"]["times"] == {"name": "uniform", "uniform": {"t_min": 1e-5}}
    assert run("train", early, "--device=cpu", "--config.loss.weighting=simple") == 2
    text = "objective.denoising.weighting.name='simple' (stored 'edm')"
    assert text in capsys.readouterr().err


def test_it_is_swept_scored_and_reported(early: Path) -> None:
    [row] = read_rows(early / "benchmark.jsonl")
    flags = ["--samplers=ddim", "--steps=3", "--num_samples=70", "--device=cpu"]
    assert run("benchmark", early, *flags) == 0
    assert read_rows(early / "benchmark.jsonl")[0] == row
    few = ["--num_images=2", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5", "--device=cpu"]
    assert run("likelihood", early, *few) == 0
    then, now = (read_record(w / "likelihood.json")["bits_per_dim"] for w in (EARLY, early))
    for (
        name,
        figure,
    ) in then.items():  # with other random numbers, of two images each
        assert abs(now[name]["mean"] - figure["mean"]) < 8.0 * math.hypot(now[name]["std_error"], figure["std_error"])
    assert run("report", early) == 0
    assert "FD-digits" in (early / "report.html").read_text()
