"""The reverse diffusion sampler: the reverse SDE discretised as the forward one is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS, LinearSampler
from sde_diffusion.sdes import SDE


@SAMPLERS.register("reverse_diffusion")
@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(LinearSampler):
    """x_s = (2 − α_{t|s}) x_t + σ²_{t|s} score + σ_{t|s} z.

    The forward step x_t = x_s + (α_{t|s} − 1) x_s + σ_{t|s} z is exact for every linear SDE; its drift and noise are
    used backwards. On DDPM's own grid α_{t|s} = √(1 − β) and σ²_{t|s} = β.

    References:
        Song et al. 2021, arXiv:2011.13456, Eq. 46 and Appendix E.
    """

    order = 1
    stochastic = True
    reference = "Song et al. 2021, arXiv:2011.13456, Eq. 46"
    view = "score"

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha_ts, variance = sde.transition(t, s)
        return 2.0 - alpha_ts, variance, variance.sqrt()
