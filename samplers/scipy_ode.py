"""The probability-flow ODE by SciPy's solvers: the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.base import SAMPLERS, Path, Sampler, report
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import InputError, require, require_float
from sde_diffusion.reverse import AngularFlow
from sde_diffusion.types import Callback, NoiseFn

SCIPY_METHODS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


@SAMPLERS.register("scipy")
@dataclass(frozen=True, kw_only=True)
class SciPyODE(Sampler):
    """``scipy.integrate.solve_ivp`` in float64 on the host, the whole batch as one system.

    It is the textbook method and the reference for the others. Because the batch is one system, a sample depends on its
    neighbours to the order of the tolerance; "probability_flow" has no such dependence.

    Args:
        method: any of ``solve_ivp``'s: "RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA" (the implicit ones build a
            Jacobian by differences: for small problems).
        rtol, atol: tolerances, passed on.

    References:
        Song et al. 2021, arXiv:2011.13456, Appendix D.4; P. Virtanen et al., "SciPy 1.0", 2020.
    """

    order = None
    from_pure_noise = True
    stochastic = False
    nfe_per_step = None
    host_bound = True
    reference = "Song et al. 2021, arXiv:2011.13456, App. D.4"

    method: str = "RK45"
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.method in SCIPY_METHODS, "method", self.method, f"one of {', '.join(SCIPY_METHODS)}")
        require_float("rtol", self.rtol, 0.0, open_low=True)
        require_float("atol", self.atol, 0.0, open_low=True)

    def integrate(
        self, denoiser: AbstractDenoiser, x: Tensor, noise: NoiseFn, callback: Callback | None = None
    ) -> Path:
        from scipy.integrate import solve_ivp

        times = torch.tensor([self.start_time(denoiser), self.stop_time(denoiser.sde)], dtype=torch.float64)
        flow = AngularFlow(denoiser)
        radius, angle = flow.radius(times), flow.angle(times)
        calls = 0

        def state(y: Any) -> Tensor:
            return torch.as_tensor(y, dtype=x.dtype).to(x.device).reshape(x.shape)

        def slope(phi: float, y: Any) -> Any:
            nonlocal calls
            now, w = torch.tensor(phi, dtype=torch.float64), state(y)
            if callback is not None:
                t = flow.time(now)
                report(callback, calls, float(t), w * flow.radius(t))
            calls += 1
            return flow(now, w).cpu().double().numpy().reshape(-1)  # in this order: not every device has float64

        y0 = (x / radius[0]).cpu().double().numpy().reshape(-1)
        solution = solve_ivp(slope, tuple(angle.tolist()), y0, method=self.method, rtol=self.rtol, atol=self.atol)
        if not solution.success or not np.isfinite(solution.y[:, -1]).all():
            reached = float(flow.time(torch.tensor(solution.t[-1])))
            raise InputError(f"method={self.method!r}: SciPy's solver gave up at t={reached:.6g}: {solution.message}")
        return Path(state(solution.y[:, -1]) * radius[1], times)
