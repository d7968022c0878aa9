"""Distances between sets of samples that need no feature network.

The energy distance of two laws, D = 2 E|X − Y| − E|X − X′| − E|Y − Y′| with Euclidean norms, is at least 0, and 0 only
for equal laws. Estimated without bias (pairs of a point with itself left out), it may come out slightly negative.

References:
    G. Székely, M. Rizzo, "Energy statistics: A class of statistics based on distances", 2013, J. Stat. Plan. Inference
    143(8); M. Rizzo, G. Székely, "Energy distance", 2016, WIREs Comput. Stat. 8(1), 27-38.
    B. Efron, C. Stein, "The Jackknife Estimate of Variance", 1981, Ann. Statist. 9(3), 586-596.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.ops import per_example

_CHUNK = 1 << 22  # distances held at a time: 32 MiB in float64


@dataclass(frozen=True)
class EnergyDistance:
    """An estimate of 2 E|X − Y| − E|X − X′| − E|Y − Y′| and its standard error, in the units of the data."""

    value: float
    std_error: float


def energy_distance(x: Tensor, y: Tensor) -> EnergyDistance:
    """Return the unbiased (U-statistic) energy distance of two samples, and its jackknife standard error.

    The jackknife leaves out each point of either sample in turn, at no extra distances. Like every jackknife it errs on
    the large side (Efron & Stein 1981): for equal laws, where only pairs contribute to the variance, by about √2.

    Args:
        x: (n, *) independent samples of one law, n ≥ 3.
        y: (m, *) independent samples of the other, m ≥ 3.

    Raises:
        InputError: on too few samples, different shapes or numbers that are not finite.
    """
    a, b = _flat_pair("x", x, "y", y, least=3)
    n, m = len(a), len(b)
    (to_b, to_a), (in_a, _), (in_b, _) = _sums(a, b), _sums(a, a), _sums(b, b)
    cross, own_a, own_b = to_b.sum(), in_a.sum(), in_b.sum()
    term_a, term_b = own_a / (n * (n - 1)), own_b / (m * (m - 1))
    value = 2.0 * cross / (n * m) - term_a - term_b
    without_a = 2.0 * (cross - to_b) / ((n - 1) * m) - (own_a - 2.0 * in_a) / ((n - 1) * (n - 2)) - term_b
    without_b = 2.0 * (cross - to_a) / (n * (m - 1)) - (own_b - 2.0 * in_b) / ((m - 1) * (m - 2)) - term_a
    variance = sum((len(w) - 1) * w.var(correction=0) for w in (without_a, without_b))
    return EnergyDistance(value.item(), math.sqrt(variance))


def nearest_distances(x: Tensor, reference: Tensor) -> Tensor:
    """Return the Euclidean distance of each sample to the nearest reference point: (B, *), (N, *) → (B,), float64.

    Raises:
        InputError: on no samples, different shapes or numbers that are not finite.
    """
    a, b = _flat_pair("x", x, "reference", reference, least=1)
    return torch.cat([block.amin(dim=1) for block in _blocks(a, b)])


def _flat_pair(name_x: str, x: Tensor, name_y: str, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Check two sets of samples and return them as (n, D) and (m, D), float64, on the device of ``x``."""
    for name, a in ((name_x, x), (name_y, y)):
        require(a.ndim > 0 and len(a) >= least, f"{name}.shape", tuple(a.shape), f"{least} samples or more, (B, *)")
        if not a.isfinite().all():
            raise InputError(f"{name}: {int((~a.isfinite()).sum())} of its {a.numel()} numbers are NaN or infinite")
    like = f"(*, {str(tuple(x.shape[1:]))[1:]} as in {name_x}"
    require(x.shape[1:] == y.shape[1:], f"{name_y}.shape", tuple(y.shape), like)
    return per_example(x).double(), per_example(y).to(x.device).double()


def _blocks(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield all distances |x_i − y_j| a few rows at a time, so that memory does not grow with the number of rows."""
    step = max(1, _CHUNK // len(y))
    for start in range(0, len(x), step):
        yield torch.cdist(x[start : start + step], y)


def _sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ_j |x_i − y_j|, shape (n,), and Σ_i |x_i − y_j|, shape (m,)."""
    over_x = y.new_zeros(len(y))
    over_y = []
    for block in _blocks(x, y):
        over_x += block.sum(dim=0)
        over_y.append(block.sum(dim=1))
    return torch.cat(over_y), over_x
