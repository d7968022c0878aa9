"""The reverse SDE by torchsde's solvers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.base import SAMPLERS, Path, Sampler, report
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require, require_int
from sde_diffusion.reverse import TorchSDEReverse
from sde_diffusion.types import Callback, NoiseFn


@dataclass(frozen=True)
class Scheme:
    """One of torchsde's schemes: the calculus it is written for, its weak order for additive noise, its evaluations."""

    sde_type: str
    order: float
    nfe_per_step: int


# With additive noise the two calculi agree. The orders are measured by the tests, not taken from torchsde, which
# declares the lower ones of multiplicative noise. Its reversible Heun is not offered: on a mixture it is unstable, with
# nearly all samples far from every mode at 80 steps.
TORCHSDE_METHODS = {
    "euler": Scheme("ito", 1, 1),
    "milstein": Scheme("ito", 1, 1),
    "srk": Scheme("ito", 2, 2),
    "midpoint": Scheme("stratonovich", 2, 2),
    "heun": Scheme("stratonovich", 2, 2),
    "euler_heun": Scheme("stratonovich", 1, 1),
}


@SAMPLERS.register("torchsde")
@dataclass(frozen=True, kw_only=True)
class TorchSDE(Sampler):
    """``torchsde.sdeint`` with equal steps in t.

    torchsde asks the sampler's own noise for its increments, one stream or one Brownian path a sample
    (:class:`~sde_diffusion.BrownianPath`): its own interval has one generator a batch, so that a sample would depend on
    its neighbours.

    Args:
        num_steps: steps ≥ 1, the denoising step included.
        method: "euler", "milstein", "srk", "midpoint", "heun" or "euler_heun".

    References:
        X. Li et al., "Scalable Gradients for Stochastic Differential Equations", 2020, arXiv:2001.01328; A.
        Rößler 2010 (srk).
    """

    stochastic = True
    reference = "Li et al. 2020, arXiv:2001.01328"

    num_steps: int = 50
    method: str = "srk"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("num_steps", self.num_steps, 1)
        require(self.method in TORCHSDE_METHODS, "method", self.method, f"one of {', '.join(TORCHSDE_METHODS)}")

    @property
    def order(self) -> float | None:
        return TORCHSDE_METHODS[self.method].order

    @property
    def nfe_per_step(self) -> int | None:
        return TORCHSDE_METHODS[self.method].nfe_per_step

    def integrate(
        self, denoiser: AbstractDenoiser, x: Tensor, noise: NoiseFn, callback: Callback | None = None
    ) -> Path:
        start, stop = self.start_time(denoiser), self.stop_time(denoiser.sde)
        num_steps = self.num_steps - 1 if self.denoise else self.num_steps
        times = torch.linspace(start, stop, num_steps + 1, dtype=torch.float64)
        report(callback, 0, start, x)
        if num_steps > 0:
            x = self._solve(denoiser, x, noise, num_steps, start, stop)
            report(callback, num_steps, stop, x)
        return Path(x, times)

    def _solve(
        self, denoiser: AbstractDenoiser, x: Tensor, noise: NoiseFn, num_steps: int, start: float, stop: float
    ) -> Tensor:
        import torchsde

        class Increments(torchsde.BaseBrownian):  # type: ignore[misc]
            """Increments W and space-time integrals U over the steps of the clock, from the sampler's noise.

            Over an interval of length h: W = √h z₁ and U = ∫ (W_r − W_a) dr = h (W/2 + √(h/12) z₂), where z₁ belongs
            to the interval and z₂ is fresh.
            """

            shape = (x.shape[0], x[0].numel())
            dtype, device = x.dtype, x.device
            levy_area_approximation = "space-time"

            def __repr__(self) -> str:
                return "Increments()"

            def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
                t, s, h = reverse.level(ta), reverse.level(tb), float(tb - ta)
                w = noise(x, t, s).reshape(self.shape) * h**0.5
                if not return_U:
                    return w
                z = noise(x, t, t).reshape(self.shape)
                return w, h * (0.5 * w + z * (h / 12.0) ** 0.5)

        calculus = TORCHSDE_METHODS[self.method].sde_type
        reverse = TorchSDEReverse(denoiser, tuple(x.shape), num_steps, start, stop, calculus)
        clock = torch.tensor([0.0, float(num_steps)], dtype=torch.float64)
        flat = x.reshape(x.shape[0], -1)
        end: Tensor = torchsde.sdeint(reverse, flat, clock, bm=Increments(), method=self.method, dt=1.0)[-1]
        return end.reshape(x.shape)
