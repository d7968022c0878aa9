"""Time grids: ends, direction, and the spacing that each is named for."""

from __future__ import annotations

import math

import pytest
import torch

import samplers
import sde_diffusion as sd
from sde_diffusion.labels import NOISE_LABELS
from sde_diffusion.objectives import TIMES
from sde_diffusion.sdes import SDE
from sde_diffusion.timesteps import GRIDS


@pytest.mark.parametrize("num_points", [1, 2, 3, 50])
@pytest.mark.parametrize("grid", GRIDS.names())
def test_every_grid_falls_from_the_end_to_t_min(sde: SDE, grid: str, num_points: int) -> None:
    t = GRIDS[grid](sde, num_points, sde.t_min)
    assert t.dtype == torch.float64
    assert t.device.type == "cpu"
    assert len(t) == num_points
    assert float(t[0]) == pytest.approx(sde.T, rel=1e-12)
    assert float(t[0]) <= sde.T  # beyond it α may be negative, as of the cosine
    if num_points > 1:
        assert (t[1:] < t[:-1]).all()
        least = sde.T * max(1, math.ceil(sde.t_min / sde.T * 1000 - 1e-6)) / 1000  # the first index
        assert float(t[-1]) == pytest.approx(least if grid == "indices" else sde.t_min, rel=1e-9)


ROUNDED = [
    sd.VPSDE(0.0, 1.0),
    sd.VESDE(1.0, 1.61451900803982),
    sd.CosineVPSDE(0.788172757633661, 0.38321468379451135),
    sd.DDPMChain([0.27, 0.8, 0.02, 1e-12]),
]
"""SDEs on which the time of log SNR(T) comes out above T by rounding, or far from a time just below T."""


