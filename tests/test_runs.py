"""Runs from Python: the same files and numbers as from the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion.codecs import Identity
from sde_diffusion.commands.main import main
from sde_diffusion.evaluation.scoring import ScoringOptions
from sde_diffusion.evaluation.sweep import read_rows
from sde_diffusion.records import read_record, write_record
from sde_diffusion.runs.sweep import SweepOptions
from tests.test_commands import refused, trained
from tests.test_training import draw_of

__all__ = ["trained"]


class Net(nn.Module):
    """What somebody has just written."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size + 1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, size)
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x.flatten(1), label[:, None]], dim=1))
        return out.reshape(x.shape)


LAW = sd.Gaussian([0.5, -0.2], [[0.2, 0.1], [0.1, 0.3]])
QUIET: dict[str, Any] = {"device": "cpu", "quiet": True}


def points() -> Tensor:
    return LAW.sample(2000, torch.Generator().manual_seed(0)).float()


def test_an_opened_run_does_what_the_commands_do(trained: Path) -> None:
    run = sd.open_run(trained, device="cpu")
    assert run.shape == (1, 8, 8)
    drawn = run.sample("pc", num_steps=3, n=5, batch_size=2, quiet=True, snr=0.2)
    flags = ["--sampler=pc", "--steps=3", "--num_samples=5", "--config.sampler.pc.snr=0.2", "--quiet", "--device=cpu"]
    assert main(["sample", f"--workdir={trained}", *flags]) == 0
    np.testing.assert_allclose(drawn.x, np.load(draw_of(trained, "pc_3_n5_seed0"))["x"], atol=1e-5)
    assert drawn.nfe == 5
    own = run.sample(samplers.build("ddim", num_steps=2), n=2, seed=3, quiet=True)
    assert torch.equal(own.x, run.sample("ddim", num_steps=2, n=2, seed=3, quiet=True).x)
    options = ScoringOptions(bound_draws=2, bound_steps=2, tolerance=0.5)
    scored = run.score(num_examples=3, options=options, quiet=True)
    few = ["--num_images=3", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5", "--quiet", "--device=cpu"]
    assert main(["likelihood", f"--workdir={trained}", *few]) == 0
    again = read_record(trained / "likelihood.json")["bits_per_dim"]
    assert again["ode"]["mean"] == scored.summary["bits_per_dim"]["ode"]["mean"]
    assert run.likelihood(run.dataset.test[:2], rtol=1e-2, atol=1e-2).log_prob.shape == (2,)


def test_benchmark_and_report(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = sd.open_run(trained, device="cpu")
    rows = run.benchmark(["ddim"], steps=[2], options=SweepOptions(num_samples=70), quiet=True)
    assert rows == read_rows(trained / "benchmark.jsonl")[-1:]
    page = run.report()
    assert page == trained / "report.html"
    assert "FD-digits" in page.read_text()


def test_a_shipped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = sd.open_run("fashion_mnist", device="cpu")
    assert run.workdir == Path("runs/fashion_mnist")
    assert run.sample("heun", num_steps=2, n=1, quiet=True).x.shape == (1, 1, 28, 28)
    assert run.sampler("heun").t_min == 0.08


@pytest.mark.parametrize("sde", [None, sd.VESDE(0.02, 2.0), sd.DDPMChain.linear(50)])
def test_fit_learns_a_gaussian(tmp_path: Path, sde: sd.SDE | None) -> None:
    """Mean and covariance of 2,000 samples within 0.25 of the law's, whose standard deviations are about 0.5."""
    flags = {"batch_size": 256, "learning_rate": 3e-3, "schedule": "cosine", "ema_decay": 0.99}
    run = sd.fit(Net(), points(), sde=sde, steps=600, workdir=tmp_path / "run", **QUIET, **flags)
    x = run.sample("heun", num_steps=20, n=2000, batch_size=2000, quiet=True).x.double()
    assert (x.mean(dim=0) - LAW.means[0]).abs().max() < 0.25
    assert (x.T.cov() - LAW.covariances[0]).abs().max() < 0.25
    opened = sd.open_run(tmp_path / "run", net=Net(), device="cpu")
    assert repr(opened.denoiser.sde) == repr(run.denoiser.sde)
    few = opened.sample("heun", num_steps=20, n=4, quiet=True).x
    torch.testing.assert_close(few, x[:4].float(), atol=1e-4, rtol=0.0)
    assert opened.step == 600


def test_fit_goes_on(tmp_path: Path) -> None:
    """Two halves give the weights of the whole, bit for bit; another run's folder is refused."""
    flags = {**QUIET, "batch_size": 8, "schedule": "constant", "checkpoint_every": 3}

    def fresh() -> Net:
        torch.manual_seed(5)
        return Net()

    whole, half, rest = fresh(), fresh(), fresh()
    sd.fit(whole, points(), steps=6, workdir=tmp_path / "whole", **flags)
    sd.fit(half, points(), steps=3, workdir=tmp_path / "parts", **flags)
    assert sd.fit(rest, points(), steps=6, workdir=tmp_path / "parts", **flags).step == 6
    a, b = (read(tmp_path / name) for name in ("whole", "parts"))
    assert a == b
    with pytest.raises(sd.InputError, match=r"not sde\.name='ve' \(stored 'vp'\)"):
        sd.fit(Net(), points(), sde=sd.VESDE(), steps=9, workdir=tmp_path / "whole", **flags)


def read(workdir: Path) -> list[bytes]:
    folder = workdir / "checkpoints" / "step_00000006"
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("ema", "network", "optimizer")]


def test_fit_on_a_named_data_set_and_on_pictures(tmp_path: Path) -> None:
    flags = {**QUIET, "steps": 2, "batch_size": 4}
    run = sd.fit(Net(64), "digits", workdir=tmp_path / "a", **flags)
    assert run.levels == 17
    assert run.dataset.name == "digits"
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    run = sd.fit(Net(64), images, **flags)
    assert (run.levels, len(run.dataset.test)) == (256, 2)
    assert sd.open_run(run.workdir, net=Net(64), data=images, device="cpu").dataset.shape == (1, 8, 8)


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(sd.InputError, match=r"net='function': expected a torch\.nn\.Module"):
        sd.fit(lambda x, label: x, points())  # type: ignore[arg-type]
    with pytest.raises(sd.InputError, match=r"batchsize=3: no such option of training; did you mean 'batch_size'"):
        sd.fit(Net(), points(), batchsize=3)
    with pytest.raises(sd.InputError, match="data='int': expected a Dataset"):
        sd.fit(Net(), 3)  # type: ignore[arg-type]
    with pytest.raises(sd.InputError, match="at least two examples"):
        sd.fit(Net(), torch.zeros(1, 2))
    with pytest.raises(sd.InputError, match="expected a JSON file"):
        sd.open_run(tmp_path / "nowhere")
    sd.fit(Net(), points(), steps=2, batch_size=4, workdir=tmp_path / "run", **QUIET)
    with pytest.raises(sd.InputError, match=r"handed over in Python; open it with sd\.open_run"):
        sd.open_run(tmp_path / "run", device="cpu")
    assert "handed over in Python" in refused(capsys, "sample", f"--workdir={tmp_path / 'run'}", "--device=cpu")
    run = sd.open_run(tmp_path / "run", net=Net(), device="cpu")
    with pytest.raises(sd.InputError, match="data='given'"):
        run.score()
    with pytest.raises(sd.InputError, match="split='validation'"):
        run.score("validation")


def test_a_run_on_vectors_without_a_codec_keeps_its_data_as_they_are(tmp_path: Path) -> None:
    """As version 0.1.0 stored it: samples and likelihoods in the units of the network, when it is trained on too."""
    how = {**QUIET, "batch_size": 8, "schedule": "constant"}
    sd.fit(Net(), points() + 3.0, steps=2, workdir=tmp_path, codec="identity", **how)
    for path in (tmp_path / "config.json", tmp_path / "checkpoints" / "step_00000002" / "state.json"):
        content = read_record(path)
        del content["data"]["codec"], content["config"]["codec"]
        write_record(path, content)
    opened = sd.open_run(tmp_path, net=Net(), device="cpu")
    assert opened.codec == Identity()
    drawn = opened.sample("ddim", num_steps=2, n=3, quiet=True)
    assert torch.equal(drawn.x, drawn.z)
    assert main(["report", f"--workdir={tmp_path}", "--quiet"]) == 0
    assert sd.fit(Net(), points() + 3.0, steps=3, workdir=tmp_path, **how).codec == Identity()
    with pytest.raises(sd.InputError, match=r"codec\.name='standardised' \(stored 'identity'\)"):
        sd.fit(Net(), points(), steps=4, workdir=tmp_path, codec="standardised", **how)


def test_samples_and_likelihoods_are_in_the_units_of_the_data(tmp_path: Path) -> None:
    """x = 50 y + 100 and z are the same draw; log p(x) = log p(y) − 2 log 50, for the same network."""
    how = {**QUIET, "batch_size": 64, "learning_rate": 3e-3, "schedule": "cosine", "ema_decay": 0.9}
    runs = []
    for name, data in (("own", points()), ("scaled", 50.0 * points() + 100.0)):
        torch.manual_seed(0)
        runs.append(sd.fit(Net(), data, steps=30, workdir=tmp_path / name, **how))
    own, scaled = (run.sample("heun", num_steps=5, n=50, quiet=True) for run in runs)
    torch.testing.assert_close(scaled.x, 50.0 * own.x + 100.0, rtol=1e-3, atol=0.05)  # 30 steps from rounded data
    x = points()[:8]
    quick: dict[str, Any] = {"divergence": "exact", "rtol": 1e-6, "atol": 1e-6, "check": 0}
    one, other = runs[0].likelihood(x, **quick).log_prob, runs[1].likelihood(50.0 * x + 100.0, **quick).log_prob
    torch.testing.assert_close(other, one - 2.0 * math.log(50.0), rtol=0.0, atol=5e-3)


@pytest.mark.parametrize(
    ("sde", "scale", "told"),
    [
        (sd.VPSDE(), 1.0, False),
        (sd.VESDE(0.01, 50.0), 1.0, False),
        (sd.CosineVPSDE(), 1.0, False),
        (sd.DDPMChain.linear(100), 1.0, True),  # betas made for a thousand steps
        (sd.VESDE(0.01, 2.0), 1.0, True),
        (sd.VPSDE(), 128.0, True),  # data in 0 … 255
    ],
)
def test_a_prior_that_the_noise_does_not_reach_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sde: sd.SDE, scale: float, told: bool
) -> None:
    sd.fit(Net(), scale * points(), sde=sde, steps=2, batch_size=4, workdir=tmp_path, codec="identity", **QUIET)
    lines = [line for line in capsys.readouterr().err.splitlines() if "samples will be of another law" in line]
    assert len(lines) == told
