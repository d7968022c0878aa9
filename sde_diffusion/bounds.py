"""Variational bounds on the log-likelihood: DDPM's discrete one, term by term, and its continuous-time limit.

    −log p(x₀) ≤ L_T + Σ_i L_{i−1} + L_0

    L_T      = KL(q(x_T | x₀) ‖ prior)
    L_{i−1}  = E KL(q(x_s | x_t, x₀) ‖ p(x_s | x_t))      a KL of Gaussians in closed form, at t = t_i and s = t_{i−1}
    L_0      = −E log p(x₀ | x_{t_1})                     of a Gaussian, or of grey levels: its mass in the level's cell

With the posterior variance a transition costs ½ (SNR_s − SNR_t) |x₀ − x̂₀|²; infinitely many of them cost

    ½ ∫ E|ε − ε̂|² dλ,    λ = log SNR,

an integral over the log signal-to-noise ratio that is the same for every SDE. Both are bounds on the likelihood of the
reverse process (the SDE). The ODE's likelihood is that of another model unless the score is exact.

References:
    Ho et al. 2020, arXiv:2006.11239, Eqs. 5-8 and 13. Luo 2022, arXiv:2208.11970, Eqs. 58 and 99-108. D. Kingma, T.
    Salimans, B. Poole, J. Ho, "Variational Diffusion Models", 2021, arXiv:2107.00630, Eqs. 11-15 and 18. Y. Song, C.
    Durkan, I. Murray, S. Ermon, 2021, arXiv:2101.09258, Theorem 3 (the same for a general weighting).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.noise import NoiseStream
from sde_diffusion.ops import Number, log, per_example, widest_float
from sde_diffusion.reverse import posterior_coefficients, require_variance, reverse_variance
from sde_diffusion.sde import SDE
from sde_diffusion.timesteps import require_falling, require_resolved, require_start


@dataclass(frozen=True)
class VariationalBound:
    """An upper bound on −log p(x₀) of each sample, in nats, term by term.

    Attributes:
        prior: L_T, (B,).
        terms: contributions of the times between, (M, B); their sum over M is the diffusion part.
        reconstruction: L_0, (B,).
        times: the time of each term, float64 (float32 where the device has none), (M, B).
        std_error: standard error of the diffusion part from the random times, (B,); NaN where every term is evaluated.
    """

    prior: Tensor
    terms: Tensor
    reconstruction: Tensor
    times: Tensor
    std_error: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, (B,)."""
        return self.prior + self.terms.sum(dim=0) + self.reconstruction


def prior_kl(sde: SDE, x0: Tensor, t: float | None = None) -> Tensor:
    """Return L_T = KL(N(α x₀, σ² I) ‖ N(0, prior_std² I)) in nats at the start time ``t``, by default T: (B, *) → (B,).

    Its mean over data bounds KL(p_t ‖ prior), the mismatch of the prior, because KL is convex.
    """
    flat, level = per_example(x0), sde.at(sde.T if t is None else t)
    alpha, sigma = level.alpha / sde.prior_std, level.sigma / sde.prior_std
    kl: Tensor = 0.5 * (flat.shape[1] * (sigma**2 - 1.0 - 2.0 * log(sigma)) + (alpha * flat).square().sum(dim=1))
    return kl


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Number) -> Tensor:
    """Return Σ log N(x; mean, std²) over components in nats, (B, *) → (B,); ``std`` is a number, or 0-dimensional."""
    size = per_example(x).shape[1]
    squares = per_example(x - mean).square().sum(dim=1) / std**2
    return -0.5 * (squares + size * log(2.0 * math.pi * std**2))


def level_log_prob(x: Tensor, mean: Tensor, std: Number, cell: float) -> Tensor:
    """Return the log mass that N(mean, std²) gives the cells of grey levels ``x``, (B, *) → (B,), nats.

    The cell of the level at x is [x − cell/2, x + cell/2]; those of −1 and 1 reach to infinity.

    References:
        Ho et al. 2020, arXiv:2006.11239, Eq. 13.
    """
    gap = (x - mean).to(widest_float(x.device))
    half = 0.5 * cell
    low = torch.where(x < -1.0 + half, -torch.inf, (gap - half) / std)
    high = torch.where(x > 1.0 - half, torch.inf, (gap + half) / std)
    flip = low + high > 0.0  # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): differences are taken in the lower tail, where Φ is exact
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return per_example(log_high + torch.log1p(-torch.exp(log_low - log_high))).sum(dim=1)


def _reconstruction(denoiser: AbstractDenoiser, x: Tensor, x0: Tensor, t: NoiseLevel, cell: float | None) -> Tensor:
    """Return −log p(x₀ | x_t) under N(x̂₀, σ_t²), (B,)."""
    mean, std = denoiser(x, t).x0, t.sigma
    log_prob = gaussian_log_prob(x0, mean, std) if cell is None else level_log_prob(x0, mean, std, cell)
    return -log_prob


