"""Precision and recall: the shares of samples among the data's nearest neighbours, and of data among the samples'.

A share depends on both sets: the points that are counted, and the balls, whose radii reach to third neighbours. Leaving
out one point at a time counts what single points do to radii many times over (of Gaussians the jackknife's error is 1.2
to 2.7 times the spread), a binomial error leaves out the balls (0.2 to 0.9 times). What is left is repetition: disjoint
halves of both sets are independent, so that half the squared difference of their shares is, without bias, the variance
of a share of half as many; over random halves it is averaged, and halved for sets of full size, as if it went as 1/n.

References:
    T. Kynkäänniemi et al., 2019, arXiv:1904.06991 (precision, recall).
    D. Politis, J. Romano, 1994, Ann. Statist. 22(4), 2031-2050 (subsets in place of repetition).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.evaluation.distances import thinned
from sde_diffusion.evaluation.uncertainty import Estimate
from sde_diffusion.noise import generator

NEIGHBOURS = 3
"""Nearest neighbours (Kynkäänniemi et al. 2019, Section 3.1)."""
SPLITS = 40
"""Random halves."""
STUDENT = 2.02 / 1.96
"""Student's 97.5 % quantile of as many degrees of freedom, over the normal law's: by so much the error is larger."""
MOST = 5000
"""Points of either set whose halves are looked at; of more, as many are drawn."""
LEAST_COUNTED = 10
"""Points within the balls, and outside of them, below which a share has no error."""
MOST_ALONE = 1.0
"""Mean number of others with which a point shares the only ball that it lies in, above which a share has no error: it
then hangs on a few wide balls, as of sets far apart in few dimensions, and its variance does not go as 1/n."""
_BATCH = 2000  # points whose distances to all others torch-fidelity holds at a time
_NEAR = 48  # neighbours of which a random half has fewer than three with a chance of 10⁻¹¹


@dataclass(frozen=True)
class PrecisionRecall:
    """Both shares, each with the error about its expectation at these numbers of samples and of data."""

    precision: Estimate
    recall: Estimate


def precision_recall(x: Tensor, y: Tensor, seed: int = 0) -> PrecisionRecall:
    """Return precision and recall of features (N, F) of samples and (M, F) of data, by torch-fidelity.

    An error is NaN where fewer than 10 points are within the balls, or outside of them, and where the share hangs on a
    few wide balls.

    Args:
        x: features of independent samples.
        y: features of independent examples of the data, themselves a sample of their law; about as many.
        seed: of the halves.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    memory = {"save_cpu_ram": True, "prc_batch_size": _BATCH}
    found = prc_features_to_metric(x, y, prc_neighborhood=NEIGHBOURS, verbose=False, **memory)
    a, b = thinned(x, MOST, seed), thinned(y, MOST, seed)
    between = torch.cdist(a, b)
    counts = (len(x), len(y))
    return PrecisionRecall(
        _estimate(float(found["precision"]), between, _neighbours(b), counts, seed),
        _estimate(float(found["recall"]), between.T.contiguous(), _neighbours(a), counts[::-1], seed),
    )


def _neighbours(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances and places of the nearest other points of (M, F), in ascending order."""
    found = [torch.cdist(rows, y).topk(min(_NEAR + 1, len(y)), largest=False) for rows in torch.split(y, _BATCH)]
    return torch.cat([f.values for f in found])[:, 1:], torch.cat([f.indices for f in found])[:, 1:]


def _estimate(
    value: float, between: Tensor, nearest: tuple[Tensor, Tensor], counts: tuple[int, int], seed: int
) -> Estimate:
    """Return a share with its error.

    Args:
        value: the share of all points.
        between: distances of counted points to centres of balls, (n, m).
        nearest: of the centres, :func:`_neighbours`.
        counts: of all counted points and of all centres, of which these are some.
    """
    n, m = between.shape
    random = generator(seed, "halves of both sets")
    total = 0.0
    for _ in range(SPLITS):
        points, centres = torch.randperm(n, generator=random), torch.randperm(m, generator=random)
        one, other = (_share(between, nearest, points[i::2], centres[i::2]) for i in range(2))
        total += 0.5 * (one - other) ** 2 / SPLITS
    variance = total * max(n / counts[0], m / counts[1]) / 2.0
    shown = LEAST_COUNTED <= round(value * counts[0]) <= counts[0] - LEAST_COUNTED
    shown = shown and _alone(between <= nearest[0][:, NEIGHBOURS - 1]) <= MOST_ALONE
    return Estimate(value, STUDENT * math.sqrt(variance) if shown else math.nan)


def _share(between: Tensor, nearest: tuple[Tensor, Tensor], points: Tensor, centres: Tensor) -> float:
    """Return the share of some points within the balls about some centres, with neighbours among these."""
    distances, places = (part[centres] for part in nearest)
    chosen = torch.zeros(between.shape[1], dtype=torch.bool)
    chosen[centres] = True
    reached = chosen[places].cumsum(dim=1) < NEIGHBOURS
    third = reached.sum(dim=1, keepdim=True).clamp_max(places.shape[1] - 1)
    radii = between.new_full((between.shape[1],), -1.0)  # of centres that are not among these: no point is as near
    radii[centres] = distances.gather(1, third)[:, 0]
    return float((between[points] <= radii).any(dim=1).double().mean())


def _alone(inside: Tensor) -> float:
    """Return Σ k² over balls with k points in no other, a point in any ball, of which points lie in which (n, m)."""
    balls = inside.sum(dim=1)
    single = (inside & (balls == 1)[:, None]).sum(dim=0).double()
    return float(single.square().sum()) / max(int((balls > 0).sum()), 1)
