"""Variational bounds: every term against its closed form on Gaussian data, the decoder, the forward posterior."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.bounds import VariationalBound, level_log_prob, prior_kl
from sde_diffusion.levels import NoiseLevel, transition
from sde_diffusion.sdes import SDES
from sde_diffusion.timesteps import GRIDS
from tests.conftest import time

VARIANCES = torch.tensor([0.3, 1.5], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.2], dtype=torch.float64)
LAW = sd.Gaussian(MEAN, VARIANCES.diag())
N, DRAWS = 10, 4000


def within(values: Tensor, exact: Tensor | float) -> None:
    """The mean over the last axis equals the exact value within 5 standard errors."""
    error = values.std(dim=-1) / math.sqrt(values.shape[-1])
    assert ((values.mean(dim=-1) - exact).abs() <= 5.0 * error + 1e-9).all()


def posterior_spread(alpha: Tensor, sigma: Tensor) -> Tensor:
    """E|x₀ − x̂₀|² at each time."""
    return (VARIANCES * sigma[:, None] ** 2 / (alpha[:, None] ** 2 * VARIANCES + sigma[:, None] ** 2)).sum(dim=1)


def entropy() -> float:
    """−E log p(x₀)."""
    return float(0.5 * (2.0 * math.pi * math.e * VARIANCES).log().sum())


def data(seed: int = 0) -> Tensor:
    return LAW.sample(DRAWS, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SDES.names())
@pytest.mark.parametrize("variance", ["posterior", "beta", 0.5])
def test_discrete_terms_in_closed_form(name: str, variance: str | float) -> None:
    sde = SDES.build(name)
    times = GRIDS["uniform"](sde, N, 0.02)
    bound = sd.discrete_bound(LAW.denoiser(sde), data(), times, sd.NoiseStream(1, range(DRAWS)), variance=variance)
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    spread = posterior_spread(alpha, sigma)

    # L_{i−1}: Gaussians with means b|x₀ − x̂₀| apart, with variances β̃ and v = β^w β̃^{1−w}, in two dimensions.
    t, s = times[:-1], times[1:]
    ratio_ts = sde.alpha(t) / sde.alpha(s)
    beta = sde.sigma(t) ** 2 - (ratio_ts * sde.sigma(s)) ** 2
    exact = beta * (sde.sigma(s) / sde.sigma(t)) ** 2
    v = {"posterior": exact, "beta": beta}.get(str(variance), (exact * beta).sqrt())
    shift = (sde.alpha(s) * beta / sde.sigma(t) ** 2) ** 2 * spread[:-1]
    within(bound.terms, exact / v - 1.0 - (exact / v).log() + 0.5 * shift / v)
    if variance == "posterior":  # the same as ½ (SNR_s − SNR_t) E|x₀ − x̂₀|²
        snr = sde.log_snr(times).exp()
        torch.testing.assert_close(0.5 * shift / v, 0.5 * snr.diff() * spread[:-1], rtol=1e-6, atol=1e-9)

    last = sigma[-1] ** 2
    within(bound.reconstruction, (2.0 * math.pi * last).log() + 0.5 * spread[-1] / last)

    second = (VARIANCES + MEAN**2).sum()
    prior, a, g = sde.prior_std, alpha[0], sigma[0]
    within(bound.prior, 0.5 * (2 * (g**2 / prior**2 - 1.0 - 2.0 * (g / prior).log()) + (a / prior) ** 2 * second))
    assert bound.prior.mean() >= LAW.prior_kl(sde)
    assert torch.equal(bound.times, times[:-1, None].expand(-1, DRAWS))


@pytest.mark.parametrize("name", SDES.names())
def test_continuous_bound_in_closed_form(name: str) -> None:
    sde = SDES.build(name)
    t_min = max(sde.t_min, 1e-3)
    bound = sd.continuous_bound(LAW.denoiser(sde), data(), sd.NoiseStream(1, range(DRAWS)), draws=16, t_min=t_min)
    ends = torch.tensor([t_min, sde.T], dtype=torch.float64)
    high, low = sde.log_snr(ends).exp()
    # ½ ∫ E|ε − ε̂|² dλ with E|ε − ε̂|² = snr V/(1 + snr V)
    exact = 0.5 * ((VARIANCES * high).log1p() - (VARIANCES * low).log1p()).sum()
    within(bound.terms.sum(dim=0), exact)
    sigma = sde.sigma(ends)[0]
    decoder = (2.0 * math.pi * sigma**2).log() + 0.5 * posterior_spread(sde.alpha(ends), sde.sigma(ends))[0] / sigma**2
    within(bound.reconstruction, decoder)
    total = float(exact + decoder + prior_kl(sde, data()).mean())
    within(bound.total, total)
    # A bound, and with an exact score nearly an equality: what remains is the prior's and the decoder's.
    assert 0.0 < total - entropy() < 0.02


def test_times_of_the_continuous_bound_fill_their_cells() -> None:
    """Uniform in log SNR over each of draws/2 cells, two in each: no part of the integral is left out."""
    sde, cells = sd.VPSDE(), 8
    noise = sd.NoiseStream(3, range(DRAWS))
    times = sd.continuous_bound(LAW.denoiser(sde), data(), noise, draws=2 * cells, t_min=1e-3).times
    high, low = sde.log_snr(torch.tensor([1e-3, sde.T], dtype=torch.float64))
    place = cells * (high - sde.log_snr(times)) / (high - low)
    cell = place.floor()
    assert torch.equal(cell, torch.arange(cells).repeat_interleave(2)[:, None].expand(-1, DRAWS).to(cell))
    assert kstest((place - cell).flatten().numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("cell", [None, 0.1])
def test_terms_are_of_the_noise_that_was_drawn(cell: float | None) -> None:
    """L_0 = −Σ log N(x₀; x̂₀, σ²), or of its mass in the level's cell, by SciPy; L_1 = ½ (SNR_s − SNR_t) |x₀ − x̂₀|²."""
    sde, t_1 = sd.VPSDE(), 0.02
    x0 = torch.tensor([[0.3, -0.4], [0.8, 0.1]], dtype=torch.float64)
    eps = torch.tensor([[0.2, -1.0], [1.4, 0.6]], dtype=torch.float64)
    denoiser = LAW.denoiser(sde)
    alpha, sigma = float(sde.alpha(time(t_1))), float(sde.sigma(time(t_1)))
    mean = denoiser(alpha * x0 + sigma * eps, t_1).x0
    if cell is None:
        exact = -norm.logpdf(x0, mean, sigma).sum(axis=1)
    else:
        ends = (norm.cdf(x0 + half, mean, sigma) for half in (0.5 * cell, -0.5 * cell))
        exact = -np.log(next(ends) - next(ends)).sum(axis=1)

    class Known(sd.NoiseStream):
        def __call__(self, x: Tensor, t: NoiseLevel | None = None, s: NoiseLevel | None = None) -> Tensor:
            return eps

    bounds = (
        sd.discrete_bound(denoiser, x0, torch.tensor([1.0, t_1], dtype=torch.float64), Known(0, range(2)), cell=cell),
        sd.continuous_bound(denoiser, x0, Known(0, range(2)), draws=2, t_min=t_1, cell=cell),
    )
    for bound in bounds:
        np.testing.assert_allclose(bound.reconstruction.numpy(), exact, rtol=1e-9)
    first = denoiser(float(sde.alpha(time(1.0))) * x0 + float(sde.sigma(time(1.0))) * eps, 1.0).x0
    low, high = sde.log_snr(torch.tensor([1.0, t_1], dtype=torch.float64)).exp()
    torch.testing.assert_close(bounds[0].terms[0], 0.5 * (high - low) * (x0 - first).square().sum(dim=1))


