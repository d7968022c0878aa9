"""One Brownian path a sample: the same for all samplers, grids and numbers of steps, at strong order 1."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion.brownian import clock
from sde_diffusion.commands.main import main
from sde_diffusion.sdes import SDE
from tests.conftest import time

LAWS = {
    "mixture": sd.GaussianMixture([0.4, 0.6], [[-0.6], [0.5]], [[[0.1]], [[0.15]]]),
    "gaussian": sd.Gaussian([0.7], [[0.25]]),
}
SCHEMES: list[dict[str, Any]] = [
    {"name": "euler_maruyama"},
    {"name": "reverse_diffusion"},
    {"name": "ancestral"},
    {"name": "torchsde", "method": "euler"},
    {"name": "torchsde", "method": "srk"},
    {"name": "torchsde", "method": "heun"},
]


def strong_errors(scheme: dict[str, Any], sde: SDE, law: str, steps: list[int], noise: str = "brownian") -> list[float]:
    """Root mean square distance of 64 samples to those of the last number of steps."""
    drawn = []
    for num_steps in steps:
        sampler = samplers.build(**scheme, num_steps=num_steps, denoise=False, t_min=0.1)
        drawn.append(sampler.draw(LAWS[law].denoiser(sde), (64, 1), seed=3, noise=noise, dtype=torch.float64).x)
    return [float((x - drawn[-1]).square().mean().sqrt()) for x in drawn[:-1]]


def bound(coarse: int, fine: int, reference: int, shared: bool = True) -> float:
    """Return what the ratio of the errors of two numbers of steps must exceed: half-way from order ½ to order 1.

    With errors C h^p the distances to a third number of steps are C (h^p − r^p) where its error is along the same path,
    and C √(h^2p + r^2p) where it is independent, as where areas between increments are fresh noise.
    """

    def ratio(order: float) -> float:
        far, near = ((reference / n) ** order for n in (coarse, fine))
        return (far - 1.0) / (near - 1.0) if shared else math.sqrt((far**2 + 1.0) / (near**2 + 1.0))

    return math.sqrt(ratio(0.5) * ratio(1.0))


@pytest.mark.parametrize("scheme", SCHEMES[:3], ids=lambda scheme: scheme["name"])
def test_strong_order(sde: SDE, scheme: dict[str, Any]) -> None:
    """The errors of 16 and 128 steps differ by 10.3 at order 1, by 4.7 at order ½."""
    coarse, fine = strong_errors(scheme, sde, "mixture", [16, 128, 512])
    assert coarse > bound(16, 128, 512) * fine


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: "-".join(scheme.values()))
def test_strong_order_from_10_to_1000_steps(sde: SDE, scheme: dict[str, Any], law: str) -> None:
    """From 10 steps the error falls all the way, from 32 to 256 at order 1.

    That holds for torchsde's schemes of two evaluations too, whose areas between increments are fresh.
    """
    coarse = 64 if isinstance(sde, sd.FlowSDE) else 32  # its f and g are some 1,000 where it starts
    errors = strong_errors(scheme, sde, law, [10, coarse, 256, 1000])
    assert errors[0] > 2.0 * errors[1]
    assert errors[1] > bound(coarse, 256, 1000, shared=scheme not in SCHEMES[4:]) * errors[2]


def test_without_a_path_step_counts_have_nothing_in_common() -> None:
    coarse, fine = strong_errors(SCHEMES[0], sd.VPSDE(), "mixture", [16, 128, 512], noise="independent")
    assert coarse < 1.5 * fine


@pytest.mark.parametrize("name", samplers.names())
def test_the_start_is_the_same_and_a_sample_is_its_own(name: str) -> None:
    """Deterministic samplers do not see the noise; a sample does not depend on its batch."""
    sampler = samplers.build(name, **({"num_steps": 6} if "num_steps" in samplers.config(name) else {}))
    denoiser = LAWS["mixture"].denoiser(sd.VPSDE())
    starts: list[Tensor] = []
    drawn = [
        sampler.draw(
            denoiser, (3, 1), seed=5, noise=noise, callback=lambda i, t, x: starts.append(x.clone()) if i == 0 else None
        ).x
        for noise in samplers.NOISES
    ]
    assert torch.equal(starts[0], starts[1]) or name == "scipy"  # whose first callback is at its first evaluation
    assert torch.equal(*drawn) == (not sampler.stochastic)
    alone = sampler.draw(denoiser, (1, 1), seed=5, first_index=2, noise="brownian").x
    torch.testing.assert_close(alone, drawn[1][2:], rtol=2e-3 if sampler.host_bound else 1e-4, atol=2e-3)


def test_one_path_for_all_sdes_at_equal_noise() -> None:
    """The clock is a function of the log SNR alone: on any SDE the same increment over the same levels."""
    x, found = torch.empty(4, 2, dtype=torch.float64), []
    for sde in (sd.VPSDE(), sd.SubVPSDE(), sd.CosineVPSDE(), sd.DDPMChain.linear(), sd.VESDE()):
        levels = sde.levels(sde.time_of_log_snr(torch.tensor([-6.0, 1.0, 5.0], dtype=torch.float64)))
        path = sd.BrownianPath(1, range(4))
        found.append(torch.stack([path(x, levels[0], levels[1]), path(x, levels[1], levels[2])]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)  # times are rounded, paths rough


def test_the_clock_has_ends_where_log_snr_has_none() -> None:
    """At α = 0 and at σ = 0 too an interval has a length, and its noise is standard normal."""
    nothing = lambda: None  # noqa: E731
    levels = [
        sd.NoiseLevel(1.0, 0.0, 1.0, -math.inf, nothing),  # type: ignore[arg-type]
        sd.VPSDE().at(0.5),
        sd.NoiseLevel(0.0, 1.0, 0.0, math.inf, nothing),  # type: ignore[arg-type]
    ]
    assert [clock(level) for level in levels[::2]] == [0.0, 1.0]
    path, x = sd.BrownianPath(0, range(4000)), torch.empty(4000, 5)
    for t, s in ((0, 1), (1, 2), (0, 2)):
        z = path(x, levels[t], levels[s])
        assert abs(float(z.mean())) < 5.0 / math.sqrt(z.numel())
        assert abs(float(z.var()) - 1.0) < 5.0 * math.sqrt(2.0 / z.numel())
    each = sd.VPSDE().at(torch.tensor([0.2, 0.7], dtype=torch.float64))
    assert [float(c) for c in clock(each)] == [clock(sd.VPSDE().at(0.2)), clock(sd.VPSDE().at(0.7))]  # type: ignore[union-attr]


def test_corrections_are_told_noise_of_no_interval() -> None:
    """They share neither the predictor's nor one another's."""
    drawn: list[Tensor] = []
    path = sd.BrownianPath(0, range(2))

    def noise(x: Tensor, t: sd.NoiseLevel, s: sd.NoiseLevel) -> Tensor:
        drawn.append(path(x, t, s).flatten())
        return drawn[-1].reshape(x.shape)

    sampler = samplers.build("pc", num_steps=4, corrector_steps=2, denoise=False)
    sampler.sample(sd.Denoiser(lambda x, label: 0.1 * x, sd.VPSDE()), torch.ones(2, 20_000), noise)
    assert len(drawn) == 4 * 3
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(12)
    assert correlation.abs().max() < 5.0 / math.sqrt(drawn[0].numel())


def test_a_run_is_sampled_on_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From Python and by ``--noise``, into files of their own, whose record says so."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            out: Tensor = self.layer(torch.cat([x, label[:, None]], dim=1))
            return out

    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    run = sd.fit(Net(), data, sde=sd.VPSDE(), steps=2, workdir=tmp_path / "a", quiet=True)
    options: dict[str, Any] = {"num_steps": 6, "n": 5, "quiet": True, "noise": "brownian"}
    one, other = (run.sample("ancestral", batch_size=size, **options) for size in (2, 5))
    torch.testing.assert_close(one.z, other.z)
    assert not torch.equal(run.sample("ancestral", **{**options, "noise": "independent"}).z, other.z)
    with pytest.raises(sd.InputError, match="noise='brown': expected 'independent' or 'brownian'"):
        run.sample("ancestral", **{**options, "noise": "brown"})

    digits = tmp_path / "digits"
    small = ["--config.training.num_steps=1", "--config.network.unet.channels=8"]
    assert main(["train", f"--workdir={digits}", "--quiet", *small]) == 0
    for noise in samplers.NOISES:
        flags = ["--sampler=ancestral", "--steps=3", "--num_samples=2", "--quiet", f"--noise={noise}"]
        assert main(["sample", f"--workdir={digits}", *flags]) == 0
    paths = (digits / "samples").glob("*.json")
    noises = [json.loads(path.read_text())["identity"]["noise"] for path in paths]
    assert sorted(noises) == ["brownian", "independent"]  # under names of their own
    assert main(["sample", f"--workdir={digits}", "--noise=white"]) == 2
    assert "noise" in capsys.readouterr().err


def test_times_of_each_sample_see_the_same_path() -> None:
    sde, x, path = sd.VPSDE(), torch.empty(2, 3, dtype=torch.float64), sd.BrownianPath(0, range(2))
    t = torch.tensor([0.9, 0.5], dtype=torch.float64)
    whole = path(x, sde.at(t), sde.at(t - 0.2))
    for i in range(2):
        one = path(x, sde.at(time(float(t[i]))), sde.at(time(float(t[i]) - 0.2)))
        torch.testing.assert_close(one[i], whole[i])
