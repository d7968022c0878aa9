"""An adaptive Runge-Kutta solver whose every sample has its own step size, its own error control and its own count.

In a solver that treats a batch as one system one hard image makes all others wait and changes their result. Here a
sample's solution and its number of evaluations are the same whatever its neighbours are.

torchode does the same and was considered; this is written here because diffusion needs a float64 clock beside a float32
state (1e-5 ≤ t ≤ 1), a loop that can be shown to contain exactly one host read a step, and the counts of each sample.
The tableaux are SciPy's.

References:
    E. Hairer, S. Nørsett, G. Wanner, "Solving Ordinary Differential Equations I", 1993, Chapter II.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion import ops
from sde_diffusion.errors import require, require_float, require_int

ODE_METHODS = {"dopri5": "RK45", "bosh3": "RK23"}
"""Method names and the SciPy classes that hold their tableaux; both reuse the last stage as the next first one."""

FAILURES = ("", "its step size underflowed: the slope is not finite or jumps", "it needs more steps than max_steps")
"""Why a sample's solve failed, by the code in :attr:`ODESolution.failure`."""


@dataclass(frozen=True)
class ODESolution:
    """End state and counts of one solve.

    Attributes:
        y: state at the end time, shape (B, *); NaN for a sample whose solve failed.
        nfe: evaluations that each sample needed, int64, (B,).
        rejected: steps that each sample took back, int64, (B,).
        failure: 0, or the number of the reason in ``FAILURES``, int64, (B,).
        evaluations: calls of ``f`` for the batch.
    """

    y: Tensor
    nfe: Tensor
    rejected: Tensor
    failure: Tensor
    evaluations: int

    def reasons(self) -> dict[int, str]:
        """Return why samples failed, by their place in the batch; empty if none did."""
        return {i: FAILURES[code] for i, code in enumerate(self.failure.tolist()) if code}


def _norm(a: Tensor, scale: Tensor) -> Tensor:
    return ops.mean_per_example((a / scale).square()).sqrt()


def solve_ode(
    f: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    max_steps: int = 10_000,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> ODESolution:
    """Solve dy/dt = f(t, y) from ``t0`` to ``t1``, each sample on its own.

    Args:
        f: called with times (B,) and states (B, *); returns (B, *).
        y: state at ``t0``, shape (B, *).
        t0, t1: start and end, 0-dimensional float64 on the CPU, in either order.
        rtol, atol: a step is accepted if the root mean square over a sample of error/(atol + rtol·|y|) is at most 1.
        method: "dopri5" (order 5) or "bosh3" (order 3).
        max_steps: step attempts after which a sample is given up; the others are finished.
        on_step: called with the attempt's number, the times (B,) and the states (B, *).

    Raises:
        InputError: on a bad tolerance or method.
    """
    require_float("rtol", rtol, 0.0, open_low=True)
    require_float("atol", atol, 0.0, open_low=True)
    require_int("max_steps", max_steps, 1)
    require(method in ODE_METHODS, "method", method, f"one of {', '.join(ODE_METHODS)}")
    import scipy.integrate  # 0.2 s, only where it is used

    tableau = getattr(scipy.integrate, ODE_METHODS[method])
    stages, nodes = tableau.A.tolist(), tableau.C.tolist()
    weights, errors = tableau.B.tolist(), tableau.E.tolist()
    exponent = -1.0 / (tableau.error_estimator_order + 1)

    def combine(base: Tensor, ks: list[Tensor], factors: list[float], h: Tensor) -> Tensor:
        total = torch.zeros_like(base)
        for k, factor in zip(ks, factors, strict=False):
            if factor:
                total = total.add(k, alpha=factor)
        return torch.addcmul(base, total, ops.expand(h, base))

    clock = ops.clock_dtype(y.device)
    direction = (t1 - t0).sign()
    t = torch.ones(y.shape[0], dtype=clock, device=y.device) * t0
    end = torch.ones_like(t) * t1
    smallest = 16.0 * torch.finfo(clock).eps * torch.maximum(t0.abs(), t1.abs())

    # First step: Hairer, Nørsett, Wanner 1993, Section II.4.
    k = f(t, y)
    scale = atol + rtol * y.abs()
    d0, d1 = _norm(y, scale), _norm(k, scale)
    guess = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1).to(clock)
    guess = torch.minimum(guess, (end - t).abs())
    d2 = _norm(f(t + direction * guess, combine(y, [k], [1.0], direction * guess)) - k, scale).to(clock) / guess
    slope = torch.maximum(d1.to(clock), d2)
    size = torch.where(slope <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / slope) ** -exponent)
    size = torch.minimum(100.0 * guess, size)

    done = t == end
    nfe = torch.full_like(t, 2, dtype=torch.int64)
    rejected = torch.zeros_like(nfe)
    failure = torch.zeros_like(nfe)
    evaluations = 2
    just_rejected = torch.zeros_like(done)
    for attempt in range(1, max_steps + 1):
        h = torch.minimum(size, (end - t).abs())
        last = h >= (end - t).abs()
        signed = torch.where(done, torch.zeros_like(h), direction * h)
        ks = [k]
        for row, node in zip(stages[1:], nodes[1:], strict=True):
            ks.append(f(t + node * signed, combine(y, ks, row, signed)))
        y_new = combine(y, ks, weights, signed)
        t_new = torch.where(last | done, end, t + signed)
        ks.append(f(t_new, y_new))
        evaluations += len(ks) - 1
        scale = atol + rtol * torch.maximum(y.abs(), y_new.abs())
        error = _norm(combine(torch.zeros_like(y), ks, errors, signed), scale).to(clock)

        accepted = (error <= 1.0) & ~done  # a NaN error rejects
        retry = ~accepted & ~done
        nfe += torch.where(done, 0, len(ks) - 1)
        rejected += retry
        factor = (0.9 * error**exponent).nan_to_num(0.2, posinf=10.0).clamp(0.2, 10.0)
        factor = torch.where(just_rejected | retry, factor.clamp(max=1.0), factor)
        size = torch.where(done, size, h * factor)
        just_rejected = retry
        keep = ops.column(accepted, y)
        t = torch.where(accepted, t_new, t)
        y, k = torch.where(keep, y_new, y), torch.where(keep, ks[-1], k)
        finished = t == end
        stuck = retry & ~(size >= smallest)  # NaN is stuck too
        failure = torch.where(stuck, 1, failure)
        if attempt == max_steps:
            failure = torch.where(~(done | finished | stuck), 2, failure)
        y = torch.where(ops.column(failure > 0, y), torch.full_like(y, torch.nan), y)
        done = done | finished | stuck
        if on_step is not None:
            on_step(attempt, t, y)
        if attempt == max_steps or ops.host_bool(done.all()):
            break
    return ODESolution(y, nfe, rejected, failure, evaluations)
