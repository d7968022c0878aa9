"""Functions of floats and tensors alike, broadcasting, per-example reductions, the one deliberate read of the device.

A formula of a noise level is written once: on a grid its numbers are Python floats, which cost nothing, need no device
and promote no tensor; for a time of each sample they are tensors. The functions here take both. Floats follow the rules
of tensors where :mod:`math` would raise: log 0 = −∞, exp of much is ∞, 1/0 is ∞ and the root of a negative number NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Number = float | Tensor
"""A number of a noise level: a float, or a tensor that broadcasts against what it meets."""


def exp(a: Number) -> Number:
    """Return eᵃ."""
    if isinstance(a, Tensor):
        return a.exp()
    return math.exp(a) if a < 709.0 else math.inf


def expm1(a: Number) -> Number:
    """Return eᵃ − 1, exact where ``a`` is small."""
    if isinstance(a, Tensor):
        return a.expm1()
    return math.expm1(a) if a < 709.0 else math.inf


def log(a: Number) -> Number:
    """Return log a; −∞ at 0."""
    if isinstance(a, Tensor):
        return a.log()
    return math.log(a) if a > 0.0 else -math.inf if a == 0.0 else math.nan


def sqrt(a: Number) -> Number:
    """Return √a; NaN below 0."""
    if isinstance(a, Tensor):
        return a.sqrt()
    return math.sqrt(a) if a >= 0.0 else math.nan


def sin(a: Number) -> Number:
    """Return sin a."""
    return a.sin() if isinstance(a, Tensor) else math.sin(a)


def cos(a: Number) -> Number:
    """Return cos a."""
    return a.cos() if isinstance(a, Tensor) else math.cos(a)


def at_least(a: Number, low: float) -> Number:
    """Return a, or ``low`` where that is more."""
    return a.clamp_min(low) if isinstance(a, Tensor) else max(a, low)


def atan(a: Number) -> Number:
    """Return the arc tangent of a; ±π/2 at ±∞."""
    return a.atan() if isinstance(a, Tensor) else math.atan(a)


def divide(a: Number, b: Number) -> Number:
    """Return a/b; ±∞ or NaN where b is 0."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a / b
    if b != 0.0:
        return a / b
    return math.nan if a == 0.0 or math.isnan(a) else math.copysign(math.inf, a)


def combine(a: Number, x: Tensor, b: Number, y: Tensor) -> Tensor:
    """Return a·x + b·y; with two floats in two passes over memory where the operators need three."""
    if isinstance(a, float) and isinstance(b, float):
        return torch.mul(x, a).add_(y, alpha=b)
    return a * x + b * y


def add_scaled(x: Tensor, c: Number, y: Tensor) -> Tensor:
    """Return x + c·y; with a float in one pass over memory where the operators need two."""
    return torch.add(x, y, alpha=c) if isinstance(c, float) else x + c * y


def add_scaled_(x: Tensor, c: Number, y: Tensor) -> Tensor:
    """Add c·y to ``x`` in place, which nobody else may hold, and return it."""
    return x.add_(y, alpha=c) if isinstance(c, float) else x.add_(c * y)


def column(a: Tensor, x: Tensor) -> Tensor:
    """View ``a`` of shape (B,) as (B, 1, …, 1) with as many dimensions as ``x``."""
    return a.reshape(-1, *[1] * (x.ndim - 1))


def like(a: Number, x: Tensor) -> Number:
    """Shape a number of each sample, (B,), so that it broadcasts against ``x`` (B, *), in its dtype and on its device.

    A float stays what it is. A tensor of float64 is cast, so that it never promotes a float32 state.
    """
    if not isinstance(a, Tensor):
        return a
    a = a.to(device=x.device, dtype=x.dtype)
    return column(a, x) if a.ndim else a


def per_sample(a: Number, x: Tensor) -> Tensor:
    """Return a number as one of each sample of ``x`` (B, *): (B,), in its dtype and on its device, without a sync."""
    if isinstance(a, Tensor):
        return a.to(device=x.device, dtype=x.dtype).expand(x.shape[0])
    return x.new_full(x.shape[:1], a)


def expand(a: Tensor, x: Tensor) -> Tensor:
    """Shape ``a`` of shape () or (B,) so that it broadcasts against ``x`` of shape (B, *).

    A 0-dimensional ``a`` is returned as it is: it multiplies a tensor on any device and of any dtype without promotion
    and without a host sync. A batched one takes on ``x``'s dtype and device, so that float64 times never promote a
    float32 state.
    """
    if a.ndim == 0:
        return a
    return column(a.to(device=x.device, dtype=x.dtype), x)


def per_example(a: Tensor) -> Tensor:
    """Flatten all but the first dimension: (B, *) → (B, D)."""
    return a.reshape(a.shape[0], -1)


def mean_per_example(a: Tensor) -> Tensor:
    """Mean over all but the first dimension: (B, *) → (B,)."""
    return per_example(a).mean(dim=1)


def host_bool(flag: Tensor) -> bool:
    """Read one boolean back from the device.

    The only host sync of this package: adaptive solvers must ask whether any sample still runs. It has a name so that
    it can be seen, counted and, in the tests that forbid hidden syncs, replaced.
    """
    return bool(flag.item())


WITHOUT_FLOAT64 = ("mps",)
"""Types of devices whose hardware has no float64."""


def widest_float(device: torch.device) -> torch.dtype:
    """Return the dtype of times and sums on a device: float64, or float32 where the hardware has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
