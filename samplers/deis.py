"""DEIS: exponential Adams-Bashforth with the noise as a polynomial in time, on any SDE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from samplers.base import SAMPLERS
from samplers.exponential import Node, half_log_snr, interpolate, weigh
from samplers.multistep import History, Multistep
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require
from sde_diffusion.levels import NoiseLevel

POINTS = 32
"""Of the quadrature of a step, exact to rounding up to a hundredfold change of σ/α."""


@cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Return points in (0, 1) and weights."""
    points, weights = np.polynomial.legendre.leggauss(POINTS)
    return torch.from_numpy((points + 1.0) / 2.0), torch.from_numpy(weights / 2.0)


@dataclass(frozen=True, eq=False)
class Steps(History):
    """Also ∫ uᵏ dρ of each step for k < order, (N, order), in units of ρ_s: u is time in units of the step."""

    integrals: Sequence[Sequence[float]] = ()


@SAMPLERS.register("deis")
@dataclass(frozen=True, kw_only=True)
class DEIS(Multistep):
    """x_s = (α_s/α_t) x_t + α_s ∫ ε̂ dρ with ρ = σ/α and ε̂ the polynomial in t through the predictions (tAB-DEIS).

    Args:
        solver_order: predictions that a step is made of: 1, 2 or 3; that is one more than the paper's r.
        polynomial: "t", whose integrals are done by quadrature and hold on any SDE, or "log_rho", in log(σ/α).

    References:
        Q. Zhang, Y. Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023, arXiv:2204.13902, Eqs.
        14 and 15 and Section 3.2 (tAB), Table 1.
    """

    reference = "Zhang & Chen 2023, arXiv:2204.13902, Eq. 14"

    solver_order: int = 3
    polynomial: str = "t"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.polynomial in ("t", "log_rho"), "polynomial", self.polynomial, "'t' or 'log_rho'")

    @property
    def prediction(self) -> str:
        return "eps"

    def init(self, denoiser: AbstractDenoiser, x: Tensor, levels: Sequence[NoiseLevel]) -> History:
        base = super().init(denoiser, x, levels)
        if self.polynomial == "log_rho":
            return base
        points, weights = _gauss_legendre()
        place = torch.tensor([half_log_snr(level) for level in levels], dtype=torch.float64)[:, None]
        h = place.diff(dim=0)
        inner = place[:-1] + h * points
        t = torch.tensor([level.t for level in levels], dtype=torch.float64)[:, None]
        u = (denoiser.sde.time_of_log_snr(2.0 * inner) - t[:-1]) / t.diff(dim=0)
        measures = -(h * weights * torch.exp(place[1:] - inner))  # dρ = −ρ dλ
        powers = torch.stack([u**k for k in range(self.solver_order)])
        return Steps(**vars(base), integrals=(measures * powers).sum(dim=2).T.tolist())

    def place(self, t: NoiseLevel) -> float:
        return float(t.t) if self.polynomial == "t" else half_log_snr(t)

    def advance(self, x: Tensor, t: NoiseLevel, s: NoiseLevel, nodes: Sequence[Node], state: History) -> Tensor:
        if not isinstance(state, Steps):
            return super().advance(x, t, s, nodes, state)
        integrals = state.integrals[len(state.integrals) + self.denoise - state.left][: len(nodes)]
        places = [(place - nodes[0][0]) / (self.place(s) - nodes[0][0]) for place, _ in nodes]
        return weigh(x, s.alpha / t.alpha, s.sigma, interpolate(integrals, places), nodes)
