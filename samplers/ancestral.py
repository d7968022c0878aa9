"""Ancestral sampling: the chain of reverse conditionals of DDPM, on any SDE and any grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS, LinearSampler
from sde_diffusion.reverse import posterior_coefficients, reverse_variance, variance_weight
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
        variance_weight(self.variance)

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_x, of_x0, _ = posterior_coefficients(sde, t, s)
        return of_x, of_x0, reverse_variance(sde, t, s, self.variance).sqrt()
