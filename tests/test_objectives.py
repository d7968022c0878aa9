"""Ground truths 13 and Vincent's identity: what is learned is the score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.objectives import OBJECTIVES, TIMES, WEIGHTINGS
from sde_diffusion.objectives.times import Uniform
from sde_diffusion.objectives.weightings import EDM, Likelihood, Simple
from sde_diffusion.predictions import VIEWS
from sde_diffusion.sdes import SDE
from tests.conftest import time


def as_prediction(law: sd.Law, sde: SDE, kind: str, error: float = 0.0) -> sd.Denoiser:
    """The law's exact denoiser plus ``error`` in ε, put as a network of the given prediction."""
    exact = law.denoiser(sde)

    def net(x: Tensor, label: Tensor) -> Tensor:
        t = label / 999
        p = exact(x, t)
        eps = p.eps + error
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = sde.alpha(t).reshape(shape), sde.sigma(t).reshape(shape)
        x0 = (x - sigma * eps) / alpha
        here = sde.at(t).like(x)
        velocity = here.d_alpha * x0 + here.d_sigma * eps
        views = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma, "velocity": velocity}
        return views[kind]

    return sd.Denoiser(net, sde, prediction=kind, noise_label="scaled")


@pytest.mark.parametrize("weighting", WEIGHTINGS.names())
def test_all_predictions_have_the_same_weighted_loss(sde: SDE, weighting: str) -> None:
    law = sd.GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [[[0.1, 0.0], [0.0, 0.2]]] * 2)
    generator = torch.Generator().manual_seed(0)
    x0, eps = law.sample(64, generator), torch.randn(64, 2, generator=generator, dtype=torch.float64)
    t = sde.t_min + (sde.T - sde.t_min) * torch.rand(64, generator=generator, dtype=torch.float64)
    loss = sd.DenoisingScoreMatching(Uniform(), WEIGHTINGS.build(weighting))
    losses = [loss.at(as_prediction(law, sde, kind, error=0.1), x0, t, eps) for kind in VIEWS]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-6, atol=1e-9)
    assert losses[0].shape == (64,)


