"""The reverse diffusion sampler: the reverse SDE discretised as the forward one is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.levels import NoiseLevel, transition
from sde_diffusion.ops import add_scaled_, sqrt
from sde_diffusion.types import NoiseFn


@SAMPLERS.register("reverse_diffusion")
@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(GridSampler[None]):
    """x_s = (2 − α_{t|s}) x_t + σ²_{t|s} score + σ_{t|s} z.

    The forward step x_t = x_s + (α_{t|s} − 1) x_s + σ_{t|s} z is exact for every linear SDE; its drift and noise are
    used backwards. On DDPM's own grid α_{t|s} = √(1 − β) and σ²_{t|s} = β.

    References:
        Song et al. 2021, arXiv:2011.13456, Eq. 46 and Appendix E.
    """

    order = 1
    stochastic = True
    nfe_per_step = 1
    reference = "Song et al. 2021, arXiv:2011.13456, Eq. 46"

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
    ) -> tuple[Tensor, None]:
        alpha_ts, beta = transition(t, s)
        mean = denoiser(x, t).combine(x=2.0 - alpha_ts, score=beta)
        return add_scaled_(mean, sqrt(beta), noise(x, t, s)), None
