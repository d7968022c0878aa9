"""DEIS: exponential Adams-Bashforth with the noise as a polynomial in time, on any SDE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from samplers.base import SAMPLERS
from samplers.exponential import Node, half_log_snr
from samplers.multistep import History, Multistep
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import add_scaled_

POINTS = 32
"""Of the quadrature of a step, exact to rounding up to a hundredfold change of σ/α."""


@cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Return points in (0, 1) and weights."""
    points, weights = np.polynomial.legendre.leggauss(POINTS)
    return torch.from_numpy((points + 1.0) / 2.0), torch.from_numpy(weights / 2.0)


@dataclass(frozen=True, eq=False)
class Steps(History):
    """Also the times and the weights of a quadrature of each step, (N, points), weights of ∫ · dρ in units of ρ_s."""

    times: Sequence[Sequence[float]] = ()
    measures: Sequence[Sequence[float]] = ()


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
        times = denoiser.sde.time_of_log_snr(2.0 * inner)
        measures = -(h * weights * torch.exp(place[1:] - inner))  # dρ = −ρ dλ
        return Steps(**vars(base), times=times.tolist(), measures=measures.tolist())

    def place(self, t: NoiseLevel) -> float:
        return float(t.t) if self.polynomial == "t" else half_log_snr(t)

    def advance(self, x: Tensor, t: NoiseLevel, s: NoiseLevel, nodes: Sequence[Node], state: History) -> Tensor:
        if not isinstance(state, Steps):
            return super().advance(x, t, s, nodes, state)
        i = len(state.times) + self.denoise - state.left
        new = x * (s.alpha / t.alpha)
        for j, (_, value) in enumerate(nodes):
            values = (_lagrange_at(time, nodes, j) for time in state.times[i])
            weight = math.fsum(m * v for m, v in zip(state.measures[i], values, strict=True))
            add_scaled_(new, s.sigma * weight, value)
        return new


def _lagrange_at(time: float, nodes: Sequence[Node], j: int) -> float:
    """Return ℓ_j(t)."""
    own = nodes[j][0]
    return math.prod((time - other) / (own - other) for i, (other, _) in enumerate(nodes) if i != j)
