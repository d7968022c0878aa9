"""Heun's second-order method on the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import add_scaled, add_scaled_
from sde_diffusion.types import NoiseFn


def trapezoid(denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """Take ``x`` (B, *) from level ``t`` to ``s``: x_s = (α_s/α_t) x_t + α_s (ρ_s − ρ_t) ½ (ε_t + ε_s)."""
    h = s.alpha * (s.ratio - t.ratio)
    scaled = s.alpha / t.alpha * x
    eps_t = denoiser(x, t).eps
    eps_s = denoiser(add_scaled(scaled, h, eps_t), s).eps
    return add_scaled_(add_scaled_(scaled, 0.5 * h, eps_t), 0.5 * h, eps_s)


@SAMPLERS.register("heun")
@dataclass(frozen=True, kw_only=True)
class Heun(GridSampler[None]):
    """The trapezoidal rule for d(x/α)/d(σ/α) = ε: two evaluations a step, order 2.

    With ρ = σ/α: x_s = (α_s/α_t) x_t + α_s (ρ_s − ρ_t) ½ (ε_t + ε_s), where ε_s is taken at the Euler step's end. In
    these variables the linear part of the ODE is solved exactly, on every SDE. With ``grid="karras"`` on a VE SDE of σ
    from 0.002 to 80 it is the authors' sampler; on the VP SDE, whose σ/α reaches 157, log SNR did better.

    References:
        Karras et al. 2022, arXiv:2206.00364, Algorithm 1 (18 steps with ``denoise`` are its 35 evaluations).
    """

    order = 2
    stochastic = False
    nfe_per_step = 2
    reference = "Karras et al. 2022, arXiv:2206.00364, Alg. 1"

    grid: str = "log_snr"

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
    ) -> tuple[Tensor, None]:
        return trapezoid(denoiser, x, t, s), None
