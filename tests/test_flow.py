"""Rectified flow, whose α is 0 at T: slopes, starts, labels, losses, likelihoods and bounds where λ is −∞."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import samplers
import sde_diffusion as sd
from sde_diffusion.bounds import prior_kl
from sde_diffusion.denoisers import PREDICTIONS
from sde_diffusion.evaluation.verification import three_modes
from sde_diffusion.labels import NOISE_LABELS
from sde_diffusion.objectives import TIMES, WEIGHTINGS
from sde_diffusion.objectives.times import Uniform
from sde_diffusion.predictions import VIEWS
from sde_diffusion.sdes import SDE
from tests.conftest import time

FLOW = sd.FlowSDE()
AT_T = ("x0", "v", "velocity", "edm")
"""Predictions that tell x₀ and ε where α is 0."""


def as_network(law: sd.Law, sde: SDE, prediction: str, **options: Any) -> sd.Denoiser:
    """The law's exact denoiser, put as a network of the given prediction that is told the time."""
    exact = law.denoiser(sde)

    def net(x: Tensor, label: Tensor) -> Tensor:
        t = (label.double() / 999.0).clamp_max(sde.T)
        level = sde.at(t)
        here = level.like(x)
        if prediction != "edm":
            return exact(x, level).view(prediction)
        size = (0.25 * here.alpha**2 + here.sigma**2) ** 0.5  # the network is given x/size, of σ_d = ½
        p = exact(x * size, level)
        return (here.sigma * p.x0 / 0.5 - here.alpha * 0.5 * p.eps) / size

    return sd.Denoiser(net, sde, prediction, noise_label="scaled", **options)


def test_the_lines_are_straight() -> None:
    """dx/dt = ε − x₀ along each of them, and the closed forms are those of α = 1 − t and σ = t."""
    t = torch.tensor([1e-3, 0.25, 0.75, 1.0], dtype=torch.float64)
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = FLOW.at(t)
    x = level.like(x0).alpha * x0 + level.like(x0).sigma * eps
    torch.testing.assert_close(x, x0 + t[:, None] * (eps - x0))
    torch.testing.assert_close(sd.Prediction(x, level.like(x), {"x0": x0}).velocity, eps - x0)
    assert (FLOW.T, FLOW.prior_std, FLOW.t_min, FLOW.t_max) == (1.0, 1.0, 1e-3, 0.999)
    end = FLOW.at(1.0)
    assert (end.alpha, end.sigma, end.d_alpha, end.d_sigma) == (0.0, 1.0, -1.0, 1.0)


def test_a_velocity_tells_x0_and_eps_at_every_time(sde: SDE) -> None:
    """The determinant of (x, velocity) in (x₀, ε), α σ′ − α′ σ, is positive at every knot, and at T."""
    count = getattr(sde, "num_train_steps", 1000)
    for t in (torch.arange(1, count + 1, dtype=torch.float64) / count * sde.T, time(sde.T)):
        level = sde.at(t)
        assert (torch.as_tensor(level.alpha * level.d_sigma - level.d_alpha * level.sigma) > 0.0).all()


def test_slopes_at_the_knots_of_a_chain_are_those_from_the_left() -> None:
    chain = sd.DDPMChain([0.1, 0.4, 0.2])
    t, h = torch.arange(1, 4, dtype=torch.float64) / 3, 1e-6
    level = chain.at(t)
    for slope, of in ((level.d_alpha, chain.alpha), (level.d_sigma, chain.sigma)):
        # the remainder h/2 · |second derivative|, which is below (3 · 0.51)² here
        torch.testing.assert_close(slope, (of(t) - of(t - h)) / h, rtol=0.0, atol=1.2 * h + 1e-9)
    right = (chain.alpha(t[:-1] + h) - chain.alpha(t[:-1])) / h
    assert ((level.d_alpha[:-1] - right).abs() > 0.1).all()  # type: ignore[index]


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_on_every_sde_from_one_step_up(sde: SDE, prediction: str, name: str) -> None:
    """Finite from pure noise, with a network that is no denoiser of anything, and a start where its output is read."""
    denoiser = sd.Denoiser(lambda x, label: 0.1 * x + 0.01 * label.sin()[:, None], sde, prediction)
    counts = (1, 2, 3, 30) if "num_steps" in samplers.config(name) else (None,)
    for n in counts:
        sampler = samplers.build(name, **({} if n is None else {"num_steps": n}))
        result = sampler.draw(denoiser, (2, 2), dtype=torch.float64)
        assert torch.isfinite(result.x).all()
        whole = sampler.from_pure_noise and prediction not in ("eps", "score")
        assert float(result.times[0]) == (sde.T if whole else sde.t_max)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_networks_of_every_prediction_draw_what_the_law_draws(prediction: str) -> None:
    """From T to rounding; ε and score start at 0.999, where the state lies 1e-3 |x₀ − ε| off."""
    law, start = three_modes(), torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sampler in (samplers.build("ddim", num_steps=20), samplers.build("probability_flow", rtol=1e-8, atol=1e-8)):
        found, exact = (
            sampler.sample(d, start, lambda x, t, s: x) for d in (as_network(law, FLOW, prediction), law.denoiser(FLOW))
        )
        assert float(found.times[0]) == (1.0 if prediction in AT_T else 0.999)
        far = (found.x - exact.x).norm(dim=1)
        if prediction in AT_T:
            assert float(far.max()) < 1e-4  # the network is told the time in float32: 6e-8, times slopes of some 1e3
        else:
            # Both ends of a slope of at most σ_T/σ_mode near a mode; between modes the flow parts what is close.
            assert float(far.median()) < 0.01


