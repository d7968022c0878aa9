"""Distances between sets of samples that need no feature network.

The energy distance of two laws, D = 2 E|X − Y| − E|X − X′| − E|Y − Y′| with Euclidean norms, is at least 0, and 0 only
for equal laws. Estimated without bias (pairs of a point with itself left out), it may come out slightly negative. A
permutation test says how often equal laws come out as far apart.

The sliced Wasserstein distance of order 2, SW₂² = E W₂²(⟨θ, X⟩, ⟨θ, Y⟩) over directions θ uniform on the sphere, is the
mean cost of transport along a line. Of order 2 because it is then on the scale of the Fréchet distance, and known for
Gaussians: |m|²/D between N(0, I) and N(m, I) in D dimensions, (s − 1)² between N(0, I) and N(0, s² I).

References:
    G. Székely, M. Rizzo, "Energy statistics: A class of statistics based on distances", 2013, J. Stat. Plan. Inference
    143(8); M. Rizzo, G. Székely, "Energy distance", 2016, WIREs Comput. Stat. 8(1), 27-38.
    N. Bonneel, J. Rabin, G. Peyré, H. Pfister, "Sliced and Radon Wasserstein Barycenters of Measures", 2015, J. Math.
    Imaging Vis. 51(1), 22-45.
    E. del Barrio, J. Loubes, "Central limit theorems for empirical transportation cost in general dimension", 2019,
    Ann. Probab. 47(2), 926-951, arXiv:1705.01299.
    B. Phipson, G. Smyth, "Permutation P-values should never be zero", 2010, Stat. Appl. Genet. Mol. Biol. 9(1), 39.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.evaluation.kernels import blocks, squared_mmd
from sde_diffusion.evaluation.uncertainty import Estimate
from sde_diffusion.noise import generator
from sde_diffusion.ops import per_example

_CHUNK = 1 << 22  # numbers held at a time: 32 MiB in float64
TEST_MOST = 1000
"""Samples of either set in a permutation test; of more, as many are drawn at random."""


def energy_distance(x: Tensor, y: Tensor) -> Estimate:
    """Return the unbiased (U-statistic) estimate of 2 E|X − Y| − E|X − X′| − E|Y − Y′|, in the units of the data.

    The standard error is over both samples, and NaN where the estimate is too skewed for one, as of nearly equal laws
    in few directions (:mod:`~sde_diffusion.evaluation.uncertainty`): there :func:`two_sample_test` tells whether they
    are equal.

    Args:
        x: (n, *) independent samples of one law, n ≥ 3.
        y: (m, *) independent samples of the other, m ≥ 3.

    Raises:
        InputError: on too few samples, different shapes or numbers that are not finite.
    """
    value, spread = squared_mmd(*_flat_pair("x", x, "y", y, least=3), _nearness)
    return Estimate(value, spread.std_error)


def _nearness(x: Tensor, y: Tensor) -> Tensor:
    """Return −|x − y|, the kernel of the energy distance (Székely & Rizzo 2013)."""
    return -torch.cdist(x, y)


def nearest_distances(x: Tensor, reference: Tensor) -> Tensor:
    """Return the Euclidean distance of each sample to the nearest reference point: (B, *), (N, *) → (B,), float64.

    Raises:
        InputError: on no samples, different shapes or numbers that are not finite.
    """
    a, b = _flat_pair("x", x, "reference", reference, least=1)
    return torch.cat([block.amin(dim=1) for _, block in blocks(a, b, torch.cdist)])


def sliced_wasserstein(x: Tensor, y: Tensor, *, projections: int = 500, seed: int = 0) -> Estimate:
    """Return the sliced 2-Wasserstein distance SW₂ of two samples by random directions, and its standard error.

    Both are in the units of the data. Along each direction the integral ∫ (F⁻¹(u) − G⁻¹(u))² du over the samples'
    quantile functions is exact, also for n ≠ m. Like every distance between empirical laws it is too large, near 0
    most: equal laws have SW₂² of about (1/n + 1/m) J, J = E ∫ F (1 − F)/f² over the directions. The standard error is
    of the spread about that mean: the variance of the directions is added to that of the samples, which is to first
    order the variance of the potentials of transport (del Barrio & Loubes 2019), averaged over the directions: an
    infinitesimal jackknife. Memory is linear in n + m, time O(projections · (n + m) (D + log(n + m))).

    Args:
        x: (n, *) independent samples of one law, n ≥ 3.
        y: (m, *) independent samples of the other, m ≥ 3.
        projections: directions, at least 2.
        seed: of the directions, which depend on nothing else.

    Raises:
        InputError: on too few samples or directions, different shapes or numbers that are not finite.
    """
    require_int("projections", projections, 2)
    a, b = _flat_pair("x", x, "y", y, least=3)
    n, m, dim = len(a), len(b), a.shape[1]
    directions = torch.randn(projections, dim, generator=generator(seed, "directions"), dtype=torch.float64)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(a.device)
    i, j, weight = _staircase(n, m, a.device)
    squares, potential_a, potential_b = [], a.new_zeros(n), a.new_zeros(m)
    for some in directions.split(max(1, _CHUNK // (4 * (n + m)))):
        (along_a, order_a), (along_b, order_b) = (torch.sort(some @ points.T, dim=1) for points in (a, b))
        step_a, step_b = along_a[:, i], along_b[:, j]
        squares.append((weight * (step_a - step_b).square()).sum(dim=1))
        potential_a.index_add_(0, order_a.flatten(), _potential(along_a, i, weight * step_b * n).flatten())
        potential_b.index_add_(0, order_b.flatten(), _potential(along_b, j, weight * step_a * m).flatten())
    each = torch.cat(squares)
    square = each.mean()
    variance = each.var() / projections
    for potential in (potential_a, potential_b):
        variance += (potential / projections).var() / len(potential)
    value = square.sqrt().item()
    return Estimate(value, variance.sqrt().item() / (2.0 * value) if value > 0.0 else 0.0)


@dataclass(frozen=True)
class TwoSampleTest:
    """A permutation test for equal laws.

    Attributes:
        p_value: the chance, if the laws are equal, of a statistic at least as large; uniform on its grid then.
        statistic: the unbiased energy distance of the samples that were compared, in the units of the data.
    """

    p_value: float
    statistic: float


def two_sample_test(x: Tensor, y: Tensor, *, permutations: int = 999, seed: int = 0) -> TwoSampleTest:
    """Return the permutation test of the energy distance of two samples.

    The labels "of x" and "of y" are dealt out anew, and p = (1 + how often the distance is then at least as large) /
    (1 + permutations), which is valid at every sample size (Phipson & Smyth 2010). Sets of more than 1,000 are thinned
    to as many at random, so that all distances fit in memory (32 MB): with N points left in all, time is
    O(N² (D + permutations)).

    Args:
        x: (n, *) independent samples of one law, n ≥ 3.
        y: (m, *) independent samples of the other, m ≥ 3.
        permutations: how often labels are dealt out, at least 1; the least p is 1 / (1 + permutations).
        seed: of the thinning and of the permutations.

    Raises:
        InputError: on too few samples or permutations, different shapes or numbers that are not finite.
    """
    require_int("permutations", permutations, 1)
    a, b = (thinned(points, TEST_MOST, seed) for points in _flat_pair("x", x, "y", y, least=3))
    n, m = len(a), len(b)
    pooled = torch.cat([a, b])
    between = torch.cdist(pooled, pooled)
    sums, total = between.sum(dim=1), between.sum()
    random = generator(seed, "permutations")

    def statistic(chosen: Tensor) -> Tensor:
        """The energy distance for columns of 1 (of x) and 0 (of y): (n + m, P) → (P,)."""
        own_a, to_all = (chosen * (between @ chosen)).sum(dim=0), sums @ chosen
        own_b = total - 2.0 * to_all + own_a
        return 2.0 * (to_all - own_a) / (n * m) - own_a / (n * (n - 1)) - own_b / (m * (m - 1))

    labels = (torch.arange(n + m) < n).to(between)
    found = statistic(labels[:, None])
    rounding = 1e-12 * total / (n + m) ** 2  # ties count, whatever the order of summation
    larger, each = 0, max(1, _CHUNK // (4 * (n + m)))
    for start in range(0, permutations, each):
        order = torch.rand(min(each, permutations - start), n + m, generator=random).argsort(dim=1)
        larger += int((statistic(labels[order.to(labels.device)].T) >= found - rounding).sum())
    return TwoSampleTest((1 + larger) / (1 + permutations), found.item())


def thinned(x: Tensor, most: int, seed: int = 0) -> Tensor:
    """Return at most ``most`` of (N, *), drawn at random without replacement; all of them, as they are, if N ≤ most."""
    if len(x) <= most:
        return x
    order = torch.randperm(len(x), generator=generator(seed, "thinning"))
    return x[order[:most].to(x.device)]


def _staircase(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs (i, j) of two quantile functions of n and m steps, and the length of u on which they hold."""
    # Edges in units of 1/(n m), as whole numbers: i/n = j/m is decided exactly.
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).sort().values
    left, length = edges[:-1], edges.diff()
    left, length = left[length > 0], length[length > 0]
    return (left // m).to(device), (left // n).to(device), (length.double() / (n * m)).to(device)


def _potential(x: Tensor, i: Tensor, shares: Tensor) -> Tensor:
    """Return the potential φ of transport along lines, φ′(x) = 2 (x − T(x)), up to a constant.

    Args:
        x: (P, n) in ascending order.
        i: (K,) indices of points of which the shares are.
        shares: (P, K) of where each point goes; T(x) is their sum.
    """
    gap = x - torch.zeros_like(x).index_add_(1, i, shares)
    slope = (gap[:, 1:] + gap[:, :-1]) * x.diff(dim=1)
    return torch.nn.functional.pad(slope.cumsum(dim=1), (1, 0))


def _flat_pair(name_x: str, x: Tensor, name_y: str, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Check two sets of samples and return them as (n, D) and (m, D), float64, on the device of ``x``.

    Both are about the mean of ``y``: no distance depends on it, and rounding is then of their spread, not their place.
    """
    for name, a in ((name_x, x), (name_y, y)):
        require(a.ndim > 0 and len(a) >= least, f"{name}.shape", tuple(a.shape), f"{least} samples or more, (B, *)")
        if not a.isfinite().all():
            raise InputError(f"{name}: {int((~a.isfinite()).sum())} of its {a.numel()} numbers are NaN or infinite")
    like = f"(*, {str(tuple(x.shape[1:]))[1:]} as in {name_x}"
    require(x.shape[1:] == y.shape[1:], f"{name_y}.shape", tuple(y.shape), like)
    a, b = per_example(x).double(), per_example(y).to(x.device).double()
    centre = b.mean(dim=0)
    return a - centre, b - centre
