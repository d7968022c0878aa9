"""The Fréchet distance between Gaussians fitted to two samples: its value, its bias, its limit, and standard errors.

FD = |μ − ν|² + tr S + tr C − 2 tr (S^½ C S^½)^½, of means μ, ν and unbiased covariances S, C of x (n) and y (m).

With the eigenvectors U and eigenvalues r² of S^½ C S^½, and T = S^−½ U diag(r) Uᵀ S^−½, the linear transport T S T = C:

    ℓ(x) = 2 (μ − ν)ᵀ x̃ + x̃ᵀ (I − T) x̃,  x̃ = x − μ,  and of y the same with ν − μ and T⁻¹;
    ⟨φ, φ′⟩ = 2 Σ rᵢ bᵢ b′ᵢ + Σ wᵢⱼ (bᵢ bⱼ) (b′ᵢ b′ⱼ),  b = Uᵀ S^−½ x̃,  wᵢⱼ = rᵢ rⱼ/(rᵢ + rⱼ),

the first and second derivatives of FD in the law of x, by those of the square root (T S T = C and its differential, a
Sylvester equation). For y, and between x and y, ⟨ψ, ψ′⟩ and ⟨φ, ψ⟩ are the same with c = diag(1/r) Uᵀ S^½ ỹ for b: both
have covariance I. The bias of the distance is to second order (tr S + ½ Σ wᵢⱼ var(bᵢ bⱼ))/n and the same of y, which is
measured, so that features need not be Gaussian.

The limit "FD ∞" is the distance without that bias, extrapolated once more: what is left of it is quartered when samples
are doubled, and the mean of two halves shows it (Richardson).

References:
    M. Heusel et al., 2017, arXiv:1706.08500 (FID). D. Dowson, B. Landau, 1982, J. Multivar. Anal. 12(3), 450-455.
    T. Rippl, A. Munk, A. Sturm, "Limit laws of the empirical Wasserstein distance: Gaussian distributions", 2016, J.
    Multivar. Anal. 151, 90-109, arXiv:1507.04090 (the first derivative).
    M. Chong, D. Forsyth, "Effectively Unbiased FID and Inception Score and where to find them", 2020, arXiv:1911.07023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion.evaluation.uncertainty import Estimate, Spread, some, spread
from sde_diffusion.noise import generator

LEAST = 5
"""Samples a feature, of either sample, below which the distance has no error."""
LEAST_LIMIT = 10
"""Samples a feature below which its limit has no error: the bias that is left would show."""
_FLAT = 1e-12  # of the largest variance: a direction without any, as of a unit that never fires
_MODES = 1e-4  # of the largest eigenvalue of w


def frechet(x: Tensor, y: Tensor) -> float:
    """Return the Fréchet distance between Gaussians fitted to features (N, F) and (M, F), as torch-fidelity does."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(values.double()) for values in (x, y)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


@dataclass(frozen=True)
class FrechetDistance:
    """The Fréchet distance of two samples.

    Attributes:
        finite: the distance; its error is of its expectation at these numbers of samples and of data, bias included.
        limit: the distance without bias; its error is of the distance of the laws, of infinitely many samples and data.
    """

    finite: Estimate
    limit: Estimate


