"""Denoising score matching: the loss of each example at a random time.

Vincent's identity makes learning possible: with x_t = α x₀ + σ ε,

    E‖s(x_t) − ∇log p_t(x_t)‖²  and  E‖s(x_t) + ε/σ‖²

differ by a constant only, so a network fitted to the noise is fitted to the score of a density nobody knows. DDPM's
L_simple is this loss with weight σ² (a mean squared error in ε); every weighting is written as the factor w(t) of

    loss = w(t) · mean over components of (ε̂ − ε)²

and applied in the network's own prediction, where the error is that of ε times a known factor. The four predictions
have therefore the same weighted loss.

References:
    P. Vincent, 2011, Neural Computation 23(7) (the identity). Ho et al. 2020, arXiv:2006.11239, Eqs. 12 and 14. Song et
    al. 2021, arXiv:2011.13456, Eq. 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.noise import NoiseStream
from sde_diffusion.objectives.base import OBJECTIVES, Objective, as_denoiser
from sde_diffusion.objectives.times import TIMES, TimeDistribution
from sde_diffusion.objectives.weightings import WEIGHTINGS, Weighting
from sde_diffusion.ops import mean_per_example
from sde_diffusion.predictions import VIEWS
from sde_diffusion.registry import Registry
from sde_diffusion.sdes import SDE
from sde_diffusion.timesteps import require_start


@OBJECTIVES.register("denoising")
class DenoisingScoreMatching(Objective):
    """The weighted squared error of the noise at a time of each example; its mean estimates that over ``times``.

    A part is given by its name; by a mapping of "name" and its own options, ``{"name": "edm", "sigma_data": 1.0}``; or
    as an object. In the objective it is the object.

    Args:
        times: where the times fall.
        weighting: w(t).
    """

    parts: ClassVar[Mapping[str, Registry[Any]]] = {"times": TIMES, "weighting": WEIGHTINGS}

    def __init__(
        self,
        times: str | Mapping[str, Any] | TimeDistribution = "stratified",
        weighting: str | Mapping[str, Any] | Weighting = "edm",
    ) -> None:
        self.times, self.weighting = TIMES.part(times), WEIGHTINGS.part(weighting)
        self._started: SDE | None = None

    def __call__(self, model: nn.Module, x: Tensor, noise: NoiseStream, **conditions: Any) -> Tensor:
        denoiser = as_denoiser(model)
        if denoiser.sde is not self._started:  # once: it takes as long as all else here
            require_start(denoiser.sde, self.times.t_min)
            self._started = denoiser.sde
        t, factor = self.times(denoiser.sde, noise.uniform(1, x.device)[:, 0])
        return factor.to(x) * self.at(denoiser, x, t, noise(x), **conditions)

    def at(self, denoiser: AbstractDenoiser, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return w(t) mean (ε̂ − ε)² of each example, (B,), at given times (B,) and noise (B, *).

        The view w = a x₀ + b ε that the denoiser gives is compared with its target: its error is that of ε times Δ/α,
        Δ = α b − σ a (:mod:`sde_diffusion.predictions`). The factor of its square is finite, also where α reaches 0 and
        w(t) infinity, where it is that of the SDE's ``t_max``.
        """
        level = denoiser.sde.at(t)
        here = level.like(x0)
        prediction = denoiser(here.alpha * x0 + here.sigma * eps, level, **conditions)
        name, found = next(iter(prediction.given.items()))
        a, b = VIEWS[name](here)
        error = found - (a * x0 + b * eps)
        last = t.clamp_max(denoiser.sde.t_max)
        near = here if denoiser.sde.t_max == denoiser.sde.T else denoiser.sde.at(last).like(x0)
        a, b = VIEWS[name](near)
        factor = near.alpha / (near.alpha * b - near.sigma * a)
        return self.weighting(denoiser.sde, last).to(x0) * mean_per_example((factor * error).square())
