"""Certification of samplers against laws in closed form.

On Gaussian data the exact score is affine in x, so one run of a sampler that is linear in the state is an affine map of
the start and of every noise it draws, x_end = A x_T + b + Σ_k C_k z_k. Probing A, b and all C_k through injected noise
gives mean and variance of the sampler's law exactly, in one batched run and without Monte Carlo error; halving the step
then shows the weak order, and what infinitely many steps leave. On a mixture, where nothing is affine, mode weights and
moments are tested: a correct sampler fails with a probability that is stated, whatever the seed.

References:
    P. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations", 1992 (weak order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.analytic import Gaussian, GaussianMixture
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import InputError
from sde_diffusion.evaluation.significance import any_of, count_p, mean_p
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.sde import SDE
from sde_diffusion.types import NoiseFn

LimitVariance = Callable[[SDE, float, float], float]
"""``limit_variance(sde, t, variance)`` is the variance of a sampler's law where the exact one has ``variance``."""


def exactly(sde: SDE, t: float, variance: float) -> float:
    """Return the exact variance, which most samplers reach."""
    return variance


RunFn = Callable[[AbstractDenoiser, Tensor, NoiseFn], Tensor]
"""``run(denoiser, x, noise)`` integrates the states ``x`` (B, *) from the sampler's start to its end."""


@dataclass(frozen=True)
class AffineLaw:
    """x_end = A x_T + b + Σ C_k z_k of one run in one dimension.

    Attributes:
        slope: A.
        offset: b.
        noise_gains: C_k, shape (number of draws,).
    """

    slope: float
    offset: float
    noise_gains: Tensor

    def push(self, mean: float, variance: float) -> tuple[float, float]:
        """Return mean and variance at the end for a start with the given mean and variance."""
        gained = float(self.noise_gains.square().sum())
        return self.slope * mean + self.offset, self.slope**2 * variance + gained


