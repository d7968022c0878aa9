"""Exponential integrators: the linear part of the ODE or SDE exactly, the prediction as a polynomial in λ = ½ log SNR.

With λ = log(α/σ), h = λ_s − λ_t > 0, and predictions x̂₀ or ε̂ along the way, the exact solutions are

    x_s = (σ_s/σ_t) e^{−τ²h} x_t + α_s ∫ κ e^{−κ(λ_s − λ)} x̂₀(λ) dλ + σ_s √(1 − e^{−2τ²h}) z,    κ = 1 + τ²,
    x_s = (α_s/α_t) x_t − (1 + τ²) σ_s ∫ e^{λ_s − λ} ε̂(λ) dλ + τ σ_s √(e^{2h} − 1) z,

of the probability-flow ODE (τ = 0), the reverse SDE (τ = 1) and all between and beyond. A scheme is a choice of where
the prediction is known: with nodes λ_j in units of the step, u_j = (λ_j − λ_t)/h, the polynomial through them makes of
either integral Σ c_j prediction_j with

    c_j = ∫₀¹ ζ e^{−ζ(1−u)} ℓ_j(u) du,    ζ = κ h for x̂₀ and −h for ε̂,    ℓ_j(u) = Π_{i≠j} (u − u_i)/(u_j − u_i).

Nodes of the past make a multistep predictor (Adams-Bashforth), with the step's end among them a corrector
(Adams-Moulton), with stages between a single step (Runge-Kutta). At α_t = 0, where h is infinite, the first form is
finite: x_s = (σ_s/σ_t) x_t + α_s x̂₀.

References:
    C. Lu et al., "DPM-Solver", 2022, arXiv:2206.00927, Eq. 3.4; "DPM-Solver++", 2022, arXiv:2211.01095, Eq. 8.
    S. Xue et al., "SA-Solver", 2023, arXiv:2309.05019, Proposition 4.2 (τ).
    M. Hochbruck, A. Ostermann, "Exponential integrators", 2010, Acta Numerica 19 (Adams methods, Section 2.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, add_scaled_

Node = tuple[float, Tensor]
"""λ = ½ log SNR, and what was predicted there, (B, *)."""

FORMS = ("x0", "eps")
"""What is taken for a polynomial."""


def half_log_snr(level: NoiseLevel) -> float:
    """Return λ = ½ log SNR of a level of a grid; −∞ where α is 0."""
    return 0.5 * cast(float, level.log_snr)


def moments(zeta: float, count: int) -> list[float]:
    """Return ∫₀¹ ζ e^{−ζ(1−u)} uᵏ du for k < count; 1 for ζ = ∞.

    By parts, 1 − k/ζ times the one before; where that would cancel, by the series ζ e^{−ζ} Σₙ ζⁿ/(n! (n + k + 1)).
    """
    if abs(zeta) >= 1.0:
        found = [-math.expm1(-zeta)]
        for k in range(1, count):
            found.append(1.0 - k / zeta * found[-1])
        return found
    powers = [1.0]
    while abs(powers[-1]) > 1e-17:
        powers.append(powers[-1] * zeta / len(powers))
    scale = zeta * math.exp(-zeta)
    return [scale * sum(power / (n + k + 1) for n, power in enumerate(powers)) for k in range(count)]


def weights(nodes: Sequence[float], zeta: float) -> list[float]:
    """Return c_j for nodes u_j, exact for polynomials of degree len(nodes) − 1."""
    return interpolate(moments(zeta, len(nodes)), nodes)


def interpolate(integrals: Sequence[float], nodes: Sequence[float]) -> list[float]:
    """Return the integral of each ℓ_j, given those of uᵏ."""
    return [sum(c * m for c, m in zip(_lagrange(nodes, j), integrals, strict=True)) for j in range(len(nodes))]


def _lagrange(nodes: Sequence[float], j: int) -> list[float]:
    """Return the coefficients of ℓ_j, that of 1 first."""
    found = [1.0]
    for i, node in enumerate(nodes):
        if i != j:
            over = 1.0 / (nodes[j] - node)
            found = [over * (a - node * b) for a, b in zip([0.0, *found], [*found, 0.0], strict=True)]
    return found


def _two(rule: str, node: float, zeta: float) -> list[float]:
    """Return the weights of nodes 0 and u as papers have them: c₁ = (1 − e^{−ζ})/(2u), or ζ/(2u), c₀ the rest."""
    whole = -math.expm1(-zeta)
    slope = (whole if rule == "midpoint" else zeta) / (2.0 * node)
    return [whole - slope, slope]


RULES = ("exact", "midpoint", "bh1")
"""How two nodes are weighed: by the line through them, or by its slope as if at the step's middle, in two ways."""


