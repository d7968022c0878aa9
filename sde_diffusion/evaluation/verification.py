"""Certification of samplers against laws in closed form.

On Gaussian data the exact score is affine in x, so one run of a sampler that is linear in the state is an affine map of
the start and of every noise it draws, x_end = A x_T + b + Σ_k C_k z_k. Probing A, b and all C_k through injected noise
gives mean and variance of the sampler's law exactly, in one batched run and without Monte Carlo error; halving the step
then shows the weak order. On a mixture, where nothing is affine, mode weights and moments are compared with
their sampling error.

References:
    P. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations", 1992 (weak order).
    K. Pearson, 1900 (χ² of counts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.analytic import Gaussian, GaussianMixture
from sde_diffusion.bounds import continuous_bound
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import InputError
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.likelihood import log_likelihood
from sde_diffusion.noise import NoiseStream, generator, stream
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

    Attributes:
        weight_error: largest difference between a mode's frequency and its weight.
        chi2_p: p-value of the counts under the exact weights.
        mean_z: largest |difference|/standard error of the mean over components.
        spread_z: |difference|/standard error of the mean squared distance to the nearest mode.
    """

    weight_error: float
    chi2_p: float
    mean_z: float
    spread_z: float


def three_modes() -> GaussianMixture:
    """A mixture in the plane with weights 0.5, 0.3, 0.2 and modes at least 8 standard deviations apart."""
    means = [[-1.0, -0.5], [1.0, -0.4], [0.1, 1.0]]
    covariances = [[[0.02, 0.01], [0.01, 0.02]], [[0.01, 0.0], [0.0, 0.03]], [[0.03, -0.01], [-0.01, 0.02]]]
    return GaussianMixture([0.5, 0.3, 0.2], means, covariances)


