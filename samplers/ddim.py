"""DDIM: deterministic to ancestral sampling on one dial."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require_float
from sde_diffusion.levels import NoiseLevel, transition
from sde_diffusion.ops import add_scaled_, sqrt
from sde_diffusion.types import NoiseFn


@SAMPLERS.register("ddim")
@dataclass(frozen=True, kw_only=True)
class DDIM(GridSampler[None]):
    """x_s = α_s x₀ + √(σ_s² − η² β̃) ε + η √β̃ z, with β̃ = σ²_{t|s} σ_s²/σ_t².

    η = 0 is Euler's method for d(x/α)/d(σ/α) = ε, exact in one step for a point mass; η = 1 is ancestral sampling.

    Args:
        eta: η in [0, 1].

    References:
        J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", 2021, arXiv:2010.02502, Eqs. 12, 14 and 16.
    """

    order = 1
    from_pure_noise = True
    nfe_per_step = 1
    reference = "Song, Meng & Ermon 2021, arXiv:2010.02502, Eq. 12"

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_float("eta", self.eta, 0.0, 1.0)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
    ) -> tuple[Tensor, None]:
        p = denoiser(x, t)
        if not self.eta:
            return p.combine(x0=s.alpha, eps=s.sigma), None
        _, beta = transition(t, s)
        share = self.eta**2 * beta / t.sigma**2  # η² β̃ = share · σ_s²
        mean = p.combine(x0=s.alpha, eps=s.sigma * sqrt(1.0 - share))
        return add_scaled_(mean, s.sigma * sqrt(share), noise(x, t, s)), None
