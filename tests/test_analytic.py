"""Ground truth 3: laws against independent formulas: torch.distributions, autograd, Gaussian conditioning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.sdes import SDE
from tests.conftest import time

MEANS = torch.tensor([[-1.0, 0.2, 0.5], [0.8, -0.3, 0.1]], dtype=torch.float64)
ROOT = torch.tensor([[[0.5, 0, 0], [0.2, 0.4, 0], [-0.1, 0.3, 0.6]], [[0.3, 0, 0], [0, 0.5, 0], [0.2, 0.1, 0.0]]])
COVARIANCES = (ROOT @ ROOT.mT).double()  # the second has rank 2: a degenerate component is allowed
LAWS: dict[str, sd.Law] = {
    "gaussian": sd.Gaussian(MEANS[0], COVARIANCES[0]),
    "mixture": sd.GaussianMixture([0.25, 0.75], MEANS, COVARIANCES),
    "empirical": sd.Empirical(torch.randn(7, 3, generator=torch.Generator().manual_seed(3)), bandwidth=0.2),
    "points": sd.Empirical(torch.randn(7, 3, generator=torch.Generator().manual_seed(3))),
}


def reference(law: sd.Law, sde: SDE, t: Tensor) -> torch.distributions.Distribution:
    """p_t by torch.distributions."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    if isinstance(law, sd.GaussianMixture):
        weights, means, covariances = law.weights, law.means, law.covariances
    else:
        assert isinstance(law, sd.Empirical)
        means = law.data
        weights = torch.ones(len(means))
        covariances = law.bandwidth**2 * torch.eye(3, dtype=torch.float64).expand(len(means), 3, 3)
    marginal = alpha**2 * covariances.double() + sigma**2 * torch.eye(3, dtype=torch.float64)
    component = torch.distributions.MultivariateNormal(alpha * means, marginal)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights.double()), component)


@pytest.mark.parametrize("t_value", [0.02, 0.4, 0.99])
@pytest.mark.parametrize("name", LAWS)
def test_log_prob_and_score(sde: SDE, name: str, t_value: float) -> None:
    law, t = LAWS[name], time(t_value)
    x = (sde.alpha(t) * law.sample(20, torch.Generator().manual_seed(5)) + 0.3 * sde.sigma(t)).requires_grad_()
    exact = reference(law, sde, t).log_prob(x)
    torch.testing.assert_close(law.log_prob(x, sde, t), exact, rtol=1e-8, atol=1e-8)
    score = torch.autograd.grad(exact.sum(), x)[0]
    found = law.score(x.detach(), sde, t)
    torch.testing.assert_close(found, score, rtol=1e-6, atol=1e-6 * float(score.abs().max()))
    batched = law.score(x.detach(), sde, t.expand(20))
    torch.testing.assert_close(batched, found)


def test_data_density_without_time() -> None:
    law = sd.GaussianMixture([0.5, 0.5], MEANS, COVARIANCES[:1].expand(2, 3, 3))
    x = law.sample(10, torch.Generator().manual_seed(0))
    component = torch.distributions.MultivariateNormal(law.means, law.covariances)
    exact = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(law.weights), component).log_prob(x)
    torch.testing.assert_close(law.log_prob(x), exact)
    with pytest.raises(sd.InputError, match="both or neither"):
        law.log_prob(x, sd.VPSDE())


def test_posterior_mean_of_a_gaussian_by_conditioning(sde: SDE) -> None:
    """E[x₀ | x] = m + α Σ (α² Σ + σ² I)⁻¹ (x − α m)."""
    t, law = time(0.5), LAWS["gaussian"]
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = torch.randn(6, 3, dtype=torch.float64)
    gain = alpha * COVARIANCES[0] @ torch.linalg.inv(alpha**2 * COVARIANCES[0] + sigma**2 * torch.eye(3))
    expected = MEANS[0] + (x - alpha * MEANS[0]) @ gain.mT
    torch.testing.assert_close(law.denoiser(sde)(x, t).x0, expected)


def test_standard_normal_data_under_vp() -> None:
    """Ground truth 6: score = −x, and the probability flow stands still."""
    from sde_diffusion.reverse import AngularFlow

    law, x = sd.Gaussian([0.0, 0.0], torch.eye(2)), torch.randn(8, 2, dtype=torch.float64)
    for sde in (sd.VPSDE(), sd.CosineVPSDE(), sd.DDPMChain.linear()):
        torch.testing.assert_close(law.score(x, sde, time(0.3)), -x)
        flow = AngularFlow(law.denoiser(sde))
        assert flow(flow.angle(time(0.3)), x).abs().max() < 1e-12


def test_empirical_of_pictures_returns_the_nearest_at_little_noise() -> None:
    pictures = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    law, sde = sd.Empirical(pictures), sd.VPSDE()
    x = float(sde.alpha(time(1e-3))) * pictures.double()
    torch.testing.assert_close(law.denoiser(sde)(x, time(1e-3)).x0, pictures.double())
    assert law.sample(3).shape == (3, 1, 4, 4)


@pytest.mark.parametrize("name", ["gaussian", "mixture", "empirical"])
def test_samples_have_the_law_of_the_density(name: str) -> None:
    """Mean and second moments of 20,000 samples within 5 standard errors of those of the exact components."""
    law = LAWS[name]
    x = law.sample(20_000, torch.Generator().manual_seed(11))
    if isinstance(law, sd.GaussianMixture):
        mean = law.weights @ law.means
        second = torch.einsum("k,kde->de", law.weights, law.covariances + law.means[:, :, None] * law.means[:, None])
    else:
        assert isinstance(law, sd.Empirical)
        mean = law.data.mean(0)
        second = law.data.mT @ law.data / len(law.data) + law.bandwidth**2 * torch.eye(3, dtype=torch.float64)
    products = x[:, :, None] * x[:, None]
    assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / 20_000**0.5).all()
    assert ((products.mean(0) - second).abs() < 5 * products.std(0) / 20_000**0.5).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sd.GaussianMixture([0.5], MEANS, COVARIANCES), "means"),
        (lambda: sd.GaussianMixture([-1, 2], MEANS, COVARIANCES), "weights"),
        (lambda: sd.GaussianMixture([1, 1], MEANS, -COVARIANCES), "eigenvalue"),
        (lambda: sd.GaussianMixture([1, 1], MEANS, COVARIANCES[:, :2]), "covariances"),
        (lambda: sd.Gaussian([[0.0]], [[1.0]]), "mean"),
        (lambda: sd.Empirical(torch.tensor([[float("nan")]])), "data"),
        (lambda: sd.Empirical(torch.zeros(3, 2), bandwidth=-1.0), "bandwidth=-1.0"),
        (lambda: sd.Gaussian([0.0], [[1.0]]).sample(0), "n=0"),
    ],
)
def test_bad_input(make: object, match: str) -> None:
    with pytest.raises(sd.InputError, match=match):
        make()  # type: ignore[operator]
