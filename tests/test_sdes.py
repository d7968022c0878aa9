"""Ground truth 1: f, g against α, σ by automatic differentiation; forward simulation; the exact chain."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import norm

import sde_diffusion as sd
from sde_diffusion.bounds import prior_kl
from sde_diffusion.levels import transition
from sde_diffusion.sdes import SDE, SDES
from tests.conftest import time


def interior_times(sde: SDE, n: int = 97) -> torch.Tensor:
    """Times away from the corners of a piecewise-constant rate."""
    return sde.t_min * 1.37 + (sde.T - sde.t_min) * (torch.arange(n, dtype=torch.float64) + 0.437) / (n + 1)


def test_coefficients_follow_from_the_primitives(sde: SDE) -> None:
    """f = α′/α and g² = (σ²)′ − 2 f σ²."""
    t = interior_times(sde).requires_grad_()
    alpha_slope = torch.autograd.grad(sde.alpha(t).sum() + 0.0 * t.sum(), t)[0]
    variance_slope = torch.autograd.grad((sde.sigma(t) ** 2).sum(), t)[0]
    f, g = (a.detach() for a in sde.coefficients(t))
    alpha, sigma = sde.alpha(t).detach(), sde.sigma(t).detach()
    torch.testing.assert_close(f, alpha_slope / alpha, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(g**2, variance_slope - 2 * f * sigma**2, rtol=1e-8, atol=1e-10)


def test_log_snr_falls_with_slope_of_the_likelihood_weighting(sde: SDE) -> None:
    """d log SNR/dt = −g²/σ², the identity behind importance-sampled times."""
    t = interior_times(sde).requires_grad_()
    slope = torch.autograd.grad(sde.log_snr(t).sum(), t)[0]
    _, g = sde.coefficients(t)
    torch.testing.assert_close(slope, -((g / sde.sigma(t)) ** 2), rtol=1e-8, atol=1e-8)


def test_time_of_log_snr_inverts_and_agrees_with_bisection(sde: SDE) -> None:
    t = torch.linspace(sde.t_min, sde.T, 201, dtype=torch.float64)
    torch.testing.assert_close(sde.time_of_log_snr(sde.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(SDE.time_of_log_snr(sde, sde.log_snr(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigma_is_accurate_where_one_minus_alpha_squared_is_not(dtype: torch.dtype) -> None:
    """At t = 1e-5 the first terms of the series are exact to 1e-6; float32 keeps 1e-6 too."""
    t = torch.tensor(1e-5, dtype=dtype)
    vp, sub = sd.VPSDE(), sd.SubVPSDE()
    integral = 0.1 * 1e-5 + 0.5 * 19.9e-10
    assert float(vp.sigma(t)) == pytest.approx(math.sqrt(integral * (1 - integral / 2)), rel=1e-6)
    assert float(sub.sigma(t)) == pytest.approx(integral * (1 - integral / 2), rel=1e-6)
    cosine = sd.CosineVPSDE()
    t64 = t.double()
    assert float(cosine.sigma(t)) == pytest.approx(float((1 - cosine.alpha(t64) ** 2).sqrt()), rel=1e-4)


def test_forward_simulation_reaches_the_marginal(sde: SDE) -> None:
    """Exact transitions chained from t_min to T give N(α x₀, σ²) within 5 standard errors."""
    generator = torch.Generator().manual_seed(0)
    n, x0 = 20_000, 1.5
    grid = torch.linspace(sde.t_min, sde.T, 11, dtype=torch.float64)
    x = sde.alpha(grid[0]) * x0 + sde.sigma(grid[0]) * torch.randn(n, generator=generator, dtype=torch.float64)
    for s, t in pairwise(sde.levels(grid)):
        ratio, variance = transition(t, s)
        x = ratio * x + variance**0.5 * torch.randn(n, generator=generator, dtype=torch.float64)
    mean, std = float(sde.alpha(grid[-1])) * x0, float(sde.sigma(grid[-1]))
    assert abs(float(x.mean()) - mean) < 5 * std / math.sqrt(n)
    assert abs(float(x.var()) - std**2) < 5 * std**2 * math.sqrt(2 / n)


def test_euler_maruyama_forward_agrees_with_the_primitives(sde: SDE) -> None:
    """Moments of the forward SDE under small Euler steps, in closed form: m′ = f m, (v)′ = 2 f v + g²."""
    steps = 20_000
    t0, t1 = 0.3, 0.8
    h = (t1 - t0) / steps
    f, g = sde.coefficients(t0 + h * (torch.arange(steps, dtype=torch.float64) + 0.5))
    growth = 1 + f * h
    later = growth.flip(0).cumprod(0).flip(0) / growth  # product of the factors after each step
    mean, variance = growth.prod(), (later**2 * g**2 * h).sum()
    ratio, exact = transition(sde.at(t1), sde.at(t0))
    assert float(mean) == pytest.approx(float(ratio), rel=2e-3)
    assert float(variance) == pytest.approx(float(exact), rel=2e-3)


def test_chain_is_exact_and_the_linear_sde_is_close(capsys: pytest.CaptureFixture[str]) -> None:
    """ᾱ_i of DDPM's 1,000 linear betas: reproduced to rounding by the chain, to 8.1e-4 by the VP SDE under t = i/N."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    chain, linear = sd.DDPMChain(betas), sd.VPSDE()
    exact = (chain.alpha(t) ** 2 - alpha_bar).abs().max()
    gap = (linear.alpha(t) ** 2 - alpha_bar).abs().max()
    first = float(linear.sigma(t[0]) ** 2 / betas[0] - 1)
    last = float(linear.alpha(t[-1]) ** 2 / alpha_bar[-1] - 1)
    with capsys.disabled():
        print(f"\nmax |Δᾱ|: chain {exact:.1e}, linear VP {gap:.2e}; first variance {first:+.1%}, ᾱ_N {last:+.1%}")
    assert exact < 1e-14
    assert 8.05e-4 < gap < 8.15e-4
    assert first == pytest.approx(0.099, abs=0.002)
    assert last == pytest.approx(0.07, abs=0.005)
    steps = [transition(t, s)[1] for s, t in pairwise(chain.levels(t))]
    torch.testing.assert_close(torch.tensor(steps, dtype=torch.float64), betas[1:], rtol=1e-9, atol=1e-15)