def test_a_network_of_few_times_starts_at_one_of_them() -> None:
    """Of the times 1/50 … 1 an ε-network has its last below 0.999 at 0.98; one of x₀ has it at 1."""
    for prediction, start in (("eps", 0.98), ("x0", 1.0)):
        denoiser = sd.Denoiser(
            lambda x, label: 0.1 * x, FLOW, prediction, NOISE_LABELS.build("discrete", num_train_steps=50)
        )
        assert denoiser.start_time() == pytest.approx(start, abs=1e-12)
        assert denoiser.start_time(from_pure_noise=False) == pytest.approx(0.98, abs=1e-12)
        times = samplers.build("ddim", num_steps=10).times(denoiser)  # type: ignore[attr-defined]
        torch.testing.assert_close(times * 50, (times * 50).round())


def test_a_start_of_ones_own() -> None:
    law, x = three_modes(), torch.ones(1, 2, dtype=torch.float64)
    early, late = (torch.tensor([t, 0.5, 0.1], dtype=torch.float64) for t in (0.9995, 0.9))
    heun: Any = samplers.build("heun")
    assert torch.isfinite(heun.sample(law.denoiser(FLOW), x, lambda x, t, s: x, times=late).x).all()
    with pytest.raises(sd.InputError, match=r"within \(0, 0\.999\]"):
        heun.sample(law.denoiser(FLOW), x, lambda x, t, s: x, times=early)
    with pytest.raises(sd.InputError, match=r"t_min=0\.9995: expected a time below 0\.999"):
        samplers.build("ddim", t_min=0.9995).draw(law.denoiser(FLOW), (1, 2))


