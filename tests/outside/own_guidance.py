"""Guidance of one's own: every prediction pulled towards a point."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde_diffusion.denoisers import AbstractDenoiser, Wrapper
from sde_diffusion.errors import require_float
from sde_diffusion.guidance import GUIDANCE
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number
from sde_diffusion.predictions import Prediction


@GUIDANCE.register("own_guidance")
class Towards(Wrapper):
    """x̂₀ + strength · (point − x̂₀)."""

    def __init__(self, denoiser: AbstractDenoiser, point: float = 0.5, strength: float = 0.5) -> None:
        super().__init__(denoiser)
        require_float("strength", strength, 0.0, 1.0)
        self.point, self.strength = point, strength

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        p = self.denoiser(x, t, **conditions)
        return Prediction(p.x, p.level, {"x0": p.x0 + self.strength * (self.point - p.x0)})
