"""DDIM: deterministic to ancestral sampling on one dial."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS, LinearSampler
from sde_diffusion.errors import require_float
from sde_diffusion.sdes import SDE


@SAMPLERS.register("ddim")
@dataclass(frozen=True, kw_only=True)
class DDIM(LinearSampler):
    """x_s = α_s x₀ + √(σ_s² − η² β̃) ε + η √β̃ z, with β̃ = σ²_{t|s} σ_s²/σ_t².

    η = 0 is Euler's method for d(x/α)/d(σ/α) = ε, exact in one step for a point mass; η = 1 is ancestral sampling.

    Args:
        eta: η in [0, 1].

    References:
        J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", 2021, arXiv:2010.02502, Eqs. 12, 14 and 16.
    """

    order = 1
    reference = "Song, Meng & Ermon 2021, arXiv:2010.02502, Eq. 12"
    view = "x0"

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_float("eta", self.eta, 0.0, 1.0)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma_t, sigma_s = sde.sigma(t), sde.sigma(s)
        variance = self.eta**2 * sde.transition(t, s)[1] * (sigma_s / sigma_t) ** 2
        a = (sigma_s**2 - variance).clamp_min(0.0).sqrt() / sigma_t  # of ε = (x − α_t x₀)/σ_t
        return a, sde.alpha(s) - a * sde.alpha(t), variance.sqrt()
