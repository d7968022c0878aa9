"""Standard errors of distances between two samples, whose terms are of single points and of pairs of points.

A distance T of samples x (n) and y (m) of two laws is about its expectation, to second order,

    T − E T = Σ ℓ(xᵢ)/n + Σ ℓ(yⱼ)/m + ½ |Σ φ(xᵢ)/n − Σ ψ(yⱼ)/m|² without the pairs of a point with itself,

with influence functions ℓ and second derivatives ⟨φ, φ′⟩, −⟨φ, ψ⟩, ⟨ψ, ψ′⟩. With A = cov φ/n + cov ψ/m its variance is
V₁ + V₂, V₁ = var ℓ(x)/n + var ℓ(y)/m of single points, V₂ = ½ tr A² of pairs. For equal laws ℓ vanishes and all is V₂.

The infinitesimal jackknife J, the variance of single points with ℓ measured at the samples, counts pairs twice,
E J = V₁ + 2 V₂: J − V₂ is the variance without that excess, and V₂ the least that it can be. For the energy distance
and KID, U-statistics, both hold exactly, for the Fréchet distance to second order in 1/n.

The interval T ± 1.96 errors covers E T in 92 to 98 % of repetitions where T is near enough normal. Where few directions
of φ carry V₂ and the laws are nearly equal, T is as skewed as a χ² of few degrees of freedom, and its variance depends
on where it came out: intervals of this kind then cover too often or too rarely, by how far apart the laws are (of 8
degrees 99.9 % for equal laws, 89 % a little away). The skewness κ₃/V^1.5, κ₃ = tr A³ + 3 ⟨ℓ, A² ℓ⟩ + the third
cumulant of single points, is measured, and above 0.4 no error is stated.

References:
    W. Hoeffding, "A class of statistics with asymptotically normal distribution", 1948, Ann. Math. Stat. 19, 293-325.
    B. Efron, C. Stein, "The Jackknife Estimate of Variance", 1981, Ann. Statist. 9(3), 586-596 (the excess of pairs).
    D. Sutherland, N. Deka, "Unbiased estimators for the variance of MMD estimators", 2019, arXiv:1906.02104.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.noise import generator

MOST_SKEWED = 0.4
"""Skewness above which no error is stated: a χ² of 50 degrees of freedom has it, and is covered in 93 to 98.1 %."""
QUANTILE = 1.96
"""Standard errors to either side in a 95 % interval."""
PAIRED = 400
"""Points of either sample whose pairs measure V₂ and the skewness; of more, as many are drawn."""


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error; NaN where none that covers is known."""

    value: float
    std_error: float


def plus_minus(value: float, error: float | None, form: str = ".4g", form_of_error: str = ".2g") -> str:
    """Return a number and its 95 % interval, of a standard error; alone where there is none."""
    alone = f"{value:{form}}"
    return alone if error is None or math.isnan(error) else f"{alone} ± {QUANTILE * error:{form_of_error}}"


@dataclass(frozen=True)
class Spread:
    """Cumulants of an estimate.

    Attributes:
        variance: the second.
        pairs: the part of the variance that is of pairs of points, V₂.
        third: the third.
        freedom: degrees of freedom of the variance, that of a χ² which is known as well.
    """

    variance: float
    pairs: float
    third: float
    freedom: float

    @property
    def std_error(self) -> float:
        """The standard error, larger by Student's quantile; NaN where the estimate is too skewed for an interval."""
        if not self.variance > 0.0:
            return self.variance  # 0 of samples without any spread, or NaN
        skewness = abs(self.third) / self.variance**1.5
        student = 1.0 + (QUANTILE**2 + 1.0) / (4.0 * self.freedom)  # t/z to first order in 1/freedom
        return student * math.sqrt(self.variance) if skewness <= MOST_SKEWED else math.nan


def mean_of(parts: list[tuple[float, Spread]]) -> Estimate:
    """Return the mean of independent estimates of one number, given with their spread."""
    count = len(parts)
    values, spreads = zip(*parts, strict=True)
    variance, pairs, third, freedom = (
        sum(getattr(spread, name) for spread in spreads) / count**power
        for name, power in (("variance", 2), ("pairs", 2), ("third", 3), ("freedom", 0))
    )
    return Estimate(sum(values) / count, Spread(variance, pairs, third, freedom).std_error)


def some(count: int, seed: int = 0) -> Tensor:
    """Return the places of at most 400 of so many points, at random."""
    return torch.randperm(count, generator=generator(seed, "pairs"))[:PAIRED]


def spread(
    influence: tuple[Tensor, Tensor], chosen: tuple[Tensor, Tensor], kernel: tuple[Tensor, Tensor, Tensor]
) -> Spread:
    """Return the spread of a distance between samples x and y.

    Args:
        influence: ℓ of all points of x (n,) and of y (m,), each up to a constant.
        chosen: the places of some of x and of y, (k,) and (l,).
        kernel: ⟨φ, φ⟩ (k, k), ⟨φ, ψ⟩ (k, l) and ⟨ψ, ψ⟩ (l, l) of these, up to functions of one of the points.
    """
    counts = [len(single) for single in influence]
    parts = [single.double() - single.double().mean() for single in influence]
    jackknife = sum(float(part.var()) / n for part, n in zip(parts, counts, strict=True))
    own_x, cross, own_y = (_centred(part.double()) for part in kernel)
    pairs = torch.cat([torch.cat([own_x, -cross], dim=1), torch.cat([-cross.T, own_y], dim=1)])
    # So many of each sample stand for all: A in the basis of the chosen points.
    scale = torch.cat([pairs.new_full((len(c),), 1.0 / (n * len(c))) for c, n in zip(chosen, counts, strict=True)])
    root = scale.sqrt()
    pairs = (root[:, None] * pairs * root).fill_diagonal_(0.0)
    weighted = torch.cat([part[c] for part, c in zip(parts, chosen, strict=True)]) * root
    second = 0.5 * float(pairs.square().sum())
    cube = float((pairs @ pairs * pairs).sum())
    bent = 3.0 * float(weighted @ pairs @ weighted)
    single = sum(float(part.pow(3).mean()) / n**2 for part, n in zip(parts, counts, strict=True))
    # ℓ is measured with the noise of the samples, whose covariance is A: ⟨ℓ, A² ℓ⟩ is too large by tr A³.
    third = cube + max(bent - 3.0 * cube, 0.0) + single
    noise = sum(float(part.square().var()) / n**3 for part, n in zip(parts, counts, strict=True))  # variance of J
    freedom = 2.0 * jackknife**2 / noise if noise > 0.0 else math.inf
    return Spread(max(jackknife - second, second), second, third, freedom)


def _centred(kernel: Tensor) -> Tensor:
    """Return a matrix without the means of its rows and columns."""
    return kernel - kernel.mean(dim=0) - kernel.mean(dim=1, keepdim=True) + kernel.mean()
