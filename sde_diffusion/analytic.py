"""Laws whose score is known at every time: they stand in for the data and for a network at once.

Noise of a linear SDE turns a Gaussian mixture into a Gaussian mixture: component N(m, Σ) becomes
N(α m, α² Σ + σ² I). Its log density, its score and the posterior mean E[x₀ | x_t] (what a perfect denoiser predicts)
are therefore exact, and every sampler and likelihood can be held against them.

References:
    Karras et al. 2022, arXiv:2206.00364, Appendix B.3 (the ideal denoiser of a finite data set); C. Bishop, "Pattern
    Recognition and Machine Learning", 2006, Eqs. 2.113-2.117 (Gaussian conditioning).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from sde_diffusion.denoisers import AbstractDenoiser, count_evaluation
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, per_example, per_sample
from sde_diffusion.predictions import Prediction
from sde_diffusion.sde import SDE


class Law(nn.Module, ABC):
    """A mixture of Gaussians over samples of any shape, and its noisy marginals under every SDE.

    What it is made of are buffers, so that ``.to(device)`` takes it along.

    Attributes:
        shape: shape of one sample.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def _log_components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return log w_k + log N(x; α m_k, α² Σ_k + σ² I), shape (B, K), for flat ``x`` (B, D); α and σ: (B,)."""

    @abstractmethod
    def _mean_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return Σ_k r_k E[x₀ | x, component k], shape (B, D), for responsibilities ``r`` (B, K)."""

    @abstractmethod
    def _variance_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the diagonal of Cov[x₀ | x], shape (B, D), for responsibilities ``r`` (B, K)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples, shape (n, *shape)."""

    def log_prob(self, x: Tensor, sde: SDE | None = None, t: Number | None = None) -> Tensor:
        """Log density in nats: (B, *) → (B,); of the data law, or of p_t under ``sde`` at ``t`` (shape () or (B,)).

        Raises:
            InputError: if only one of ``sde`` and ``t`` is given.
        """
        if (sde is None) != (t is None):
            raise InputError("sde and t: expected both or neither; p_t needs the SDE and the time")
        alpha: Number = 1.0
        sigma: Number = 0.0
        if sde is not None and t is not None:
            level = sde.at(t)
            alpha, sigma = level.alpha, level.sigma
        return self._log_components(per_example(x), per_sample(alpha, x), per_sample(sigma, x)).logsumexp(dim=1)

    def posterior_mean(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return E[x₀ | α x₀ + σ ε = x], shape (B, *), for α and σ that are numbers or of shape () or (B,)."""
        flat, a, s = per_example(x), per_sample(alpha, x), per_sample(sigma, x)
        responsibilities = self._log_components(flat, a, s).softmax(dim=1)
        return self._mean_of_components(responsibilities, flat, a, s).reshape(x.shape)

    def posterior_variance(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return the diagonal of Cov[x₀ | α x₀ + σ ε = x], shape (B, *), for α and σ as in :meth:`posterior_mean`."""
        flat, a, s = per_example(x), per_sample(alpha, x), per_sample(sigma, x)
        responsibilities = self._log_components(flat, a, s).softmax(dim=1)
        return self._variance_of_components(responsibilities, flat, a, s).reshape(x.shape)

    def score(self, x: Tensor, sde: SDE, t: Number) -> Tensor:
        """Return ∇ log p_t(x), shape (B, *)."""
        return AnalyticDenoiser(self, sde)(x, t).score

    def prior_kl(self, sde: SDE) -> Tensor | None:
        """Return KL(p_T ‖ prior) ≥ 0, nats, (), where it has a closed form; else None."""
        return None

    def denoiser(self, sde: SDE) -> AnalyticDenoiser:
        """Return the exact denoiser of this law under ``sde``; moving it to a device leaves the law where it is."""
        return AnalyticDenoiser(copy.deepcopy(self), sde)


@final
class AnalyticDenoiser(AbstractDenoiser):
    """The posterior mean of a law, as a denoiser: exact in every view, and with the posterior's variance.

    Args:
        law: the law of the data.
        sde: the forward SDE.
    """

    def __init__(self, law: Law, sde: SDE) -> None:
        super().__init__(sde)
        self.law = law

    @property
    def conditions(self) -> tuple[str, ...]:
        """None: a law is that of all the data."""
        return ()

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        """Evaluate at ``x`` (B, *) and ``t``; the law knows no conditions."""
        level = self.level(t)
        alpha, sigma = level.alpha, level.sigma
        mean = self.law.posterior_mean(x, alpha, sigma)
        count_evaluation(x.shape[0])
        return Prediction(x, level.like(x), {"x0": mean}, spread=lambda: self.law.posterior_variance(x, alpha, sigma))

    @property
    def from_pure_noise(self) -> bool:
        return True

    def prior_kl(self) -> Tensor | None:
        return self.law.prior_kl(self.sde)


class GaussianMixture(Law):
    """Gaussian mixture with full covariances over vectors of dimension D.

    Args:
        weights: (K,), non-negative; normalised to sum 1.
        means: (K, D).
        covariances: (K, D, D), symmetric and positive semi-definite.

    Raises:
        InputError: if the shapes do not fit or a covariance is not positive semi-definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    _spectrum: Tensor
    _basis: Tensor

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Sequence[Sequence[float]] | Tensor,
        covariances: Sequence[Sequence[Sequence[float]]] | Tensor,
    ) -> None:
        super().__init__()
        w, m, c = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances))
        require(w.ndim == 1 and bool((w >= 0).all()) and float(w.sum()) > 0, "weights", w.tolist(), "K numbers ≥ 0")
        require(m.ndim == 2 and len(m) == len(w), "means", tuple(m.shape), f"shape ({len(w)}, D)")
        k, d = m.shape
        require(c.shape == (k, d, d), "covariances", tuple(c.shape), f"shape ({k}, {d}, {d})")
        require(torch.allclose(c, c.mT), "covariances", "…", "symmetric matrices")
        spectrum, basis = torch.linalg.eigh(c)
        scale = spectrum.amax(dim=1, keepdim=True).clamp_min(1e-300)
        require(
            bool((spectrum >= -1e-10 * scale).all()), "covariances", spectrum.min().item(), "no negative eigenvalue"
        )
        self.shape = (d,)
        own = {"weights": w / w.sum(), "means": m, "covariances": c}
        own |= {"_spectrum": spectrum.clamp_min(0.0), "_basis": basis}  # Σ_k = U diag(λ) Uᵀ
        for name, tensor in own.items():
            self.register_buffer(name, tensor)

    def _project(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return Uᵀ(x − α m_k) and the variances α² λ + σ² along the axes, both (B, K, D)."""
        gap = x[:, None] - alpha[:, None, None] * self.means.to(x)
        variance = (alpha**2)[:, None, None] * self._spectrum.to(x) + (sigma**2)[:, None, None]
        return torch.einsum("bkd,kde->bke", gap, self._basis.to(x)), variance

    def _log_components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gap, variance = self._project(x, alpha, sigma)
        log_density = -0.5 * (gap**2 / variance + (2.0 * math.pi * variance).log()).sum(dim=-1)
        return self.weights.log().to(x) + log_density

    def _component_means(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[x₀ | x, component k] and the variances along the component's axes, both (B, K, D)."""
        gap, variance = self._project(x, alpha, sigma)
        share = self._spectrum.to(x) / variance
        shift = torch.einsum("bke,kde->bkd", alpha[:, None, None] * share * gap, self._basis.to(x))
        return self.means.to(x) + shift, (sigma**2)[:, None, None] * share

    def _mean_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.einsum("bk,bkd->bd", r, self._component_means(x, alpha, sigma)[0])

    def _variance_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        means, along_axes = self._component_means(x, alpha, sigma)
        within = torch.einsum("bke,kde->bkd", along_axes, self._basis.to(x) ** 2)
        between = (means - torch.einsum("bk,bkd->bd", r, means)[:, None]) ** 2
        return torch.einsum("bk,bkd->bd", r, within + between)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        require_int("n", n, 1)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.shape[0], dtype=torch.float64, generator=generator) * self._spectrum[component].sqrt()
        return self.means[component] + torch.einsum("nde,ne->nd", self._basis[component], z)