def probe(run: RunFn, denoiser: AbstractDenoiser) -> AffineLaw:
    """Measure the affine map of one run on one-dimensional Gaussian data, in float64.

    Row 0 starts at 0 and row 1 at 1, both without noise; row k + 2 starts at 0 and receives 1 as its k-th noise.
    """
    draws = 0

    def count(x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros_like(x)

    run(denoiser, torch.zeros(1, 1, dtype=torch.float64), count)
    total, seen = draws, 0

    def unit(x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
        nonlocal seen
        z = torch.zeros_like(x)
        z[2 + seen] = 1.0
        seen += 1
        return z

    x = torch.zeros(total + 2, 1, dtype=torch.float64)
    x[1] = 1.0
    end = run(denoiser, x, unit)[:, 0]
    return AffineLaw(float(end[1] - end[0]), float(end[0]), end[2:] - end[0])


@dataclass(frozen=True)
class GaussianError:
    """Difference between a sampler's law and the exact one, in units of the exact standard deviation."""

    mean: float
    std: float

    @property
    def total(self) -> float:
        """The larger of the two, in magnitude."""
        return max(abs(self.mean), abs(self.std))

    def extrapolated(self, coarse: GaussianError, factor: float) -> GaussianError:
        """Return what is left of it if all that falls, from ``coarse`` on, falls by ``factor`` (Richardson 1911)."""
        mean, std = (
            (factor * own - other) / (factor - 1.0) for own, other in zip(astuple(self), astuple(coarse), strict=True)
        )
        return GaussianError(mean, std)


def gaussian_error(
    run: RunFn,
    sde: SDE,
    t_end: float,
    limit_variance: LimitVariance = exactly,
    mean: float = 0.7,
    variance: float = 0.25,
    t_start: float | None = None,
) -> GaussianError:
    """Compare a run that ends at ``t_end``, started from the exact law at the start, with the law it should have there.

    Args:
        limit_variance: the variance it should have, given SDE, time and the exact variance; by default that one.
        mean, variance: of the one-dimensional Gaussian data.
        t_start: where the run starts; by default T.
    """
    law = Gaussian([mean], [[variance]])

    def exact(time: float) -> tuple[float, float]:
        t = torch.tensor(time, dtype=torch.float64)
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        return alpha * mean, alpha**2 * variance + sigma**2

    found_mean, found_variance = probe(run, law.denoiser(sde)).push(*exact(sde.T if t_start is None else t_start))
    true_mean, true_variance = exact(t_end)
    true_variance = limit_variance(sde, t_end, true_variance)
    scale = math.sqrt(true_variance)
    return GaussianError((found_mean - true_mean) / scale, math.sqrt(found_variance) / scale - 1.0)


@dataclass(frozen=True)
class MixtureCheck:
    """A sampler's law on a mixture with three modes of unequal weight, against the exact one.

    The p-values are of the hypothesis that nothing is off by more than is allowed: where that is so, each is below a
    number q with a probability of at most q.

    Attributes:
        weight_error: largest difference between a mode's frequency and its weight.
        weights_p: of the frequencies of all modes, by binomial laws.
        mean_p: of both components of the mean.
        spread_p: of the mean squared distance to the nearest mode.
    """

    weight_error: float
    weights_p: float
    mean_p: float
    spread_p: float

    @property
    def smallest_p(self) -> float:
        """The smallest of the three."""
        return min(self.weights_p, self.mean_p, self.spread_p)


def three_modes() -> GaussianMixture:
    """A mixture in the plane with weights 0.5, 0.3, 0.2 and modes at least 8 standard deviations apart."""
    means = [[-1.0, -0.5], [1.0, -0.4], [0.1, 1.0]]
    covariances = [[[0.02, 0.01], [0.01, 0.02]], [[0.01, 0.0], [0.0, 0.03]], [[0.03, -0.01], [-0.01, 0.02]]]
    return GaussianMixture([0.5, 0.3, 0.2], means, covariances)


def check_mixture(
    x: Tensor, sde: SDE, t_end: float, limit_variance: LimitVariance = exactly, allowed: float = 0.0
) -> MixtureCheck:
    """Compare independent samples ``x`` (N, 2) of :func:`three_modes` at ``t_end`` with the exact law.

    Args:
        limit_variance: the variance that a sampler should have where that of a Gaussian is given; of unadjusted
            Langevin steps it is larger than the law's, in every direction of every mode.
        allowed: by how much a weight may be off, the mean in standard deviations, and as a share the mean square.
    """
    law, n = three_modes(), len(x)
    t = torch.tensor(t_end, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    distance, nearest = torch.cdist(x, alpha * law.means).min(dim=1)
    counts, weights = torch.bincount(nearest, minlength=len(law.weights)).tolist(), law.weights.tolist()
    means = (alpha * (law.weights @ law.means)).tolist()
    along = alpha**2 * torch.linalg.eigvalsh(law.covariances) + sigma**2  # of each mode's two directions
    reached = along.clone().apply_(lambda v: limit_variance(sde, t_end, v))
    within = float(law.weights @ reached.sum(dim=1))
    return MixtureCheck(
        weight_error=max(abs(c / n - w) for c, w in zip(counts, weights, strict=True)),
        weights_p=any_of(count_p(c, n, w, allowed) for c, w in zip(counts, weights, strict=True)),
        mean_p=any_of(mean_p(a, m, allowed * float(a.std())) for a, m in zip(x.T, means, strict=True)),
        spread_p=mean_p(distance**2, within, allowed * within),
    )


LADDER = (60, 120, 240)
"""Step counts of the convergence measurement, uniform down to ``T_END``, multiples of what one step may consist of."""
FIRST_RATIO = 5.0
"""σ/α from which samplers on a grid start there: from that of T, 157 or infinite, constants would hide an order."""
TOLERANCES = (1e-3, 1e-5, 1e-7)
"""Tolerances of the convergence measurement of samplers that choose their own steps."""
T_END = 0.2
"""End of the convergence measurement: steps are then small against the time at which f and g vary."""
SLACK = 0.15
"""By how much a slope may fall short of the declared order: what is left of higher terms."""
LARGEST_LIMIT = 0.01
"""Standard deviations that infinitely many steps may leave: what is extrapolated keeps terms of higher order, 0.004 of
our samplers at most. An error of which a part does not fall may still fall fast enough where it is about to turn."""
MIXTURE_SAMPLES, MIXTURE_T_END = 2000, 0.02
MIXTURE_STEPS = {1: 500, 2: 80}
"""Steps on the mixture by weak order."""
ALLOWED = 0.1
"""What finite steps may bias on the mixture: a weight, the mean in standard deviations, the mean square as a share. Of
our samplers annealed Langevin dynamics does most, 0.07. The Gaussian, where nothing is random, finds smaller faults."""
FALSE_ALARM = 1e-3
"""Probability that correct code fails in a run, whatever its seed; shared equally by all that is tested at random."""

BuildFn = Callable[..., Any]
"""``build(**options)`` makes the sampler under test."""


@dataclass(frozen=True)
class Certificate:
    """What was measured of one sampler on one SDE.

    Attributes:
        declared: the order it declares; None for a sampler that chooses its own steps.
        expected: the order it must show here: at most 1 where the SDE's coefficients jump and the order is above 1.
        measured: slope of the error over the finest pair of step counts; of a sampler that is given no grid, from the
            first to the last, for knots of a chain and steps of its own choice make it fluctuate.
        error: error on the Gaussian with the finest steps, in standard deviations.
        limit: what infinitely many steps leave of it, extrapolated by the order; ``error`` if adaptive.
        mixture: the check on the mixture.
        false_alarm: probability with which a correct sampler fails it.
    """

    declared: float | None
    expected: float
    measured: float
    error: float
    limit: float
    mixture: MixtureCheck
    false_alarm: float = FALSE_ALARM

    @property
    def failures(self) -> list[str]:
        """Return what is wrong, in words; empty for a sampler that passes."""
        found = []
        if not self.measured >= self.expected - SLACK and not self.error < 1e-9:
            found.append(f"order {self.measured:.2f} is below {self.expected:g}")
        if self.declared is not None and not self.limit < LARGEST_LIMIT:
            found.append(f"off by {self.limit:.1e} standard deviations with infinitely many steps")
        if self.declared is None and not self.error < 100.0 * TOLERANCES[-1]:
            found.append(f"error {self.error:.1e} at tolerance {TOLERANCES[-1]:g}")
        least = self.false_alarm / 3.0
        if not self.mixture.weights_p >= least:
            found.append(f"mode weights off by {self.mixture.weight_error:.3f} (p = {self.mixture.weights_p:.1e})")
        for name, p in (("mean", self.mixture.mean_p), ("spread", self.mixture.spread_p)):
            found += [] if p >= least else [f"{name} off (p = {p:.1e})"]
        return found


def sampler_error(sampler: Any, sde: SDE, on_grid: bool) -> GaussianError:
    """Return a sampler's error on Gaussian data at ``T_END``, where it must stop.

    Args:
        on_grid: take it along a uniform grid from ``FIRST_RATIO`` down, not from its own start.
    """
    start, where = sampler.start_time(three_modes().denoiser(sde)), {}  # that of any law
    if on_grid:
        start = float(sde.time_of_log_snr(torch.tensor(-2.0 * math.log(FIRST_RATIO), dtype=torch.float64)))
        where = {"times": torch.linspace(start, T_END, sampler.num_steps + 1, dtype=torch.float64)}
    run = lambda denoiser, x, noise: sampler.sample(denoiser, x, noise, **where).x  # noqa: E731
    return gaussian_error(run, sde, T_END, sampler.limit_variance, t_start=start)


def certify(
    build: BuildFn, options: Collection[str], sde: SDE, seed: int = 0, false_alarm: float = FALSE_ALARM
) -> Certificate:
    """Measure one sampler on one SDE.

    Args:
        build: makes the sampler; called with ``t_min``, ``denoise``, and of ``num_steps``, ``grid``, ``rtol``, ``atol``
            those that it has.
        options: the names of its options.
        seed: of the samples of the mixture.
        false_alarm: probability with which a correct sampler may fail.

    Raises:
        InputError: if it can be refined neither by ``num_steps`` nor by ``rtol``.
    """
    fixed = {"denoise": False}
    if "num_steps" in options:
        on_grid = {"grid": "uniform"} if "grid" in options else {}
        ladder = [build(num_steps=n, t_min=T_END, **on_grid, **fixed) for n in LADDER]
        first = -2 if "grid" in options else 0
        refinement = LADDER[-1] / LADDER[first]
    elif "rtol" in options:
        ladder = [build(rtol=tol, atol=tol, t_min=T_END, **fixed) for tol in TOLERANCES]
        first, refinement = 0, TOLERANCES[0] / TOLERANCES[-1]
    else:
        raise InputError("sampler: expected an option num_steps or rtol to refine it by")

    coarse, fine = (sampler_error(ladder[i], sde, "grid" in options) for i in (first, -1))
    measured = math.log(coarse.total / max(fine.total, 1e-300)) / math.log(refinement)
    declared = ladder[-1].order
    # An adaptive solver's error follows its tolerance, with fluctuations: half a power of it is asked for.
    expected = 0.5 if declared is None else declared if sde.smooth else min(declared, 1.0)
    limit = fine if declared is None else fine.extrapolated(coarse, refinement**expected)

    steps = {"num_steps": MIXTURE_STEPS[2 if (declared or 1) >= 2 else 1]} if "num_steps" in options else {}
    final = build(t_min=MIXTURE_T_END, **steps, **fixed)
    shape = (MIXTURE_SAMPLES, *three_modes().shape)
    x = final.draw(three_modes().denoiser(sde), shape, seed, dtype=torch.float64).x
    mixture = check_mixture(x, sde, MIXTURE_T_END, final.limit_variance, ALLOWED)
    return Certificate(declared, expected, measured, fine.total, limit.total, mixture, false_alarm)
