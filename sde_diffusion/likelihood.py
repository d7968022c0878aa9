"""Exact log-likelihood of a denoiser by the probability-flow ODE, and what its errors are.

The probability flow carries data to noise along a deterministic path, so log-density changes by the divergence of its
slope. In the angle φ = atan(σ/α) with w = x/r, r = √(α² + σ²) (:class:`~sde_diffusion.reverse.AngularFlow`),

    log p(x) = log prior(x_T) + D log(r_T/r_min) + ∫ div(dw/dφ) dφ,        φ from φ(t_min) to φ(T),

or to the last time before T at which the prediction can be read, where α is 0 at T
(:meth:`~sde_diffusion.AbstractDenoiser.start_time`).

The divergence is the trace of a Jacobian: exact, by one product for each of the D components, or Hutchinson's unbiased
estimate E[eᵀ J e] with random probes e that stay the same along a trajectory. Product and slope come from one forward
and one backward pass.

References:
    Song et al. 2021, arXiv:2011.13456, Eqs. 39 and 40 and Section 4.3. R. Chen et al., "Neural Ordinary Differential
    Equations", 2018, arXiv:1806.07366, Theorem 1. W. Grathwohl et al., "FFJORD", 2019, arXiv:1810.01367, Section 3.1
    (fixed probes). M. Hutchinson, 1989, Commun. Stat. Simul. Comput. 18(3). Y. Burda, R. Grosse, R. Salakhutdinov,
    "Importance Weighted Autoencoders", 2016, arXiv:1509.00519, Eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.bounds import prior_kl
from sde_diffusion.denoisers import AbstractDenoiser, evaluating
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.memory import require_memory
from sde_diffusion.noise import NoiseStream, stream
from sde_diffusion.ode import ODESolution, solve_ode
from sde_diffusion.ops import per_example, widest_float
from sde_diffusion.reverse import AngularFlow
from sde_diffusion.sde import SDE
from sde_diffusion.timesteps import require_start

DIVERGENCES = ("hutchinson", "exact")
PROBE_LAWS = ("rademacher", "gaussian")
T_MIN = 1e-5
"""Where the flow starts by default, as in score SDE; a network of discrete time starts at its first time instead."""
NOISE = {True: 1e-6, False: 5e-4}
"""The least σ/α that a flow starts at by default, by whether states are of float64: float32 does not resolve less."""
LEAST_NOISE = {True: 1e-7, False: 1e-4}
"""The least σ/α at which the truncation is measured, likewise."""
TOLERANCES = tuple(10.0 ** (-0.5 * n) for n in range(5, 17))
"""Rungs of :func:`choose_tolerance`: half decades from 3e-3 to 1e-8."""
_ROWS = 512  # examples times directions of one backward pass: bounds the memory of many probes


@dataclass(frozen=True)
class ErrorBudget:
    """What separates the reported log-likelihoods from the exact ones, in nats, as means over samples.

    Attributes:
        probes: standard error of the mean log-likelihood from the random probes; NaN with one probe, 0 if exact.
        solver: mean change when the tolerances are ten times smaller, and its standard error, over ``checked`` samples.
        prior: KL(p_T ‖ prior) ≥ 0, by which the prior lowers the mean; exact where p_T is a known Gaussian, else the
            bound E[KL(p(x_T | x₀) ‖ prior)] from the second moment of the samples; T is where draws start.
        prior_is_exact: which of the two.
        truncation: mean difference between log p of the data and the reported log p_{t_min}, and its standard error,
            over ``checked`` samples: solved from far less noise than at t_min, or where a network of discrete time
            knows none, extrapolated from two and four times its variance.
        checked: number of samples that were solved again for ``solver`` and ``truncation``.
    """

    probes: float
    solver: tuple[float, float]
    prior: float
    prior_is_exact: bool
    truncation: tuple[float, float]
    checked: int


@dataclass(frozen=True)
class LikelihoodResult:
    """Log-likelihoods of samples.

    Attributes:
        log_prob: log p in nats, float64 (float32 where the device has none), (B,); NaN for a sample whose solve failed.
        std_error: standard error of each from its probes, (B,); 0 if exact, NaN with a single probe.
        latent: x_T, shape (B, *); the ``probability_flow`` sampler without denoising takes it back to x.
        nfe: evaluations that each sample needed, int64, (B,); each is one forward pass and one backward pass a probe.
        reasons: why samples failed, by their place in the batch.
        budget: the errors.
    """

    log_prob: Tensor
    std_error: Tensor
    latent: Tensor
    nfe: Tensor
    reasons: dict[int, str]
    budget: ErrorBudget


def _directions(x: Tensor, divergence: str, probes: int, law: str, noise: NoiseStream) -> list[Tensor | range]:
    """Return the directions of each backward pass: probes (k, B, *), or the numbers of the components to go through."""
    rows = max(1, _ROWS // len(x))
    if divergence == "exact":
        size = per_example(x).shape[1]
        return [range(first, min(first + rows, size)) for first in range(0, size, rows)]
    require_memory("probes", probes, float(probes) * x.nbytes, "them", "take fewer", x.device)
    drawn = torch.stack([noise(x) for _ in range(probes)])
    if law == "rademacher":
        drawn = torch.where(drawn < 0.0, -1.0, 1.0).to(x)
    return list(torch.split(drawn, rows))


def _products(slope: Tensor, w: Tensor, directions: Sequence[Tensor | range]) -> Iterator[Tensor]:
    """Yield eᵀ J e for each direction e, (k, B) at a time, from one forward pass."""
    for i, part in enumerate(directions):
        if isinstance(part, range):  # unit vectors, made when they are needed: all of them would be a D × D matrix
            unit = w.new_zeros(len(part), per_example(w).shape[1])
            unit[range(len(part)), part] = 1.0
            e = unit.reshape(len(part), 1, *w.shape[1:]).expand(-1, *w.shape)
        else:
            e = part
        keep = i + 1 < len(directions)
        if len(e) == 1:
            (product,) = torch.autograd.grad(slope, w, e[0], retain_graph=keep)
            product = product[None]
        else:
            (product,) = torch.autograd.grad(slope, w, e, retain_graph=keep, is_grads_batched=True)
        yield (product * e).flatten(2).sum(dim=2)


def _check(
    denoiser: AbstractDenoiser, x: Tensor, divergence: str, probes: int, probe_law: str, t_min: float | None
) -> float:
    """Check the arguments and return the time to start at."""
    require(
        isinstance(x, Tensor) and x.ndim >= 2 and x.numel() > 0 and x.dtype in (torch.float32, torch.float64),
        "x",
        tuple(x.shape) if isinstance(x, Tensor) else x,
        "samples of shape (B, *), float32 or float64",
    )
    broken = int((~torch.isfinite(x)).sum())
    require(broken == 0, "x", f"{broken} of {x.numel()} numbers NaN or infinite", "finite numbers")
    require(divergence in DIVERGENCES, "divergence", divergence, f"one of {', '.join(DIVERGENCES)}")
    require(probe_law in PROBE_LAWS, "probe_law", probe_law, f"one of {', '.join(PROBE_LAWS)}")
    require_int("probes", probes, 1)
    sde = denoiser.sde
    if t_min is None:
        resolved = _time_of(sde, NOISE[x.dtype == torch.float64])
        t_min = float(denoiser.round_t(torch.tensor(max(T_MIN, resolved), dtype=torch.float64)))
    require_float("t_min", t_min, 0.0, open_low=True)
    require_start(sde, t_min)
    return t_min


_Solved = tuple[ODESolution, Tensor, Tensor]
"""The solution, log p of each probe and x_T."""


def _solve(
    flow: AngularFlow,
    x: Tensor,
    directions: list[Tensor | range],
    exact: bool,
    times: Tensor,
    tolerance: dict[str, Any],
) -> _Solved:
    """Return the solution, log p of each probe (k or 1, B), float64 if the device has it, and x_T."""
    shape, size = x.shape, per_example(x).shape[1]
    columns = 1 if exact else sum(len(e) for e in directions)
    # The state is w beside ∫ div dφ/√D, in whose norm an error of one nat weighs as much as 1/D in each component.
    unit = math.sqrt(size)

    def slope(angle: Tensor, y: Tensor) -> Tensor:
        w = y[:, :size].reshape(shape).detach().requires_grad_()
        with torch.enable_grad():
            dw = flow(angle, w)
        if not dw.requires_grad:
            raise InputError("denoiser: its prediction has no gradient with respect to x; do not detach it")
        traces = torch.cat(list(_products(dw, w, directions)))
        traces = traces.sum(dim=0, keepdim=True) if exact else traces
        return torch.cat([per_example(dw.detach()), traces.T / unit], dim=1)

    radius, angle = flow.radius(times), flow.angle(times)
    start = torch.cat([per_example(x / radius[0]), x.new_zeros(len(x), columns)], dim=1)
    solution = solve_ode(slope, start, angle[0], angle[1], **tolerance)
    latent = solution.y[:, :size].reshape(shape) * radius[1]
    wide = latent.to(widest_float(latent.device))
    volume = size * (radius[1] / radius[0]).log()
    return solution, flow.denoiser.sde.prior_logp(wide) + volume + solution.y[:, size:].T.to(wide) * unit, latent


def log_likelihood(
    denoiser: AbstractDenoiser,
    x: Tensor,
    *,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe_law: str = "rademacher",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    seed: int = 0,
    first_index: int = 0,
    t_min: float | None = None,
    method: str = "dopri5",
    max_steps: int = 1000,
    check: int = 4,
    **conditions: Any,
) -> LikelihoodResult:
    """Return log p_{t_min}(x) under the probability-flow ODE, nats, each sample solved on its own.

    A sample's value and its number of evaluations depend on itself, ``seed`` and its index, not on its neighbours.

    Args:
        denoiser: a :class:`~sde_diffusion.Denoiser` or an analytic law's.
        x: samples in model space, (B, *), on the denoiser's device.
        divergence: "hutchinson", or "exact": D products an evaluation, for vectors and small pictures.
        probes: number of random probes; all share the forward pass, and two or more give a standard error.
        probe_law: "rademacher", of the least variance, or "gaussian".
        rtol, atol: tolerances of a step, in units of the state's size and of nats a dimension.
        seed, first_index: of the probes; the second batch of 64 has ``first_index=64``.
        t_min: time whose law is evaluated at ``x``; by default 1e-5, or the first time of a network of discrete time.
        method: "dopri5" or "bosh3".
        max_steps: step attempts after which a sample is given up.
        check: samples that are solved twice more, for the budget's solver and truncation errors; 0 leaves those NaN.
        conditions: what to condition on, such as ``classes``: one a sample, (B, *), or one number for all.

    Raises:
        InputError: on a bad argument, data that are not finite, or a denoiser without a gradient.
    """
    t_start = _check(denoiser, x, divergence, probes, probe_law, t_min)
    for name, value in (("check", check), ("first_index", first_index)):
        require_int(name, value, 0)
    flow = AngularFlow(denoiser.given(conditions, len(x)))

    def solve(x: Tensor, flow: AngularFlow, tighter: float = 1.0, start: float = t_start) -> _Solved:
        times = torch.tensor([start, denoiser.start_time()], dtype=torch.float64)
        noise = NoiseStream(stream(seed, "probes"), range(first_index, first_index + len(x)))
        directions = _directions(x, divergence, probes, probe_law, noise)
        options = {"rtol": tighter * rtol, "atol": tighter * atol, "method": method, "max_steps": max_steps}
        return _solve(flow, x, directions, divergence == "exact", times, options)

    with torch.no_grad(), evaluating(denoiser):
        solution, by_probe, latent = solve(x, flow)
        log_prob = by_probe.mean(dim=0)
        some = x[:check]
        flow = AngularFlow(denoiser.given(_first(conditions, check), len(some))) if check else flow
        solver, truncation = _checked(partial(solve, some, flow), flow, some, log_prob[:check], t_start)
        std_error = _std_error(by_probe, divergence == "exact")
    budget = _budget(denoiser, x, std_error, solver, truncation, len(some))
    return LikelihoodResult(log_prob, std_error, latent, solution.nfe, solution.reasons(), budget)


def _first(conditions: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return the conditions of the first ``n`` samples."""
    return {name: v[:n] if isinstance(v, (Tensor, np.ndarray, list)) else v for name, v in conditions.items()}


