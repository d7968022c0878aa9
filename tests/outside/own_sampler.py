"""A sampler of one's own with memory, as its paper writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

import samplers
from sde_diffusion import AbstractDenoiser
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import expm1
from sde_diffusion.types import NoiseFn


@dataclass(frozen=True)
class Last:
    """The prediction of the step before, and that step's length in λ = log(α/σ)."""

    x0: Tensor
    h: float


@samplers.register("own_sampler")
@dataclass(frozen=True, kw_only=True)
class TwoStep(samplers.GridSampler[Last | None]):
    """DPM-Solver++(2M): Lu et al. 2022, arXiv:2211.01095, Algorithm 2."""

    order, stochastic, nfe_per_step = 2, False, 1
    reference = "Lu et al. 2022, arXiv:2211.01095, Alg. 2"
    grid: str = "log_snr"

    def init(self, denoiser: AbstractDenoiser, x: Tensor, levels: Sequence[NoiseLevel]) -> Last | None:
        return None

    def step(
        self,
        denoiser: AbstractDenoiser,
        x: Tensor,
        t: NoiseLevel,
        s: NoiseLevel,
        state: Last | None,
        noise: NoiseFn,
    ) -> tuple[Tensor, Last]:
        x0, h = denoiser(x, t).x0, 0.5 * (s.log_snr - t.log_snr)
        d = x0 if state is None else x0 + 0.5 * h / state.h * (x0 - state.x0)
        return s.sigma / t.sigma * x - s.alpha * expm1(-h) * d, Last(x0, h)
