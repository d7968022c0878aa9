"""Euler-Maruyama on the reverse SDE."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.base import SAMPLERS, LinearSampler
from sde_diffusion.sdes import SDE


@SAMPLERS.register("euler_maruyama")
@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(LinearSampler):
    """x_s = x_t − [f x_t − g² score] h + g √h z with h = t − s and f, g at t.

    References:
        Song et al. 2021, arXiv:2011.13456, Eq. 6; P. Kloeden, E. Platen, 1992.
    """

    order = 1
    stochastic = True
    reference = "Song et al. 2021, arXiv:2011.13456, Eq. 6"
    view = "score"

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f, g = sde.coefficients(t)
        h = t - s
        return 1.0 - f * h, g**2 * h, g * h.sqrt()