class Gaussian(GaussianMixture):
    """A Gaussian N(mean, covariance) over vectors: the mixture of one.

    Args:
        mean: (D,).
        covariance: (D, D).
    """

    def __init__(self, mean: Sequence[float] | Tensor, covariance: Sequence[Sequence[float]] | Tensor) -> None:
        m, c = (torch.as_tensor(a, dtype=torch.float64) for a in (mean, covariance))
        require(m.ndim == 1, "mean", tuple(m.shape), "shape (D,)")
        super().__init__([1.0], m[None], c[None])

    def prior_kl(self, sde: SDE) -> Tensor:
        """Return KL(p_T ‖ prior) ≥ 0, nats, float64, (): what the SDE's prior costs the mean log-likelihood."""
        level = sde.at(sde.T)
        alpha, sigma = level.alpha / sde.prior_std, level.sigma / sde.prior_std
        variance = alpha**2 * self._spectrum[0] + sigma**2
        kl: Tensor = 0.5 * ((variance - 1.0 - variance.log()).sum() + (alpha * self.means[0]).square().sum())
        return kl


class Empirical(Law):
    """A finite data set, each example widened by an isotropic Gaussian kernel: its ideal denoiser.

    Args:
        data: (N, *), examples of any shape.
        bandwidth: standard deviation of the kernel ≥ 0; 0 leaves points, whose density exists at t > 0 only.
    """

    data: Tensor

    def __init__(self, data: Tensor, bandwidth: float = 0.0) -> None:
        super().__init__()
        require(data.ndim >= 2 and len(data) > 0, "data", tuple(data.shape), "shape (N, *) with N ≥ 1")
        require(bool(torch.isfinite(data).all()), "data", "…", "finite numbers")
        require_float("bandwidth", bandwidth, 0.0)
        self.register_buffer("data", data.double())
        self.bandwidth = float(bandwidth)
        self.shape = tuple(data.shape[1:])

    def _log_components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = (alpha * self.bandwidth) ** 2 + sigma**2
        # |x − α m|² = α² |x/α − m|², by differences: the expanded square cancels to nothing at small σ. α may be 0.
        scale = alpha[:, None].clamp_min(1e-9)
        gaps = torch.cdist(x / scale, per_example(self.data).to(x), compute_mode="donot_use_mm_for_euclid_dist")
        squared = (scale * gaps) ** 2
        norm = 0.5 * x.shape[1] * (2.0 * math.pi * variance).log() + math.log(len(self.data))
        return -0.5 * squared / variance[:, None] - norm[:, None]

    def _mean_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gain = alpha * self.bandwidth**2 / ((alpha * self.bandwidth) ** 2 + sigma**2)
        mean = r @ per_example(self.data).to(x)
        return mean + gain[:, None] * (x - alpha[:, None] * mean)

    def _variance_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        kernel = (alpha * self.bandwidth) ** 2 + sigma**2
        flat = per_example(self.data).to(x)
        spread = (r @ flat**2 - (r @ flat) ** 2).clamp_min(0.0)  # of the examples; each mean moves by σ²/kernel of it
        return ((self.bandwidth * sigma) ** 2 / kernel)[:, None] + (sigma**2 / kernel)[:, None] ** 2 * spread

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        require_int("n", n, 1)
        chosen = self.data[torch.randint(len(self.data), (n,), generator=generator)]
        return chosen + self.bandwidth * torch.randn(chosen.shape, dtype=torch.float64, generator=generator)