def discrete_bound(
    denoiser: AbstractDenoiser,
    x0: Tensor,
    times: Tensor,
    noise: NoiseStream,
    *,
    variance: str | float = "posterior",
    cell: float | None = None,
    on_step: Callable[[int], None] | None = None,
    **conditions: Any,
) -> VariationalBound:
    """Evaluate DDPM's bound for the chain of ancestral steps over ``times``: every term, one draw of x_t each.

    Args:
        denoiser: the model.
        x0: samples in model space, (B, *).
        times: float64, falling from the denoiser's start time, usually T, to t_1, (N,), on the CPU; the N training
            indices give the bound of Ho et al.
        noise: one stream a sample.
        variance: the reverse variance, as of the ``ancestral`` sampler.
        cell: width of a grey level's cell where the data are grey levels in [−1, 1]; None for continuous data.
        on_step: called with the number of finished evaluations.
        conditions: what to condition on, such as ``classes``: one a sample, (B, *), or one number for all.

    Returns:
        The bound; term i belongs to the step from ``times[i]`` to ``times[i + 1]``. One evaluation each, one for L_0.

    Raises:
        InputError: on bad times, variance or cell.
    """
    sde, denoiser = denoiser.sde, denoiser.given(conditions, len(x0))
    start = denoiser.start_time()
    require_falling(times, start + 1e-9)  # a grid may reach T but for rounding
    at_prior = abs(float(times[0]) - start) < 1e-9
    require(at_prior, "times", times.flatten()[:4].tolist(), f"times that fall from {start:g}, where the prior is")
    require_resolved(sde, float(times[-1]))
    _check_cell(cell)
    require_variance(variance)  # refuse it before anything is computed
    terms = []
    levels = sde.levels(times)
    for i, (t, s) in enumerate(pairwise(levels), start=1):
        prediction = denoiser(t.alpha * x0 + t.sigma * noise(x0), t)
        _, of_x0, exact = posterior_coefficients(t, s)
        reverse = reverse_variance(prediction, t, s, variance)
        ratio = exact / reverse
        kl = 0.5 * (ratio - 1.0 - log(ratio) + of_x0**2 / reverse * (x0 - prediction.x0).square())
        terms.append(per_example(kl).sum(dim=1))
        if on_step is not None:
            on_step(i)
    last = levels[-1]
    reconstruction = _reconstruction(denoiser, last.alpha * x0 + last.sigma * noise(x0), x0, last, cell)
    if on_step is not None:
        on_step(len(times))
    between = torch.stack(terms) if terms else x0.new_zeros(0, len(x0))
    at = times[:-1, None].expand(-1, len(x0))
    unknown = torch.full_like(reconstruction, math.nan)
    return VariationalBound(prior_kl(sde, x0, start), between, reconstruction, at, unknown)


def continuous_bound(
    denoiser: AbstractDenoiser,
    x0: Tensor,
    noise: NoiseStream,
    *,
    draws: int = 32,
    t_min: float = 1e-5,
    cell: float | None = None,
    on_step: Callable[[int], None] | None = None,
    **conditions: Any,
) -> VariationalBound:
    """Estimate the continuous-time bound without bias, from times that are uniform in log SNR.

    −d log SNR/dt = g²/σ² is the density that the likelihood weighting asks for, so each draw has the same weight. The
    times are stratified, two in each of ``draws``/2 cells, whose differences give the standard error. Where α is 0 at
    T, log SNR is −∞: the bound is that of the process which starts at the SDE's ``t_max``.

    Args:
        denoiser: the model.
        x0: samples in model space, (B, *).
        noise: one stream a sample.
        draws: evaluations a sample, even; one more is spent on L_0.
        t_min: time of L_0, at which the integral ends.
        cell: width of a grey level's cell where the data are grey levels in [−1, 1]; None for continuous data.
        on_step: called with the number of finished evaluations.
        conditions: what to condition on, such as ``classes``: one a sample, (B, *), or one number for all.

    Raises:
        InputError: on bad ``draws``, ``t_min`` or ``cell``.
    """
    sde, denoiser = denoiser.sde, denoiser.given(conditions, len(x0))
    require_int("draws", draws, 2)
    require(draws % 2 == 0, "draws", draws, "an even number")
    start = denoiser.start_time(from_pure_noise=False)
    require_float("t_min", t_min, 0.0, open_low=True)
    require_start(sde, t_min)
    _check_cell(cell)
    # Floats, computed on the CPU: there is float64 there, whatever the device has.
    high, low = sde.log_snr(torch.tensor([t_min, start], dtype=torch.float64)).tolist()
    terms, times = [], []
    for i in range(draws):
        u = noise.uniform(1, x0.device)[:, 0]
        t = sde.time_of_log_snr(high + (i // 2 + u) / (draws // 2) * (low - high)).clamp(t_min, sde.T)
        eps = noise(x0)
        level = sde.at(t)
        here = level.like(x0)
        error = per_example(eps - denoiser(here.alpha * x0 + here.sigma * eps, level).eps).square().sum(dim=1)
        terms.append(0.5 * (high - low) / draws * error)
        times.append(t)
        if on_step is not None:
            on_step(i + 1)
    between = torch.stack(terms)
    pairs = between.reshape(draws // 2, 2, -1)
    std_error = (pairs[:, 0] - pairs[:, 1]).square().sum(dim=0).sqrt()  # Var(a + b) = E(a − b)² of independent a, b
    first = sde.at(t_min)
    reconstruction = _reconstruction(denoiser, first.alpha * x0 + first.sigma * noise(x0), x0, first, cell)
    if on_step is not None:
        on_step(draws + 1)
    return VariationalBound(prior_kl(sde, x0, start), between, reconstruction, torch.stack(times), std_error)


def _check_cell(cell: float | None) -> None:
    if cell is not None:
        require_float("cell", cell, 0.0, open_low=True)