def test_standard_error_of_the_continuous_bound_is_calibrated() -> None:
    """One and the same x₀ many times: the spread of its estimates is what each of them says."""
    x0 = data()[:1].expand(DRAWS, -1)
    bound = sd.continuous_bound(LAW.denoiser(sd.VPSDE()), x0, sd.NoiseStream(2, range(DRAWS)), draws=16)
    spread = bound.terms.sum(dim=0).var()
    ratio = bound.std_error.square().mean() / spread
    assert 0.85 < float(ratio) < 1.15  # each side has a relative error of some √(2/4000) = 2 %, with heavy tails


def test_discrete_bound_falls_to_the_continuous_one() -> None:
    sde = sd.VPSDE()
    totals = []
    for n in (10, 40, 160):
        noise = sd.NoiseStream(1, range(DRAWS))
        bound = sd.discrete_bound(LAW.denoiser(sde), data(), GRIDS["log_snr"](sde, n, 1e-3), noise)
        totals.append(float(bound.total.mean()))
    noise = sd.NoiseStream(1, range(DRAWS))
    limit = float(sd.continuous_bound(LAW.denoiser(sde), data(), noise, draws=64, t_min=1e-3).total.mean())
    gaps = [total - limit for total in totals]
    assert gaps[0] > 3.5 * gaps[1] > 3.5**2 * gaps[2] > 0.0  # first order: a quarter of the step, a quarter of the gap