@pytest.mark.parametrize("sde", ROUNDED, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("grid", sorted({*GRIDS.names()} - {"indices"}))
def test_ends_of_a_grid_are_those_asked_for(sde: SDE, grid: str) -> None:
    """To the last bit, also next to T, or next to 0 where T − (T − t) is 0; nothing lies beyond them."""
    for t_min in (1e-20, 1e-3, 0.1, sde.T * (1 - 1e-15)):
        t = GRIDS[grid](sde, 7, t_min)
        assert (float(t[0]), float(t[-1])) == (sde.T, t_min)
        assert (t.diff() <= 0).all()
    assert torch.isfinite(samplers.build("ddim", num_steps=4, grid=grid).draw(circle(sde), (2, 2)).x).all()


@pytest.mark.parametrize("sde", ROUNDED, ids=lambda sde: type(sde).__name__)
def test_random_times_are_within_the_ends(sde: SDE) -> None:
    u = torch.tensor([1e-17, 0.5, 1.0 - 1e-16], dtype=torch.float64)
    first = 0.9e-3 * sde.T  # that of discrete times is T/1000
    for name in TIMES.names():
        t, _ = TIMES.build(name, t_min=first)(sde, u)
        assert ((t >= first) & (t <= sde.T)).all(), name
    x = torch.zeros(500, 2, dtype=torch.float64)
    times = sd.continuous_bound(circle(sde), x, sd.NoiseStream(0, range(500)), draws=2, t_min=0.99 * sde.T).times
    assert ((times >= 0.99 * sde.T) & (times <= sde.T)).all()


def circle(sde: SDE) -> sd.AbstractDenoiser:
    return sd.Gaussian([0.0, 0.0], torch.eye(2)).denoiser(sde)


@pytest.mark.parametrize(
    ("sde", "t_min", "match"),
    [
        (sd.VPSDE(0.1, 4000.0), 1e-3, "T=1.0: expected a time at which α and σ are within 1e-15 … 1e.15, not 0 and 1"),
        (sd.VESDE(0.01, 1e40), 1e-3, "not 1 and 1e.40; change it, or the parameters of the SDE"),
        (sd.DDPMChain([0.999] * 30), 1e-3, "not 1e-45 and 1"),
        (sd.SubVPSDE(0.0, 20.0), 1e-12, "t_min=1e-12: expected a time at which α and σ are within"),
        (sd.CosineVPSDE(T=0.5), 0.7, "t_min=0.7: expected a time below 0.5"),
    ],
)
def test_levels_that_float32_cannot_hold_are_one_line(sde: SDE, t_min: float, match: str) -> None:
    denoiser, x, noise = circle(sde), torch.zeros(2, 2), sd.NoiseStream(0, range(2))
    calls = [
        lambda: samplers.build("ddim", t_min=t_min).draw(denoiser, (2, 2)),
        lambda: samplers.build("torchsde", t_min=t_min).draw(denoiser, (2, 2)),
        lambda: sd.log_likelihood(denoiser, x, t_min=t_min),
        lambda: sd.continuous_bound(denoiser, x, noise, t_min=t_min),
        lambda: sd.DenoisingScoreMatching({"name": "uniform", "t_min": t_min})(denoiser, x, noise),
    ]
    if t_min < sde.T:
        times = torch.tensor([sde.T, t_min], dtype=torch.float64)
        calls.append(lambda: sd.discrete_bound(denoiser, x, times, noise))
    for call in calls:
        with pytest.raises(sd.InputError, match=match):
            call()


def test_spacing(sde: SDE) -> None:
    grids = {name: GRIDS[name](sde, 9, sde.t_min).clamp_max(sde.t_max) for name in ("log_snr", "karras")}
    rho = {name: torch.exp(-0.5 * sde.log_snr(times)) for name, times in grids.items()}
    gaps = {
        "uniform": GRIDS["uniform"](sde, 9, sde.t_min).diff(),
        "quadratic": GRIDS["quadratic"](sde, 9, sde.t_min).sqrt().diff(),
        "log_snr": rho["log_snr"].log().diff(),
        "karras": (rho["karras"] ** (1 / 7)).diff(),
    }
    for gap in gaps.values():
        torch.testing.assert_close(gap, gap[:1].expand(8), rtol=1e-6, atol=1e-12)


def test_indices_are_training_times() -> None:
    chain = sd.DDPMChain.linear(100)
    assert torch.equal(GRIDS["indices"](chain, 100, chain.t_min), torch.arange(100, 0, -1, dtype=torch.float64) / 100)
    with pytest.raises(sd.InputError, match="100 times, not 101"):
        GRIDS["indices"](chain, 101, chain.t_min)
    with pytest.raises(sd.InputError, match="did you mean 'karras'"):
        GRIDS["karas"]


@pytest.mark.parametrize("label", ["discrete", "reversed"])
def test_trained_times_are_sampled_and_scored(sde: SDE, label: str) -> None:
    """One definition of the i-th of N times, T i/N: training draws them, labels number them, samplers visit them."""
    n = getattr(sde, "num_train_steps", 50)
    labels = NOISE_LABELS.build(label, num_train_steps=n + (label == "reversed"))
    trained, _ = TIMES.build("discrete", num_train_steps=n)(sde, (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert float(trained.max()) == sde.T
    assert torch.equal(labels.round_t(trained, sde.T), trained)
    numbers = labels(sde.at(trained), sde.T)
    torch.testing.assert_close(numbers, numbers.round(), rtol=0.0, atol=1e-9)
    assert sorted(numbers.round().tolist()) == list(range(n))
    denoiser = sd.Denoiser(lambda x, label: torch.zeros_like(x), sde, noise_label=labels)
    for name in samplers.names():
        if "grid" in samplers.config(name):
            visited = samplers.build(name, num_steps=7).times(denoiser)
            assert float(visited[0]) == float(trained[trained <= sde.t_max].max())  # T, unless α is 0 there
            assert all(any(float(t) == float(s) for s in trained) for t in visited)


@pytest.mark.parametrize("grid", GRIDS.names())
def test_the_cosine_is_sampled_on_every_grid(grid: str) -> None:
    """N(0, 0.7²) from every grid; beyond T the cosine's α is negative, which once made 5e10 of 0.7."""
    sde = sd.CosineVPSDE()
    law = sd.Gaussian(torch.zeros(2, dtype=torch.float64), 0.49 * torch.eye(2, dtype=torch.float64))
    for label in ("discrete", "log_snr"):
        exact = law.denoiser(sde)

        def net(
            x: torch.Tensor, label: torch.Tensor, exact: sd.AbstractDenoiser = exact, kind: str = label
        ) -> torch.Tensor:
            t = (
                (label.double() + 1.0) / 1000 * sde.T
                if kind == "discrete"
                else sde.time_of_log_snr(-8.0 * label.double())
            )
            return exact(x, t.clamp(max=sde.T)).eps

        denoiser = sd.Denoiser(net, sde, noise_label=label)
        x = samplers.build("ddim", num_steps=200, grid=grid).draw(denoiser, (4000, 2), seed=0).x
        # 4,000 × 2 numbers have a standard deviation known to 0.8 %; first-order steps add some percent.
        assert float(x.double().std()) == pytest.approx(0.7, rel=0.08)
