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


Slope = Callable[[Tensor, Tensor], Tensor]
"""``f(t, y)`` with times (B,) and states (B, *): dy/dt, (B, *)."""


def _norm(a: Tensor, scale: Tensor) -> Tensor:
    return ops.mean_per_example((a / scale).square()).sqrt()


class _Pair:
    """An embedded Runge-Kutta pair: a step, and an estimate of its error."""

    def __init__(self, method: str) -> None:
        import scipy.integrate  # 0.2 s, only where it is used

        tableau = getattr(scipy.integrate, ODE_METHODS[method])
        self._stages, self._nodes = tableau.A.tolist(), tableau.C.tolist()
        self._weights, self._errors = tableau.B.tolist(), tableau.E.tolist()
        self.exponent = -1.0 / (tableau.error_estimator_order + 1)
        self.evaluations = len(self._weights)

    def step(self, f: Slope, t: Tensor, y: Tensor, k: Tensor, h: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the state after a step ``h`` (B,) that ends at times ``end``, its slope there, and the error.

        Args:
            k: the slope at ``t``.
        """
        ks = [k]
        for row, node in zip(self._stages[1:], self._nodes[1:], strict=True):
            ks.append(f(t + node * h, _combine(y, ks, row, h)))
        y_new = _combine(y, ks, self._weights, h)
        ks.append(f(end, y_new))
        return y_new, ks[-1], _combine(torch.zeros_like(y), ks, self._errors, h)


def _combine(base: Tensor, ks: list[Tensor], factors: list[float], h: Tensor) -> Tensor:
    total = torch.zeros_like(base)
    for k, factor in zip(ks, factors, strict=False):
        if factor:
            total = total.add(k, alpha=factor)
    return torch.addcmul(base, total, ops.expand(h, base))


class _Solver:
    """The state of a solve: where each sample is, its next step's size, and whether it is done."""

    def __init__(self, f: Slope, y: Tensor, t0: Tensor, t1: Tensor, rtol: float, atol: float, method: str) -> None:
        self.f, self.y, self.rtol, self.atol = f, y, rtol, atol
        self.pair, self.clock = _Pair(method), ops.widest_float(y.device)
        self.direction = (t1 - t0).sign()
        self.t = torch.ones(y.shape[0], dtype=self.clock, device=y.device) * t0
        self.end = torch.ones_like(self.t) * t1
        self.smallest = 16.0 * torch.finfo(self.clock).eps * torch.maximum(t0.abs(), t1.abs())
        self.k = f(self.t, y)
        self.size = self._first_size()
        self.done = self.t == self.end
        self.nfe = torch.full_like(self.t, 2, dtype=torch.int64)
        self.rejected, self.failure = torch.zeros_like(self.nfe), torch.zeros_like(self.nfe)
        self.evaluations = 2
        self._just_rejected = torch.zeros_like(self.done)

    def _first_size(self) -> Tensor:
        """Hairer, Nørsett, Wanner 1993, Section II.4."""
        y, k, clock = self.y, self.k, self.clock
        scale = self.atol + self.rtol * y.abs()
        d0, d1 = _norm(y, scale), _norm(k, scale)
        guess = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1).to(clock)
        guess = torch.minimum(guess, (self.end - self.t).abs())
        ahead = self.direction * guess
        d2 = _norm(self.f(self.t + ahead, _combine(y, [k], [1.0], ahead)) - k, scale).to(clock) / guess
        slope = torch.maximum(d1.to(clock), d2)
        size = torch.where(slope <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / slope) ** -self.pair.exponent)
        return torch.minimum(100.0 * guess, size)

    def attempt(self, is_last: bool) -> None:
        """Try a step of every sample that is not done; give up those that are stuck, or if this is the last, all."""
        t, y, done = self.t, self.y, self.done
        h = torch.minimum(self.size, (self.end - t).abs())
        arrives = h >= (self.end - t).abs()
        signed = torch.where(done, torch.zeros_like(h), self.direction * h)
        t_new = torch.where(arrives | done, self.end, t + signed)
        y_new, k_new, error = self.pair.step(self.f, t, y, self.k, signed, t_new)
        self.evaluations += self.pair.evaluations
        scale = self.atol + self.rtol * torch.maximum(y.abs(), y_new.abs())
        size_of_error = _norm(error, scale).to(self.clock)

        accepted = (size_of_error <= 1.0) & ~done  # a NaN error rejects
        retry = ~accepted & ~done
        self.nfe += torch.where(done, 0, self.pair.evaluations)
        self.rejected += retry
        self._resize(size_of_error, h, retry)
        keep = ops.column(accepted, y)
        self.t = torch.where(accepted, t_new, t)
        self.y, self.k = torch.where(keep, y_new, y), torch.where(keep, k_new, self.k)
        finished = self.t == self.end
        stuck = retry & ~(self.size >= self.smallest)  # NaN is stuck too
        self.failure = torch.where(stuck, 1, self.failure)
        if is_last:
            self.failure = torch.where(~(done | finished | stuck), 2, self.failure)
        self.y = torch.where(ops.column(self.failure > 0, y), torch.full_like(y, torch.nan), self.y)
        self.done = done | finished | stuck

    def _resize(self, error: Tensor, h: Tensor, retry: Tensor) -> None:
        """Choose the next step's size by the error of this one; after a rejection it does not grow."""
        factor = (0.9 * error**self.pair.exponent).nan_to_num(0.2, posinf=10.0).clamp(0.2, 10.0)
        factor = torch.where(self._just_rejected | retry, factor.clamp(max=1.0), factor)
        self.size = torch.where(self.done, self.size, h * factor)
        self._just_rejected = retry


def solve_ode(
    f: Slope,
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
    solver = _Solver(f, y, t0, t1, rtol, atol, method)
    for attempt in range(1, max_steps + 1):
        solver.attempt(is_last=attempt == max_steps)
        if on_step is not None:
            on_step(attempt, solver.t, solver.y)
        if attempt == max_steps or ops.host_bool(solver.done.all()):
            break
    return ODESolution(solver.y, solver.nfe, solver.rejected, solver.failure, solver.evaluations)