def test_cosine_chain_is_close_to_the_cosine_sde() -> None:
    chain, cosine = sd.DDPMChain.cosine(4000), sd.CosineVPSDE()
    t = torch.arange(1, 3900, dtype=torch.float64) / 4000
    assert (chain.alpha(t) - cosine.alpha(t)).abs().max() < 1e-10


def test_cosine_betas_are_clipped_at_0_999() -> None:
    """β_i = 1 − ᾱ_i/ᾱ_{i−1} with ᾱ ∝ cos²((i/N + s)/(1 + s) π/2), "no larger than 0.999" (Nichol & Dhariwal 2021)."""
    angle = [(i / 1000 + 0.008) / 1.008 * math.pi / 2 for i in range(1001)]
    exact = [min(1 - (math.cos(now) / math.cos(before)) ** 2, 0.999) for before, now in pairwise(angle)]
    assert exact[-1] == 0.999  # without the clip it were 1
    assert sd.DDPMChain.cosine().betas.tolist() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("sigma_max", [50.0, 348.0])
def test_prior_of_the_exploding_sde_is_its_noise(sigma_max: float) -> None:
    """N(0, σ(T)² I), with σ(T) = σ_max: drawn, as a density, and what it costs a point at 0, nothing."""
    sde = sd.VESDE(sigma_max=sigma_max)
    assert float(sde.sigma(time(sde.T))) == pytest.approx(sigma_max)
    assert sde.prior_std == pytest.approx(sigma_max, rel=1e-12)
    x = torch.tensor([[3.0, -70.0]], dtype=torch.float64)
    assert float(sde.prior_logp(x)) == pytest.approx(norm.logpdf(x, 0.0, sigma_max).sum())
    assert float(prior_kl(sde, torch.zeros(1, 2))) == pytest.approx(0.0, abs=1e-12)
    drawn = sde.prior_sampling((500_000, 2), torch.Generator().manual_seed(0))
    assert float(drawn.std()) == pytest.approx(sigma_max, rel=5 / math.sqrt(2 * 1_000_000))


@pytest.mark.parametrize(
    "shape", [(3, 5), (3, 2, 7), (3, 1, 8, 8), (3, 2, 4, 4, 4)], ids=["vector", "series", "image", "volume"]
)
def test_any_rank(sde: SDE, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for t in (time(0.5), torch.full((3,), 0.5, dtype=torch.float64)):
        mean, std = sde.marginal_prob(x, t)
        drift, diffusion = sde.sde(x, t)
        assert mean.shape == drift.shape == x.shape
        assert std.shape == diffusion.shape == t.shape
        assert mean.dtype == drift.dtype == torch.float32
    prior = sde.prior_sampling(shape, torch.Generator().manual_seed(0))
    assert prior.shape == shape
    reference = torch.distributions.Normal(0.0, sde.prior_std).log_prob(x.double()).reshape(3, -1).sum(1)
    torch.testing.assert_close(sde.prior_logp(x.double()), reference)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("vp", {"beta_min": -1.0}, "beta_min=-1.0"),
        ("vp", {"beta_max": 0.01}, "beta_max=0.01"),
        ("subvp", {"beta_max": "20"}, "beta_max='20'"),
        ("ve", {"sigma_min": 0.0}, "sigma_min=0.0"),
        ("ve", {"sigma_max": 0.001}, "sigma_max=0.001"),
        ("cosine", {"T": 1.0}, "T=1.0"),
        ("ddpm", {"num_train_steps": 0}, "num_train_steps=0"),
        ("ddpm", {"schedule": "lineer"}, "schedule='lineer'"),
        ("ddpm", {"beta_last": 1.5}, r"betas\["),
        ("ddpm", {"betas": (0.1, 1e-13)}, r"betas\[1\]=1e-13: expected every beta in \[1e-12, 1\)"),
        ("sub_vp", {}, "did you mean 'subvp'"),
        ("vp", {"beta_mim": 0.1}, "did you mean 'beta_min'"),
    ],
)
def test_bad_input(name: str, options: dict[str, object], match: str) -> None:
    with pytest.raises(sd.InputError, match=match) as caught:
        SDES.build(name, **options)
    assert "\n" not in str(caught.value)