def frechet_distance(x: Tensor, y: Tensor, seed: int = 0) -> FrechetDistance:
    """Return the Fréchet distance of features (N, F) and (M, F) and its limit, each with its standard error.

    Both errors are NaN below 5 samples a feature, that of the limit below 10, and both where few directions of features
    vary while laws are nearly equal (:mod:`~sde_diffusion.evaluation.uncertainty`). The limit is NaN if a half of the
    samples has fewer than F + 2.

    Args:
        x: features of independent samples.
        y: features of independent examples of the data, themselves a sample of their law.
        seed: of the points whose pairs are looked at, and of the halves.
    """
    x, y = x.double(), y.double()
    whole = _Expansion(x, y)
    found = whole.spread(seed)
    ratio = min(len(x), len(y)) / x.shape[1]
    finite = Estimate(frechet(x, y), found.std_error if ratio >= LEAST else math.nan)
    limit = math.nan
    if min(len(x), len(y)) // 2 >= x.shape[1] + 2:
        parts = _halves(x, generator(seed, "halves of samples")), _halves(y, generator(seed, "halves of data"))
        halves = [_Expansion(a, b).unbiased for a, b in zip(*parts, strict=True)]
        limit = (4.0 * whole.unbiased - sum(halves) / 2.0) / 3.0
    # Pairs within a half count 2/3, others 4/3: V₂ (4/9 + 16/9)/2.
    wider = replace(found, variance=found.variance + found.pairs / 9.0)
    return FrechetDistance(finite, Estimate(limit, wider.std_error if ratio >= LEAST_LIMIT else math.nan))


def _halves(x: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(x), generator=random)
    return x[order[: len(x) // 2]], x[order[len(x) // 2 :]]


class _Expansion:
    """The Fréchet distance of two samples (n, F) and (m, F) and its derivatives there, in the symbols of this file."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        mean, other = x.mean(dim=0), y.mean(dim=0)
        self.gap, self.x, self.y = mean - other, x - mean, y - other
        s, c = (part.T @ part / (len(part) - 1) for part in (self.x, self.y))
        variances, vectors = torch.linalg.eigh(s)
        flat = variances <= _FLAT * variances[-1]
        half = vectors * variances.clamp_min(0.0).sqrt() @ vectors.T
        inverse = vectors * torch.where(flat, 0.0, variances.rsqrt()) @ vectors.T
        squares, turn = torch.linalg.eigh(half @ c @ half)
        self.r = torch.where(squares <= _FLAT * squares[-1], 0.0, squares).sqrt()
        over = torch.where(self.r > 0.0, 1.0 / self.r, 0.0)
        self.b, self.c = self.x @ (inverse @ turn), self.y @ (half @ turn) * over
        self.w = self.r[:, None] * self.r / (self.r[:, None] + self.r).clamp_min(torch.finfo(self.r.dtype).tiny)
        value = self.gap.square().sum() + s.trace() + c.trace() - 2.0 * self.r.sum()
        bias = [(cov.trace() + 0.5 * self._trace(z)) / len(z) for cov, z in ((s, self.b), (c, self.c))]
        self.unbiased = float(value - bias[0] - bias[1])

    def _trace(self, z: Tensor) -> Tensor:
        """Σ wᵢⱼ var(zᵢ zⱼ) of (n, F) with covariance I."""
        squares = z.square()
        return (squares @ self.w * squares).sum(dim=1).mean() - self.w.diagonal().sum()

    def influence(self) -> tuple[Tensor, Tensor]:
        """Return ℓ of all points of either sample."""
        pairs = ((self.x, self.b, 1.0), (self.y, self.c, -1.0))
        found = (2.0 * sign * (a @ self.gap) + a.square().sum(dim=1) - (z.square() @ self.r) for a, z, sign in pairs)
        of_x, of_y = found
        return of_x, of_y

    def spread(self, seed: int) -> Spread:
        """Return the spread of the distance."""
        chosen = some(len(self.x), seed), some(len(self.y), seed)
        b, c = self.b[chosen[0]], self.c[chosen[1]]
        values, vectors = torch.linalg.eigh(self.w)
        modes = [(value, vectors[:, i]) for i, value in enumerate(values) if abs(value) > _MODES * values.abs().max()]

        def kernel(z: Tensor, other: Tensor) -> Tensor:
            """⟨φ, φ′⟩ of (k, F) and (l, F): w has few eigenvalues that count, each the square of a product."""
            found = 2.0 * (z * self.r) @ other.T
            for value, vector in modes:
                found += value * ((z * vector) @ other.T).square()
            return found

        return spread(self.influence(), chosen, (kernel(b, b), kernel(b, c), kernel(c, c)))