@pytest.mark.parametrize("name", SDES.names())
def test_forward_posterior_is_bayes_rule(name: str) -> None:
    """q(x_s | x_t, x₀) ∝ q(x_t | x_s) q(x_s | x₀), multiplied out as Gaussians."""
    sde = SDES.build(name)
    t, s = torch.tensor([0.9, 0.4, 0.05], dtype=torch.float64), torch.tensor([0.5, 0.39, 0.01], dtype=torch.float64)
    x, x0 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, variance = sd.forward_posterior(sde, x, x0, t, s)
    ratio, beta = transition(sde.at(t), sde.at(s))
    precision = ratio**2 / beta + 1.0 / sde.sigma(s) ** 2
    expected = ((ratio / beta)[:, None] * x + (sde.alpha(s) / sde.sigma(s) ** 2)[:, None] * x0) / precision[:, None]
    torch.testing.assert_close(variance, 1.0 / precision, rtol=1e-8, atol=0)
    torch.testing.assert_close(mean, expected, rtol=1e-8, atol=1e-12)


def test_forward_posterior_of_the_chain_is_equation_7() -> None:
    sde = sd.DDPMChain.linear()
    i = 500
    beta, bar = sde.betas[i - 1], (1.0 - sde.betas).cumprod(0)
    x, x0 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, variance = sd.forward_posterior(sde, x, x0, time(i / 1000), time((i - 1) / 1000))
    before, now = bar[i - 2], bar[i - 1]
    expected = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance, (1 - before) / (1 - now) * beta, rtol=1e-9, atol=0)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [1e-4, 0.03, 2.0])
def test_decoder_gives_levels_their_mass(levels: int, std: float) -> None:
    cell = 2.0 / (levels - 1)
    x = torch.linspace(-1.0, 1.0, levels, dtype=torch.float64)[:, None]
    for mean in (-1.3, 0.011, 1.0):
        log_mass = level_log_prob(x, torch.full_like(x, mean), time(std), cell)
        assert torch.isfinite(log_mass).all()  # far tails too
        assert float(log_mass.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        edges = [-math.inf, *(x[:-1, 0] + 0.5 * cell).tolist(), math.inf]
        exact = [norm.cdf(b, mean, std) - norm.cdf(a, mean, std) for a, b in pairwise(edges)]
        torch.testing.assert_close(log_mass.exp(), torch.tensor(exact, dtype=torch.float64), rtol=0, atol=1e-12)


def test_grey_levels_are_bounded_without_dequantisation() -> None:
    """Two grey levels with a perfect denoiser: the bound must be near one bit, and not below it."""
    levels = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    denoiser = sd.Empirical(levels).denoiser(sd.VPSDE())
    x0 = levels.repeat(2000, 1)
    bound = sd.continuous_bound(denoiser, x0, sd.NoiseStream(0, range(4000)), draws=64, t_min=1e-3, cell=2.0)
    error = float(bound.total.std()) / math.sqrt(4000)
    assert math.log(2.0) - 4.0 * error <= float(bound.total.mean()) <= math.log(2.0) + 4.0 * error + 1e-3


@pytest.mark.parametrize(
    ("call", "options", "match"),
    [
        ("continuous", {"draws": 3}, "draws=3"),
        ("continuous", {"draws": 0}, "draws=0"),
        ("continuous", {"t_min": 0.0}, "t_min=0"),
        ("continuous", {"cell": -1.0}, "cell=-1"),
        ("discrete", {"variance": "learned"}, "variance='learned'"),
        ("discrete", {"times": torch.tensor([0.1, 1.0], dtype=torch.float64)}, "times="),
        ("discrete", {"times": torch.tensor([0.9, 0.1], dtype=torch.float64)}, "times="),
    ],
)
def test_bad_arguments(call: str, options: dict[str, object], match: str) -> None:
    sde, x0, noise = sd.VPSDE(), data()[:2], sd.NoiseStream(0, range(2))

    def run() -> VariationalBound:
        if call == "continuous":
            return sd.continuous_bound(LAW.denoiser(sde), x0, noise, **options)  # type: ignore[arg-type]
        times = options.pop("times", GRIDS["uniform"](sde, 4, 0.02))
        return sd.discrete_bound(LAW.denoiser(sde), x0, times, noise, **options)  # type: ignore[arg-type]

    with pytest.raises(sd.InputError, match=match):
        run()
