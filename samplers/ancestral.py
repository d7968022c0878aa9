"""Ancestral sampling: the chain of reverse conditionals of DDPM, on any SDE and any grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS, LinearSampler
from sde_diffusion.errors import InputError
from sde_diffusion.sdes import SDE


@SAMPLERS.register("ancestral")
@dataclass(frozen=True, kw_only=True)
class Ancestral(LinearSampler):
    """Draw x_s from the forward posterior q(x_s | x_t, x₀) with x₀ replaced by the prediction.

    x_s = (α_{t|s} σ_s²/σ_t²) x_t + (α_s σ²_{t|s}/σ_t²) x₀ + √v z,  β̃ = σ²_{t|s} σ_s²/σ_t²,  β = σ²_{t|s}.

    Args:
        variance: "posterior" (v = β̃, exact for a point mass), "beta" (v = β, exact for N(0, I) data on a VP SDE), or a
            number in [0, 1]: the weight of log β against log β̃.

    References:
        Ho et al. 2020, arXiv:2006.11239, Eqs. 6 and 7 and Section 3.2; interpolation: Nichol & Dhariwal 2021,
        arXiv:2102.09672, Eq. 15.
    """

    order = 1
    stochastic = True
    reference = "Ho et al. 2020, arXiv:2006.11239, Eq. 7"
    view = "x0"

    variance: str | float = "posterior"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self._beta_weight() <= 1.0:
            raise InputError(f"variance={self.variance!r}: expected 'posterior', 'beta' or a number in [0, 1]")

    def _beta_weight(self) -> float:
        """Weight of log β in the log variance: 0 for the posterior variance, 1 for β, NaN for a bad option."""
        try:
            return float({"posterior": 0.0, "beta": 1.0}.get(str(self.variance), self.variance))
        except (TypeError, ValueError):
            return math.nan

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha_ts, beta = sde.transition(t, s)
        ratio = (sde.sigma(s) / sde.sigma(t)) ** 2
        weight = self._beta_weight()
        variance = beta * ratio ** (1.0 - weight)  # β^w β̃^{1−w} with β̃ = β ratio
        return alpha_ts * ratio, sde.alpha(s) * beta / sde.sigma(t) ** 2, variance.sqrt()
