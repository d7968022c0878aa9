"""DPM-Solver++ 2M as its paper writes it: a sampler with a memory, in one file that belongs to nobody's tree.

References:
    C. Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import samplers
from sde_diffusion import AbstractDenoiser, NoiseLevel, Prediction
from sde_diffusion.ops import expm1
from sde_diffusion.types import NoiseFn


@dataclass(frozen=True)
class Memory:
    """The prediction and the step, in λ = log(α/σ), before this one."""

    p: Prediction
    h: float


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(samplers.GridSampler[Memory | None]):
    """x_s = (σ_s/σ_t) x_t − α_s (e^{−h} − 1) D with D from two predictions of x₀; the first step takes one."""

    order, stochastic, nfe_per_step = 2, False, 1
    reference = "Lu et al. 2022, arXiv:2211.01095, Alg. 2"

    grid: str = "log_snr"

    def step(
        self,
        denoiser: AbstractDenoiser,
        x: Tensor,
        t: NoiseLevel,
        s: NoiseLevel,
        state: Memory | None,
        noise: NoiseFn,
    ) -> tuple[Tensor, Memory]:
        p, h = denoiser(x, t), 0.5 * (s.log_snr - t.log_snr)
        of_d = -s.alpha * expm1(-h)
        w = 0.0 if state is None else 0.5 * h / state.h  # D = (1 + w) x0 − w x0 of before, w = 1/(2r)
        x = p.combine(x=s.sigma / t.sigma, x0=of_d * (1.0 + w))
        if state is not None:
            x = state.p.combine(x0=-of_d * w, onto=x)
        return x, Memory(p, h)
