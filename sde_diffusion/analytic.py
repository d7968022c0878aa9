"""Laws whose score is known at every time: they stand in for the data and for a network at once.

Noise of a linear SDE turns a Gaussian mixture into a Gaussian mixture: component N(m, Σ) becomes
N(α m, α² Σ + σ² I). Its log density, its score and the posterior mean E[x₀ | x_t] (what a perfect denoiser predicts)
are therefore exact, and every sampler and likelihood can be held against them.

References:
    Karras et al. 2022, arXiv:2206.00364, Appendix B.3 (the ideal denoiser of a finite data set); C. Bishop, "Pattern
    Recognition and Machine Learning", 2006, Eqs. 2.113-2.117 (Gaussian conditioning).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoisers import Prediction
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.ops import expand, per_example
from sde_diffusion.sdes import SDE


class Law(ABC):
    """A mixture of Gaussians over samples of any shape, and its noisy marginals under every SDE.

    Attributes:
        shape: shape of one sample.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def _log_components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return log w_k + log N(x; α m_k, α² Σ_k + σ² I), shape (B, K), for flat ``x`` (B, D); α and σ: (B or 1,)."""

    @abstractmethod
    def _mean_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return Σ_k r_k E[x₀ | x, component k], shape (B, D), for responsibilities ``r`` (B, K)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples, shape (n, *shape)."""

    def log_prob(self, x: Tensor, sde: SDE | None = None, t: Tensor | None = None) -> Tensor:
        """Log density in nats: (B, *) → (B,); of the data law, or of p_t under ``sde`` at ``t`` (shape () or (B,)).

        Raises:
            InputError: if only one of ``sde`` and ``t`` is given.
        """
        if (sde is None) != (t is None):
            raise InputError("sde and t: expected both or neither; p_t needs the SDE and the time")
        if sde is None or t is None:
            alpha, sigma = x.new_ones(1), x.new_zeros(1)
        else:
            alpha, sigma = _row(sde.alpha(t), x), _row(sde.sigma(t), x)
        return self._log_components(per_example(x), alpha, sigma).logsumexp(dim=1)

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x₀ | α x₀ + σ ε = x], shape (B, *), for α and σ of shape () or (B,)."""
        flat, a, s = per_example(x), _row(alpha, x), _row(sigma, x)
        responsibilities = self._log_components(flat, a, s).softmax(dim=1)
        return self._mean_of_components(responsibilities, flat, a, s).reshape(x.shape)

    def score(self, x: Tensor, sde: SDE, t: Tensor) -> Tensor:
        """Return ∇ log p_t(x), shape (B, *)."""
        return self.denoiser(sde)(x, t).score

    def denoiser(self, sde: SDE) -> AnalyticDenoiser:
        """Return the exact denoiser of this law under ``sde``."""
        return AnalyticDenoiser(self, sde)


class AnalyticDenoiser:
    """The posterior mean of a law, as a denoiser: exact in every view.

    Args:
        law: the law of the data.
        sde: the forward SDE.
    """

    def __init__(self, law: Law, sde: SDE) -> None:
        self.law, self.sde = law, sde

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Prediction:
        """Evaluate at ``x`` (B, *) and ``t`` (() or (B,)); the law knows no conditioning."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        mean = self.law.posterior_mean(x, alpha, sigma)
        return Prediction(mean, "x0", x, expand(alpha, x), expand(sigma, x))

    def round_t(self, t: Tensor) -> Tensor:
        """Every time is exact."""
        return t


def _row(a: Tensor, x: Tensor) -> Tensor:
    """Return a time's quantity as (B or 1,) in the dtype and on the device of ``x``, without a host sync."""
    return x.new_ones(1) * a if a.ndim == 0 else a.to(x)


class GaussianMixture(Law):
    """Gaussian mixture with full covariances over vectors of dimension D.

    Args:
        weights: (K,), non-negative; normalised to sum 1.
        means: (K, D).
        covariances: (K, D, D), symmetric and positive semi-definite.

    Raises:
        InputError: if the shapes do not fit or a covariance is not positive semi-definite.
    """

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Sequence[Sequence[float]] | Tensor,
        covariances: Sequence[Sequence[Sequence[float]]] | Tensor,
    ) -> None:
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
        self.weights, self.means, self.covariances = w / w.sum(), m, c
        self.shape = (d,)
        self._spectrum, self._basis = spectrum.clamp_min(0.0), basis  # Σ_k = U diag(λ) Uᵀ

    def _project(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return Uᵀ(x − α m_k) and the variances α² λ + σ² along the axes, both (B, K, D)."""
        gap = x[:, None] - alpha[:, None, None] * self.means.to(x)
        variance = (alpha**2)[:, None, None] * self._spectrum.to(x) + (sigma**2)[:, None, None]
        return torch.einsum("bkd,kde->bke", gap, self._basis.to(x)), variance

    def _log_components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gap, variance = self._project(x, alpha, sigma)
        log_density = -0.5 * (gap**2 / variance + (2.0 * math.pi * variance).log()).sum(dim=-1)
        return self.weights.log().to(x) + log_density

    def _mean_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gap, variance = self._project(x, alpha, sigma)
        gain = alpha[:, None, None] * self._spectrum.to(x) / variance
        shift = torch.einsum("bke,kde->bkd", gain * gap, self._basis.to(x))
        return torch.einsum("bk,bkd->bd", r, self.means.to(x) + shift)

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
        T = torch.tensor(sde.T, dtype=torch.float64)
        alpha, sigma = sde.alpha(T) / sde.prior_std, sde.sigma(T) / sde.prior_std
        variance = alpha**2 * self._spectrum[0] + sigma**2
        kl: Tensor = 0.5 * ((variance - 1.0 - variance.log()).sum() + (alpha * self.means[0]).square().sum())
        return kl


class Empirical(Law):
    """A finite data set, each example widened by an isotropic Gaussian kernel: its ideal denoiser.

    Args:
        data: (N, *), examples of any shape.
        bandwidth: standard deviation of the kernel ≥ 0; 0 leaves points, whose density exists at t > 0 only.
    """

    def __init__(self, data: Tensor, bandwidth: float = 0.0) -> None:
        require(data.ndim >= 2 and len(data) > 0, "data", tuple(data.shape), "shape (N, *) with N ≥ 1")
        require(bool(torch.isfinite(data).all()), "data", "…", "finite numbers")
        require_float("bandwidth", bandwidth, 0.0)
        self.data, self.bandwidth = data.double(), float(bandwidth)
        self.shape = tuple(data.shape[1:])
        self._flat = per_example(self.data)

    def _log_components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = (alpha * self.bandwidth) ** 2 + sigma**2
        # |x − α m|² = α² |x/α − m|², by differences: the expanded square cancels to nothing at small σ.
        gaps = torch.cdist(x / alpha[:, None], self._flat.to(x), compute_mode="donot_use_mm_for_euclid_dist")
        squared = (alpha[:, None] * gaps) ** 2
        norm = 0.5 * x.shape[1] * (2.0 * math.pi * variance).log() + math.log(len(self._flat))
        return -0.5 * squared / variance[:, None] - norm[:, None]

    def _mean_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gain = alpha * self.bandwidth**2 / ((alpha * self.bandwidth) ** 2 + sigma**2)
        mean = r @ self._flat.to(x)
        return mean + gain[:, None] * (x - alpha[:, None] * mean)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        require_int("n", n, 1)
        chosen = self.data[torch.randint(len(self.data), (n,), generator=generator)]
        return chosen + self.bandwidth * torch.randn(chosen.shape, dtype=torch.float64, generator=generator)
