"""Classifier-free guidance: away from what the network predicts without the condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoisers import AbstractDenoiser, Wrapper
from sde_diffusion.errors import require, require_float
from sde_diffusion.guidance.base import GUIDANCE
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, like
from sde_diffusion.predictions import Prediction


@GUIDANCE.register("classifier_free")
class ClassifierFree(Wrapper):
    """x̂₀ = x̂₀(∅) + scale · (x̂₀(c) − x̂₀(∅)), within an interval of noise levels; the conditional x̂₀(c) outside of it.

    Scale 0 is the unconditional prediction and 1 the conditional one; both take one evaluation, other scales two. (The
    paper's weight w is scale − 1.)

    Args:
        denoiser: of a network trained with and without the condition.
        scale: any number.
        interval: noise levels σ/α at which to guide, from the first to the second.
        unconditional: conditions of the unconditional branch; by default there are none.

    References:
        J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598, Eq. 6. Interval:
        T. Kynkäänniemi et al., 2024, arXiv:2404.07724, Eq. 5.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        scale: float = 2.0,
        interval: tuple[float, float] = (0.0, math.inf),
        unconditional: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(denoiser)
        require_float("scale", scale)
        low, high = interval
        require(0.0 <= low < high, "interval", interval, "two noise levels σ/α, 0 ≤ low < high")
        self.scale, self.interval, self.unconditional = scale, interval, dict(unconditional or {})

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        level = self.level(t)
        scale = like(self._scale_at(level), x)
        if isinstance(scale, float) and scale == 0.0:
            return self.denoiser(x, level, **self.unconditional)
        conditional = self.denoiser(x, level, **conditions)
        if isinstance(scale, float) and scale == 1.0:
            return conditional
        return self.denoiser(x, level, **self.unconditional).lerp(conditional, scale)

    def _scale_at(self, level: NoiseLevel) -> Number:
        """Return the scale at a level: a number, or one of each sample, (B,)."""
        low, high = self.interval
        if self.scale == 1.0 or self.interval == (0.0, math.inf):
            return float(self.scale)
        ratio = level.ratio
        if not isinstance(ratio, Tensor):
            return float(self.scale) if low <= ratio <= high else 1.0
        return torch.where((ratio >= low) & (ratio <= high), self.scale, 1.0)
