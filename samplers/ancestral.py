"""Ancestral sampling: the chain of reverse conditionals of DDPM, on any SDE and any grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import add_scaled_, sqrt
from sde_diffusion.reverse import posterior_coefficients, require_variance, reverse_variance
from sde_diffusion.types import NoiseFn


@SAMPLERS.register("ancestral")
@dataclass(frozen=True, kw_only=True)
class Ancestral(GridSampler[None]):
    """Draw x_s from the forward posterior q(x_s | x_t, x₀) with x₀ replaced by the prediction.

    x_s = (α_{t|s} σ_s²/σ_t²) x_t + (α_s σ²_{t|s}/σ_t²) x₀ + √v z,  β̃ = σ²_{t|s} σ_s²/σ_t²,  β = σ²_{t|s}.

    Args:
        variance: "posterior" (v = β̃, exact for a point mass), "beta" (v = β, exact for N(0, I) data on a VP SDE), a
            number in [0, 1]: the weight of log β against log β̃, or "predicted": what the prediction tells of it.

    References:
        Ho et al. 2020, arXiv:2006.11239, Eqs. 6 and 7 and Section 3.2; interpolation: Nichol & Dhariwal 2021,
        arXiv:2102.09672, Eq. 15.
    """

    order = 1
    from_pure_noise = True
    stochastic = True
    nfe_per_step = 1
    reference = "Ho et al. 2020, arXiv:2006.11239, Eq. 7"

    variance: str | float = "posterior"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_variance(self.variance)

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
    ) -> tuple[Tensor, None]:
        p = denoiser(x, t)
        of_x, of_x0, _ = posterior_coefficients(t, s)
        std = sqrt(reverse_variance(p, t, s, self.variance))
        return add_scaled_(p.combine(x=of_x, x0=of_x0), std, noise(x, t, s)), None
