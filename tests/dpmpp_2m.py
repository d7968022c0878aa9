"""DPM-Solver++ 2M as its paper writes it: a sampler with a memory, in one file that belongs to nobody's tree.

References:
    C. Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import samplers
from sde_diffusion import AbstractDenoiser, NoiseLevel
from sde_diffusion.ops import Number, combine, expm1
from sde_diffusion.types import NoiseFn


@dataclass(frozen=True)
class Memory:
    """The prediction and the step, in λ = log(α/σ), before this one; at the start there is none."""

    x0: Tensor | None
    h: Number


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(samplers.GridSampler[Memory]):
    """x_s = (σ_s/σ_t) x_t − α_s (e^{−h} − 1) D with D from two predictions of x₀; the first step takes one."""

    order, stochastic, nfe_per_step = 2, False, 1
    reference = "Lu et al. 2022, arXiv:2211.01095, Alg. 2"

    grid: str = "log_snr"

    def init(self, denoiser: AbstractDenoiser, x: Tensor, levels: Sequence[NoiseLevel]) -> Memory:
        return Memory(None, 0.0)

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: Memory, noise: NoiseFn
    ) -> tuple[Tensor, Memory]:
        x0 = denoiser(x, t).x0
        h = 0.5 * (s.log_snr - t.log_snr)
        # D = (1 + 1/(2r)) x0 − 1/(2r) x0 of before, with r = h of before / h
        d = x0 if state.x0 is None else torch.lerp(state.x0, x0, 1.0 + 0.5 * h / state.h)
        return combine(s.sigma / t.sigma, x, -s.alpha * expm1(-h), d), Memory(x0, h)