def test_every_label_is_finite_at_pure_noise() -> None:
    """−λ/8 has no end at α = 0: from 0.999 on it is what it is there, and the other labels go on to T."""
    seen: list[Tensor] = []

    def net(x: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return 0.1 * x

    x = torch.zeros(3, 2)
    for name in NOISE_LABELS.names():
        seen.clear()
        denoiser = sd.Denoiser(net, FLOW, "velocity", name)
        for t in (1.0, 0.999, torch.tensor([1.0, 0.999, 0.5], dtype=torch.float64)):
            denoiser(x, t)
        alone, before, mixed = seen
        assert torch.isfinite(torch.cat(seen)).all()
        assert torch.equal(mixed[:2], torch.stack([alone[0], before[0]]))
        assert bool(alone[0] == before[0]) == (name == "log_snr")
    assert float(before[0]) == pytest.approx(998.0 if name == "scaled" else float(before[0]))


@pytest.mark.parametrize("weighting", WEIGHTINGS.names())
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_losses_are_finite_up_to_pure_noise_and_equal_before(prediction: str, weighting: str) -> None:
    law, generator = three_modes(), torch.Generator().manual_seed(0)
    x0, eps = law.sample(8, generator), torch.randn(8, 2, generator=generator, dtype=torch.float64)
    loss = sd.DenoisingScoreMatching(Uniform(), WEIGHTINGS.build(weighting))
    t = torch.tensor([1e-3, 0.3, 0.9, 0.99, 0.999, 0.9999, 1.0 - 1e-12, 1.0], dtype=torch.float64)
    found = loss.at(as_network(law, FLOW, prediction), x0, t, eps)
    assert torch.isfinite(found).all()
    expected = loss.at(as_network(law, FLOW, "x0"), x0, t, eps)
    torch.testing.assert_close(found[:5], expected[:5], rtol=1e-3, atol=1e-6)  # times of the network are of float32
    if prediction in AT_T:
        reach = loss.at(as_network(law, FLOW, prediction), x0, time(0.999).expand(8), eps)
        assert float(found[-1]) == pytest.approx(float(reach[-1]), rel=0.02, abs=1e-5)  # x is 1e-3 |x₀ − ε| further
    else:
        assert float(found[-1]) == 0.0  # the noise is the state


@pytest.mark.parametrize("name", TIMES.names())
def test_losses_of_every_time_distribution_are_finite(name: str) -> None:
    law = three_modes()
    loss = sd.DenoisingScoreMatching(TIMES.build(name), "edm")
    found = loss(as_network(law, FLOW, "velocity"), law.sample(500), sd.NoiseStream(0, range(500)))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_likelihood_counts_where_it_ends_in_the_prior_term(prediction: str) -> None:
    """log p_{t_min} is the law's but for log p − log prior at the end: at T nothing, at 0.999 what the budget says."""
    law = sd.Gaussian([0.3, -0.5], [[0.3, 0.1], [0.1, 0.2]])
    x = law.sample(200, torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"divergence": "exact", "rtol": 1e-7, "atol": 1e-7, "t_min": 1e-3, "check": 0}
    r = sd.log_likelihood(as_network(law, FLOW, prediction), x, **options)
    end = time(1.0 if prediction in AT_T else 0.999)
    prior_term = law.log_prob(r.latent, FLOW, end) - FLOW.prior_logp(r.latent)
    # float32 times of the network: 6e-8 of log p's slope in t, 1/t, over the way
    torch.testing.assert_close(r.log_prob + prior_term, law.log_prob(x, FLOW, time(1e-3)), rtol=0.0, atol=5e-3)
    assert not r.budget.prior_is_exact
    if prediction in AT_T:
        assert r.budget.prior == 0.0
    else:
        # ½ (D (σ² − 1 − 2 log σ) + α² E|x₀|²) at σ = 0.999 and α = 1e-3
        exact = (0.999**2 - 1.0 - 2.0 * math.log(0.999)) + 0.5e-6 * float(x.square().sum(dim=1).mean())
        assert r.budget.prior == pytest.approx(exact, rel=1e-6)
        assert 0.0 < float(prior_term.mean().abs()) < 0.01


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bounds_of_a_gaussian(prediction: str) -> None:
    """Both are bounds, every term is finite, the prior's is that of the start, and the sum is as derived."""
    law, n = sd.Gaussian([0.4], [[0.25]]), 4000
    x0 = law.sample(n, torch.Generator().manual_seed(0))
    denoiser = as_network(law, FLOW, prediction)
    times = torch.linspace(denoiser.start_time(), 0.01, 30, dtype=torch.float64)
    bounds = [
        sd.discrete_bound(denoiser, x0, times, sd.NoiseStream(0, range(n))),
        sd.continuous_bound(denoiser, x0, sd.NoiseStream(0, range(n)), draws=32, t_min=0.01),
    ]
    for bound, start in zip(bounds, (denoiser.start_time(), 0.999), strict=True):
        total = bound.total
        assert torch.isfinite(total).all()
        torch.testing.assert_close(bound.prior, prior_kl(FLOW, x0, start))
        gap = total + law.log_prob(x0)
        assert float(gap.mean()) > -5.0 * float(gap.std()) / math.sqrt(n)
    # ½ Σ (SNR_s − SNR_t) E|x₀ − x̂₀|², with E|x₀ − x̂₀|² = V σ²/(α² V + σ²) at each t, that at T included
    level = FLOW.at(times)
    error = 0.25 * level.sigma**2 / (level.alpha**2 * 0.25 + level.sigma**2)
    snr = (level.alpha / level.sigma) ** 2
    exact = float(0.5 * ((snr[1:] - snr[:-1]) * error[:-1]).sum())
    terms = bounds[0].terms.sum(dim=0)
    assert float(terms.mean()) == pytest.approx(exact, abs=5.0 * float(terms.std()) / math.sqrt(n))


def test_a_finite_data_set_at_pure_noise() -> None:
    """Of points p_T is N(0, I), x₀ their mean and its variance theirs, to rounding."""
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for t in (1.0, torch.ones(5, dtype=torch.float64)):
        law = sd.Empirical(points, bandwidth=0.2)
        torch.testing.assert_close(law.log_prob(x, FLOW, t), FLOW.prior_logp(x))
        p = law.denoiser(FLOW)(x, t)
        torch.testing.assert_close(p.x0, points.mean(dim=0).expand(5, 3))
        torch.testing.assert_close(p.eps, x)
        torch.testing.assert_close(p.variance, (points.var(dim=0, correction=0) + 0.04).expand(5, 3))


@pytest.mark.parametrize("num_steps", [1, 5])
def test_ancestral_sampling_from_pure_noise_is_exact_in_law(num_steps: int) -> None:
    """Of a point mass: β̃ at α_t = 0 is σ_s², and x_s has mean α_s x₀."""
    point = sd.Empirical(torch.tensor([[0.7, -0.3]], dtype=torch.float64))
    sampler: Any = samplers.build("ancestral", num_steps=num_steps, t_min=0.1, denoise=False)
    x = sampler.draw(point.denoiser(FLOW), (20_000, 2), dtype=torch.float64).x
    assert float((x.mean(dim=0) - 0.9 * point.data).abs().max()) < 5.0 * 0.1 / math.sqrt(20_000)
    assert float((x.var(dim=0) / 0.01 - 1.0).abs().max()) < 5.0 * math.sqrt(2.0 / 20_000)
    levels = FLOW.levels(sampler.times(point.denoiser(FLOW)))
    assert all(t.t > s.t for t, s in pairwise(levels))


def test_views_at_pure_noise() -> None:
    """Whatever determines x₀ and ε where α is 0 gives all others; what is read of ε alone does not."""
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64)
    level = FLOW.at(1.0)
    views = {"x0": x0, "eps": eps, "v": -x0, "score": -eps, "velocity": eps - x0}
    for kind in set(VIEWS) - {"eps", "score"}:
        p = sd.Prediction(eps, level, {kind: views[kind]})
        for name, value in views.items():
            torch.testing.assert_close(getattr(p, name), value)