def advance(
    form: str, x: Tensor, t: NoiseLevel, s: NoiseLevel, nodes: Sequence[Node], tau: float = 0.0, rule: str = "exact"
) -> Tensor:
    """Return x_s without its noise, (B, *), in memory that nobody else holds.

    Args:
        form: "x0" or "eps": what nodes hold.
        x: the state at ``t``, (B, *).
        nodes: predictions by λ, that at ``t`` first; beside it those at λ = −∞ are left out.
        tau: τ of the SDE.
        rule: of two nodes, one of ``RULES``; of more the polynomial is exact.
    """
    first = half_log_snr(t)
    h = half_log_snr(s) - first
    if form == "x0":
        of_x = s.sigma / t.sigma * (math.exp(-(tau**2) * h) if tau else 1.0)
        scale, zeta = s.alpha, (1.0 + tau**2) * h
    else:
        of_x, scale, zeta = s.alpha / t.alpha, s.sigma * (1.0 + tau**2), -h
    known = nodes if math.isfinite(first) and math.isfinite(nodes[-1][0]) else _finite(nodes)
    places = [(place - first) / h for place, _ in known[1:]]
    two = rule != "exact" and len(places) == 1
    found = _two(rule, places[0], zeta) if two else weights([0.0, *places], zeta)
    return weigh(x, of_x, scale, found, known)


def weigh(x: Tensor, of_x: Number, scale: Number, found: Sequence[float], nodes: Sequence[Node]) -> Tensor:
    """Return of_x · x + scale · Σ c_j prediction_j, (B, *), in memory that nobody else holds."""
    state = x * of_x
    for weight, (_, value) in zip(found, nodes, strict=True):
        state = add_scaled_(state, scale * weight, value)
    return state


def _finite(nodes: Sequence[Node]) -> list[Node]:
    """Return the first node, and those of the others that a polynomial can go through beside it."""
    rest = nodes[1:] if math.isfinite(nodes[0][0]) else []
    return [nodes[0], *(node for node in rest if math.isfinite(node[0]))]


def noise_std(form: str, t: NoiseLevel, s: NoiseLevel, tau: float) -> float:
    """Return the standard deviation of the noise of a step, σ_s √(1 − e^{−2τ²h}) or τ σ_s √(e^{2h} − 1)."""
    h = half_log_snr(s) - half_log_snr(t)
    sigma = cast(float, s.sigma)
    if form == "x0":
        return sigma * math.sqrt(-math.expm1(-2.0 * tau**2 * h))
    return tau * sigma * math.sqrt(math.expm1(2.0 * h))


def stages(denoiser: AbstractDenoiser, t: NoiseLevel, s: NoiseLevel, count: int) -> list[NoiseLevel]:
    """Return the levels that cut a step into ``count`` equal parts in log SNR, at times that the model knows."""
    first, last = cast(float, t.log_snr), cast(float, s.log_snr)
    if count < 2:
        return []
    between = torch.linspace(first, last, count + 1, dtype=torch.float64)[1:-1]
    times = denoiser.round_t(denoiser.sde.time_of_log_snr(between))
    return [level for level in denoiser.sde.levels(times) if last > cast(float, level.log_snr) > first]


def single_step(
    denoiser: AbstractDenoiser,
    form: str,
    x: Tensor,
    t: NoiseLevel,
    s: NoiseLevel,
    value: Tensor,
    between: Sequence[NoiseLevel],
) -> Tensor:
    """Take a Runge-Kutta step: order 2 with one stage, 3 with two at thirds, an evaluation each.

    Args:
        value: the prediction at ``t``, in the given form.
        between: the levels of the stages.
    """
    nodes = [(half_log_snr(t), value)]
    for stage in between:
        inner = advance(form, x, t, stage, nodes)
        nodes.append((half_log_snr(stage), denoiser(inner, stage).view(form)))
    return advance(form, x, t, s, nodes)