def test_weightings_are_those_of_their_papers(sde: SDE) -> None:
    """w is a weight on the error of ε, which is that of x₀ times α/σ, and that of the score times σ."""
    t = torch.linspace(sde.t_min, sde.t_max, 57, dtype=torch.float64)
    snr, rho = (sde.alpha(t) / sde.sigma(t)) ** 2, sde.sigma(t) / sde.alpha(t)

    def weight(name: str, **options: float) -> Tensor:
        return WEIGHTINGS.build(name, **options)(sde, t)

    assert torch.equal(weight("simple"), torch.ones_like(t))
    torch.testing.assert_close(weight("likelihood") * sde.sigma(t) ** 2, sde.coefficients(t)[1] ** 2)
    for gamma in (5.0, 1.7):  # 5 is the paper's and the default
        options = {} if gamma == 5.0 else {"gamma": gamma}
        torch.testing.assert_close(weight("min_snr", **options) * snr, snr.clamp_max(gamma), rtol=1e-9, atol=0.0)
    for std in (0.5, 1.3):
        options = {} if std == 0.5 else {"sigma_data": std}
        karras = (rho**2 + std**2) / (rho * std) ** 2
        torch.testing.assert_close(weight("edm", **options) * snr, karras, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("t_value", [0.05, 0.5, 0.95])
def test_optimum_on_gaussian_data(sde: SDE, t_value: float) -> None:
    """A dimension of data N(0, V): ε-MSE α²V/(α²V + σ²), which is SNR times the x₀-MSE Vσ²/(α²V + σ²)."""
    variance, n = 0.3, 40_000
    law, t = sd.Gaussian([0.0, 0.0], variance * torch.eye(2)), time(t_value).expand(n)
    generator = torch.Generator().manual_seed(2)
    x0, eps = law.sample(n, generator), torch.randn(n, 2, generator=generator, dtype=torch.float64)
    losses = sd.DenoisingScoreMatching(Uniform(), Simple()).at(as_prediction(law, sde, "eps"), x0, t, eps)
    alpha, sigma = float(sde.alpha(t[0])), float(sde.sigma(t[0]))
    exact = alpha**2 * variance / (alpha**2 * variance + sigma**2)
    assert abs(float(losses.mean()) - exact) < 5 * float(losses.std()) / math.sqrt(n)
    worse = sd.DenoisingScoreMatching(Uniform(), Simple()).at(as_prediction(law, sde, "eps", 0.1), x0, t, eps)
    assert float(worse.mean() - losses.mean()) == pytest.approx(0.01, abs=5 * 0.2 / math.sqrt(2 * n))


@pytest.mark.parametrize("name", sorted({*TIMES.names()} - {"log_normal"}))
def test_times_and_their_importance(sde: SDE, name: str) -> None:
    """E[factor · h(t)] is the mean of h over uniform times, within 5 standard errors."""
    times = TIMES.build(name, t_min=1e-3)
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    t, factor = times(sde, u)
    assert float(t.min()) > 0
    assert float(t.max()) <= sde.T + 1e-12
    for h in (lambda a: torch.ones_like(a), lambda a: a, lambda a: (3 * a).cos()):
        grid = 1e-3 + (sde.T - 1e-3) * (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        values = factor * h(t)
        slack = 5 * float(values.std()) / math.sqrt(len(u)) + 1e-3  # the 1,000 discrete times are half a step off
        assert abs(float(values.mean() - h(grid).mean())) < slack


def test_log_normal_times(sde: SDE) -> None:
    """log(σ/α) follows the normal law cut off at both ends; stratified, 1,000 quantiles are exact to half a cell."""
    times = TIMES.build("log_normal", t_min=1e-3, mean=-0.5, std=0.8)
    u = torch.rand(1000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    t, factor = times(sde, u)
    assert (factor == 1).all()
    assert ((t >= 1e-3) & (t <= sde.T)).all()
    low, high = (-0.5 * sde.log_snr(time(end)) for end in (1e-3, sde.T))
    ends = [(float(end) + 0.5) / 0.8 for end in (low, high)]
    law = stats.truncnorm(*ends, loc=-0.5, scale=0.8)
    found = law.cdf((-0.5 * sde.log_snr(t)).numpy())
    np.testing.assert_allclose(found, (np.arange(1000) + u.numpy()) / 1000, rtol=0, atol=1e-6)


def test_importance_makes_the_likelihood_weight_constant(sde: SDE) -> None:
    u = torch.rand(1000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    t, factor = TIMES.build("importance", t_min=1e-3)(sde, u)
    weight = factor * Likelihood()(sde, t)
    torch.testing.assert_close(weight, weight[:1].expand(1000), rtol=1e-6, atol=0.0)


def test_vincent_identity() -> None:
    """The gradient of denoising score matching equals that of explicit score matching, for any network.

    Data: a mixture in one dimension; expectations by Gauss-Hermite quadrature over (component, x₀, ε), so that both
    sides are exact to the quadrature error, which falls exponentially for the analytic network.
    """
    sde, t = sd.VPSDE(), time(0.4)
    law = sd.GaussianMixture([0.3, 0.7], [[-0.8], [0.6]], [[[0.04]], [[0.09]]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    h, w = torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))
    x0 = (law.means + law.covariances[:, 0].sqrt() * h).reshape(2, 60, 1)
    eps = h.reshape(1, 1, 60)
    joint = law.weights.reshape(2, 1, 1) * w.reshape(1, 60, 1) * w.reshape(1, 1, 60)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = alpha * x0 + sigma * eps
    weight, bias, out = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.7, -0.4], [0.1, 0.3], [0.5, -1.1])
    )

    def score(y: Tensor) -> Tensor:
        return (out * torch.sin(y[..., None] * weight + bias)).sum(-1)

    true_score = law.score(x.reshape(-1, 1), sde, t).reshape(x.shape)
    explicit = 0.5 * (joint * (score(x) - true_score) ** 2).sum()
    denoising = 0.5 * (joint * (score(x) + eps / sigma) ** 2).sum()
    assert float(denoising - explicit) > 0.01  # the constant is there …
    for a, b in zip(
        torch.autograd.grad(explicit, (weight, bias, out)),
        torch.autograd.grad(denoising, (weight, bias, out)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)  # … and has no gradient


def test_call_draws_each_example_from_its_stream() -> None:
    """The loss of an example does not depend on the rest of the batch (uniform times)."""
    law, sde = sd.Gaussian([0.0, 0.0], torch.eye(2)), sd.VPSDE()
    denoiser, x0 = as_prediction(law, sde, "eps", 0.1), law.sample(6)
    loss = sd.DenoisingScoreMatching(Uniform(), Simple())
    whole = loss(denoiser, x0, sd.NoiseStream(3, range(6)))
    part = loss(denoiser, x0[2:4], sd.NoiseStream(3, range(2, 4)))
    torch.testing.assert_close(whole[2:4], part)
    assert whole.shape == (6,)


def test_parts_by_name_by_options_and_as_objects() -> None:
    """The same objective, whichever way it is told its parts, draws the same losses."""
    law = sd.Gaussian([0.0, 0.0], torch.eye(2))
    denoiser, x = law.denoiser(sd.VPSDE()), law.sample(6)
    told = [
        sd.DenoisingScoreMatching(Uniform(), EDM(sigma_data=0.5)),
        sd.DenoisingScoreMatching("uniform", "edm"),
        sd.DenoisingScoreMatching({"name": "uniform"}, {"name": "edm", "sigma_data": 0.5}),
    ]
    first, *others = (objective(denoiser, x, sd.NoiseStream(0, range(6))) for objective in told)
    assert all(torch.equal(other, first) for other in others)


def test_a_network_is_no_denoiser() -> None:
    with pytest.raises(sd.InputError, match="model=Linear: expected a denoiser; wrap a network"):
        sd.DenoisingScoreMatching()(torch.nn.Linear(2, 2), torch.zeros(3, 2), sd.NoiseStream(0, range(3)))


@pytest.mark.parametrize(
    ("registry", "name", "options", "match"),
    [
        (WEIGHTINGS, "min_snr", {"gamma": -1.0}, "gamma=-1.0"),
        (WEIGHTINGS, "edm", {"sigma_data": 0.0}, "sigma_data=0.0"),
        (WEIGHTINGS, "simpel", {}, "did you mean 'simple'"),
        (TIMES, "uniform", {"t_min": 0.0}, "t_min=0.0"),
        (TIMES, "discrete", {"num_train_steps": 1.5}, "num_train_steps=1.5"),
        (OBJECTIVES, "denoising", {"times": "unifrom"}, "time distribution='unifrom': unknown; did you mean"),
        (OBJECTIVES, "denoising", {"weighting": {"sigma_data": 1.0}}, "expected a name, or a mapping of 'name'"),
        (OBJECTIVES, "denoising", {"weighting": {"name": "edm", "sigma": 1.0}}, "did you mean 'sigma_data'"),
    ],
)
def test_bad_input(registry: sd.registry.Registry[object], name: str, options: dict[str, object], match: str) -> None:
    with pytest.raises(sd.InputError, match=match):
        registry.build(name, **options)
