"""The probability-flow ODE with adaptive steps, chosen by every sample for itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.base import SAMPLERS, Path, Sampler, report
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.ode import ODE_METHODS, solve_ode
from sde_diffusion.ops import expand
from sde_diffusion.reverse import AngularFlow
from sde_diffusion.types import Callback, NoiseFn


@SAMPLERS.register("probability_flow")
@dataclass(frozen=True, kw_only=True)
class ProbabilityFlow(Sampler):
    """dx/dt = f x − ½ g² score by an embedded Runge-Kutta pair in the angle atan(σ/α), on the denoiser's device.

    Args:
        rtol, atol: tolerances of a sample's root mean square error a step, in units of the state's size √(α² + σ²).
        method: "dopri5" or "bosh3".
        max_steps: step attempts after which a sample is given up.

    References:
        Song et al. 2021, arXiv:2011.13456, Eq. 13 and Appendix D.4 (there RK45 with 1e-5 on the whole batch).
    """

    order = None
    from_pure_noise = True
    stochastic = False
    nfe_per_step = None
    reference = "Song et al. 2021, arXiv:2011.13456, Eq. 13"

    rtol: float = 1e-3
    atol: float = 1e-3
    method: str = "dopri5"
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_float("rtol", self.rtol, 0.0, open_low=True)
        require_float("atol", self.atol, 0.0, open_low=True)
        require(self.method in ODE_METHODS, "method", self.method, f"one of {', '.join(ODE_METHODS)}")
        require_int("max_steps", self.max_steps, 1)

    def integrate(
        self, denoiser: AbstractDenoiser, x: Tensor, noise: NoiseFn, callback: Callback | None = None
    ) -> Path:
        times = torch.tensor([self.start_time(denoiser), self.stop_time(denoiser.sde)], dtype=torch.float64)
        flow = AngularFlow(denoiser)
        radius, angle = flow.radius(times), flow.angle(times)
        report(callback, 0, float(times[0]), x)

        def seen(step: int, phi: Tensor, w: Tensor) -> None:
            t = flow.time(phi)
            report(callback, step, t, w * expand(flow.radius(t), w))

        solution = solve_ode(
            flow,
            x / radius[0],
            angle[0],
            angle[1],
            rtol=self.rtol,
            atol=self.atol,
            method=self.method,
            max_steps=self.max_steps,
            on_step=None if callback is None else seen,
        )
        end = solution.y * radius[1]
        return Path(end, times, needed=solution.nfe, asked=solution.evaluations, reasons=solution.reasons)
