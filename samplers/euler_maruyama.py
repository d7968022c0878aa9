"""Euler-Maruyama on the reverse SDE."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import add_scaled_, sqrt
from sde_diffusion.types import NoiseFn


@SAMPLERS.register("euler_maruyama")
@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(GridSampler[None]):
    """x_s = x_t − [f x_t − g² score] h + g √h z with h = t − s and f, g at t.

    References:
        Song et al. 2021, arXiv:2011.13456, Eq. 6; P. Kloeden, E. Platen, 1992.
    """

    order = 1
    stochastic = True
    nfe_per_step = 1
    reference = "Song et al. 2021, arXiv:2011.13456, Eq. 6"

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
    ) -> tuple[Tensor, None]:
        h = t.t - s.t
        mean = denoiser(x, t).combine(x=1.0 - t.f * h, score=t.g**2 * h)
        return add_scaled_(mean, t.g * sqrt(h), noise(x, t, s)), None