def _std_error(by_probe: Tensor, exact: bool) -> Tensor:
    """Return the standard error of each sample's mean over probes (probes, B): 0 if exact, NaN of a single one."""
    if exact:
        return torch.zeros_like(by_probe[0])
    probes = len(by_probe)
    return by_probe.std(dim=0) / math.sqrt(probes) if probes > 1 else torch.full_like(by_probe[0], math.nan)


def _checked(
    solve: Callable[..., _Solved],
    flow: AngularFlow,
    some: Tensor,
    log_prob: Tensor,
    t_start: float,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the errors of the solver and of the truncation, measured on some samples; NaN without any.

    Args:
        solve: solves those samples, ``tighter`` or from another ``start``.
        log_prob: what was found of them.
    """
    if not len(some):
        return (math.nan, math.nan), (math.nan, math.nan)

    def gain(start: float) -> Tensor:
        """Return log p_start − log p_{t_min}, (B,)."""
        return solve(start=start)[1].mean(dim=0) - log_prob

    tighter = mean_and_error(solve(tighter=0.1)[1].mean(dim=0) - log_prob)
    return tighter, mean_and_error(_truncation(gain, flow.denoiser, t_start, some.dtype == torch.float64))


def _truncation(gain: Callable[[float], Tensor], denoiser: AbstractDenoiser, t_start: float, wide: bool) -> Tensor:
    """Return log p − log p_{t_min} of samples, (B,).

    From a tenth of the noise, or that of ``T_MIN`` if it is less, little is missing. Where the network knows no time
    with so little, a power of the variance is fitted to log p at two and four times that of t_min: its mean is of
    second order where the noise is small beside the data, E[Δ log p + |∇ log p|²] = 0, and of lower where it is not.
    """
    sde = denoiser.sde

    def ratio(t: float) -> float:
        level = sde.at(t)
        return float(torch.as_tensor(level.ratio))

    def time_at(noise: float) -> float:
        return float(denoiser.round_t(torch.tensor(_time_of(sde, noise), dtype=torch.float64)))

    lower = time_at(max(min(0.1 * ratio(t_start), ratio(T_MIN)), LEAST_NOISE[wide]))
    if ratio(lower) <= 0.5 * ratio(t_start):
        return gain(lower)
    two, four = (max(time_at(math.sqrt(factor) * ratio(t_start)), t_start) for factor in (2.0, 4.0))
    one, second, third = (ratio(t) ** 2 for t in (t_start, two, four))
    if not one < second < third < math.inf:
        return torch.full_like(gain(t_start), math.nan)
    near, far = gain(two), gain(four)
    wanted = float((far - near).mean() / near.mean())

    def growth(power: float) -> float:
        grown: float = (third**power - second**power) / (second**power - one**power)
        return grown

    low, high = 0.05, 2.5
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if growth(middle) < wanted else (low, middle)
    share: float = one**low / (second**low - one**low)
    return -share * near


def _time_of(sde: SDE, noise: float) -> float:
    """Return the time at which σ/α is ``noise``, no more than halfway to T."""
    log_snr = torch.tensor(-2.0 * math.log(noise), dtype=torch.float64)
    return min(float(sde.time_of_log_snr(log_snr)), 0.5 * sde.T)


def _budget(
    denoiser: AbstractDenoiser,
    x: Tensor,
    std_error: Tensor,
    solver: tuple[float, float],
    truncation: tuple[float, float],
    checked: int,
) -> ErrorBudget:
    exact_kl = denoiser.prior_kl()
    kl = prior_kl(denoiser.sde, x, denoiser.start_time()) if exact_kl is None else exact_kl
    return ErrorBudget(
        probes=float((std_error**2).nanmean().sqrt() / math.sqrt(len(x))),
        solver=solver,
        prior=float(kl.mean()),
        prior_is_exact=exact_kl is not None,
        truncation=truncation,
        checked=checked,
    )


@dataclass(frozen=True)
class Tolerance:
    """A tolerance and the errors that speak for it, in nats.

    Attributes:
        value: for ``rtol`` and ``atol``.
        solver: mean change of log p at ten times smaller tolerances and its standard error, over the pilot's samples.
        statistical: standard error that the mean over all samples will have.
        sufficient: whether the first is below a tenth of the second; False if even the smallest tolerance was not.
    """

    value: float
    solver: tuple[float, float]
    statistical: float
    sufficient: bool


def choose_tolerance(denoiser: AbstractDenoiser, x: Tensor, num_samples: int, **options: Any) -> Tolerance:
    """Return the largest tolerance whose solver error is below a tenth of the statistical error of the mean.

    A few samples are solved at falling tolerances. Each rung is judged by its change over one and over two rungs below,
    half a decade each, because neighbouring tolerances can share an error.

    Args:
        denoiser: the model.
        x: pilot samples, (B, *), B ≥ 2.
        num_samples: number of samples over which the mean will be taken.
        options: of :func:`log_likelihood`.

    Raises:
        InputError: as :func:`log_likelihood`; with fewer than 2 samples.
    """
    require(len(x) >= 2, "x", f"{len(x)} samples", "at least 2, to measure their spread")
    require_int("num_samples", num_samples, 1)

    @cache
    def at(rung: int) -> Tensor:
        value = TOLERANCES[rung]
        return log_likelihood(denoiser, x, **{**options, "rtol": value, "atol": value, "check": 0}).log_prob.cpu()

    for i, tolerance in enumerate(TOLERANCES[:-2]):
        spread = at(i + 2)[torch.isfinite(at(i + 2))]
        statistical = float(spread.std()) / math.sqrt(num_samples)
        (near, _), (far, error) = mean_and_error(at(i + 1) - at(i)), mean_and_error(at(i + 2) - at(i))
        sufficient = max(abs(near), abs(far)) <= 0.1 * statistical
        chosen = Tolerance(tolerance, (far, error), statistical, sufficient)
        if sufficient:
            break
    return chosen


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of finite independent values (N,) and its standard error; NaN where there are too few."""
    values = values.cpu().double()  # in this order: not every device has float64
    values = values[torch.isfinite(values)]
    if len(values) == 0:
        return math.nan, math.nan
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


def bits_per_dim(log_prob: Tensor, shape: Sequence[int], levels: int, scale: float = 2.0) -> Tensor:
    """Turn log-likelihoods of uniformly dequantised data into bits per dimension of their grey levels.

    −(log p(x) + D log(scale/levels))/(D log 2): the density times the volume of a level's cell, in bits. Data that are
    uniform over the levels cost log₂ levels exactly.

    Args:
        log_prob: log p(x) in nats, any shape.
        shape: shape of one sample.
        levels: number of grey levels.
        scale: width of the interval that their cells fill together: 2 for x = 2 (k + u)/levels − 1, and
            ``levels * codec.cell`` for grey levels as this package encodes them. ``levels=1, scale=1`` gives the bits
            of a density, or of a probability.

    Raises:
        InputError: on a number or shape out of range.
    """
    require_int("levels", levels, 1)
    require_float("scale", scale, 0.0, open_low=True)
    size = math.prod(shape)
    require(size > 0, "shape", tuple(shape), "the shape of one sample, for example (1, 8, 8)")
    return -(log_prob / size + math.log(scale / levels)) / math.log(2.0)


def importance_weighted(log_prob: Tensor) -> Tensor:
    """Return log of the mean likelihood over dequantisation draws, (M, B) → (B,): a bound that M tightens.

    References:
        Burda et al. 2016, arXiv:1509.00519, Eq. 8; for dequantisation Ho et al. 2019, arXiv:1902.00275, Section 3.1.
    """
    return log_prob.logsumexp(dim=0) - math.log(len(log_prob))