def check_mixture(x: Tensor, sde: SDE, t_end: float, limit_variance: LimitVariance = exactly) -> MixtureCheck:
    """Compare samples ``x`` (N, 2) of :func:`three_modes` at ``t_end`` with the exact law.

    Args:
        limit_variance: the variance that a sampler should have where that of a Gaussian is given; of unadjusted
            Langevin steps it is larger than the law's, in every direction of every mode.
    """
    from scipy.stats import chi2

    law = three_modes()
    t = torch.tensor(t_end, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    distance, nearest = torch.cdist(x, alpha * law.means).min(dim=1)
    counts = torch.bincount(nearest, minlength=len(law.weights)).double()
    expected = law.weights * len(x)
    statistic = float(((counts - expected) ** 2 / expected).sum())

    mean = alpha * (law.weights @ law.means)
    second = law.weights @ (law.covariances.diagonal(dim1=1, dim2=2) + law.means**2)
    variance = alpha**2 * (second - (law.weights @ law.means) ** 2) + sigma**2
    along = alpha**2 * torch.linalg.eigvalsh(law.covariances) + sigma**2  # of each mode's two directions
    reached = along.clone().apply_(lambda v: limit_variance(sde, t_end, v))
    within = float(law.weights @ reached.sum(dim=1))
    squared = distance**2
    return MixtureCheck(
        weight_error=float((counts / len(x) - law.weights).abs().max()),
        chi2_p=float(chi2.sf(statistic, len(law.weights) - 1)),
        mean_z=float(((x.mean(dim=0) - mean).abs() / (variance / len(x)).sqrt()).max()),
        spread_z=abs(float(squared.mean()) - within) / (float(squared.std()) / math.sqrt(len(x))),
    )


LADDER = (64, 128, 256)
"""Step counts of the convergence measurement, on a uniform grid from the start to ``T_END``."""
TOLERANCES = (1e-3, 1e-5, 1e-7)
"""Tolerances of the convergence measurement of samplers that choose their own steps."""
T_END = 0.3
"""End of the convergence measurement: steps are then small against the time at which f and g vary."""
SLACK = 0.15
"""By how much the slope of the finest pair may fall short of the declared order: what is left of higher terms."""
MIXTURE_SAMPLES, MIXTURE_T_END = 2000, 0.02
MIXTURE_STEPS = {1: 500, 2: 80}
"""Steps on the mixture by weak order: the bias is then below the sampling error of its 2,000 samples."""
SMALLEST_P, LARGEST_Z = 1e-4, 5.0
"""Bounds on χ² and on |z|: a correct sampler fails one of some fifty checks in one of a hundred runs."""

BuildFn = Callable[..., Any]
"""``build(**options)`` makes the sampler under test."""


@dataclass(frozen=True)
class Certificate:
    """What was measured of one sampler on one SDE.

    Attributes:
        declared: the order it declares; None for a sampler that chooses its own steps.
        expected: the order it must show here: at most 1 where the SDE's coefficients jump and the order is above 1.
        measured: slope of the error over the finest pair of step counts; if adaptive, of log error over log tolerance
            from the first to the last.
        error: error on the Gaussian with the finest steps, in standard deviations.
        mixture: the check on the mixture.
    """

    declared: float | None
    expected: float
    measured: float
    error: float
    mixture: MixtureCheck

    @property
    def failures(self) -> list[str]:
        """Return what is wrong, in words; empty for a sampler that passes."""
        found = []
        if not self.measured >= self.expected - SLACK and not self.error < 1e-9:
            found.append(f"order {self.measured:.2f} is below {self.expected:g}")
        if self.declared is None and not self.error < 100.0 * TOLERANCES[-1]:
            found.append(f"error {self.error:.1e} at tolerance {TOLERANCES[-1]:g}")
        if not self.mixture.chi2_p >= SMALLEST_P:
            found.append(f"mode weights off by {self.mixture.weight_error:.3f} (p = {self.mixture.chi2_p:.1e})")
        if not max(self.mixture.mean_z, self.mixture.spread_z) <= LARGEST_Z:
            found.append(f"moments off by {max(self.mixture.mean_z, self.mixture.spread_z):.1f} standard errors")
        return found


def certify(build: BuildFn, options: Collection[str], sde: SDE, seed: int = 0) -> Certificate:
    """Measure one sampler on one SDE.

    Args:
        build: makes the sampler; called with ``t_min``, ``denoise``, and of ``num_steps``, ``grid``, ``rtol``, ``atol``
            those that it has.
        options: the names of its options.
        seed: of the samples of the mixture.

    Raises:
        InputError: if it can be refined neither by ``num_steps`` nor by ``rtol``.
    """
    fixed = {"denoise": False}
    if "num_steps" in options:
        on_grid = {"grid": "uniform"} if "grid" in options else {}
        ladder = [build(num_steps=n, t_min=T_END, **on_grid, **fixed) for n in LADDER]
        coarse, refinement = -2, LADDER[-1] / LADDER[-2]
    elif "rtol" in options:
        ladder = [build(rtol=tol, atol=tol, t_min=T_END, **fixed) for tol in TOLERANCES]
        coarse, refinement = 0, TOLERANCES[0] / TOLERANCES[-1]
    else:
        raise InputError("sampler: expected an option num_steps or rtol to refine it by")

    def error(sampler: Any) -> float:
        run = lambda denoiser, x, noise: sampler.sample(denoiser, x, noise).x  # noqa: E731
        start = sampler.start_time(three_modes().denoiser(sde))  # that of any law
        return gaussian_error(run, sde, T_END, sampler.limit_variance, t_start=start).total

    errors = [error(sampler) for sampler in ladder]
    measured = math.log(errors[coarse] / max(errors[-1], 1e-300)) / math.log(refinement)
    declared = ladder[-1].order
    # An adaptive solver's error follows its tolerance, with fluctuations: half a power of it is asked for.
    expected = 0.5 if declared is None else declared if sde.smooth else min(declared, 1.0)

    steps = {"num_steps": MIXTURE_STEPS[2 if (declared or 1) >= 2 else 1]} if "num_steps" in options else {}
    final = build(t_min=MIXTURE_T_END, **steps, **fixed)
    shape = (MIXTURE_SAMPLES, *three_modes().shape)
    x = final.draw(three_modes().denoiser(sde), shape, seed, dtype=torch.float64).x
    return Certificate(
        declared, expected, measured, errors[-1], check_mixture(x, sde, MIXTURE_T_END, final.limit_variance)
    )


@dataclass(frozen=True)
class LikelihoodCertificate:
    """What was measured of the likelihood on one SDE, on a correlated Gaussian in six dimensions.

    Attributes:
        error: largest |log p − closed form| in nats, exact divergence, tolerance 1e-7, the prior term accounted for.
        probes_z: largest |difference|/standard error of Hutchinson's estimates from 200 probes.
        prior_gap: difference between the mean cost of the prior and KL(p_T ‖ prior), in standard errors.
        bound_z: (−log p − continuous bound)/standard error; above 0 the bound would not be one.
    """

    error: float
    probes_z: float
    prior_gap: float
    bound_z: float

    @property
    def failures(self) -> list[str]:
        """Return what is wrong, in words; empty if all is well."""
        found = [] if self.error < 1e-4 else [f"log p off by {self.error:.1e} nats"]
        for name, z in (("probes", self.probes_z), ("prior", self.prior_gap), ("bound", self.bound_z)):
            found += [] if z <= LARGEST_Z else [f"{name} off by {z:.1f} standard errors"]
        return found


def certify_likelihood(sde: SDE, seed: int = 0) -> LikelihoodCertificate:
    """Measure likelihood and bound on one SDE against the closed form of a Gaussian."""
    random = generator(seed, "law")
    root = torch.randn(6, 6, generator=random, dtype=torch.float64) / 4.0
    law = Gaussian(root[0], root @ root.T + 0.05 * torch.eye(6, dtype=torch.float64))
    denoiser, many = law.denoiser(sde), law.sample(4000, random)
    x, start, end = many[:8], torch.tensor(1e-4, dtype=torch.float64), torch.tensor(sde.T, dtype=torch.float64)
    tight: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7, "t_min": float(start), "check": 0}
    exact = log_likelihood(denoiser, x, divergence="exact", **tight)
    prior_term = law.log_prob(exact.latent, sde, end) - sde.prior_logp(exact.latent)
    error = (exact.log_prob + prior_term - law.log_prob(x, sde, start)).abs().max()
    probed = log_likelihood(denoiser, x, probes=200, seed=seed, **tight)

    mean, std = sde.marginal_prob(many, end)
    last = mean + std * torch.randn(many.shape, generator=random, dtype=many.dtype)
    cost = law.log_prob(last, sde, end) - sde.prior_logp(last) - law.prior_kl(sde)
    noise = NoiseStream(stream(seed, "bound"), range(len(many)))
    gap = -law.log_prob(many) - continuous_bound(denoiser, many, noise, draws=16, t_min=float(start)).total
    return LikelihoodCertificate(
        error=float(error),
        probes_z=float(((probed.log_prob - exact.log_prob).abs() / probed.std_error).max()),
        # Where the prior is exact the cost is rounding, of which 1e-9 nats are much.
        prior_gap=abs(float(cost.mean())) / max(float(cost.std()) / math.sqrt(len(cost)), 1e-9),
        bound_z=float(gap.mean()) / (float(gap.std()) / math.sqrt(len(gap))),
    )
