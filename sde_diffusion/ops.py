"""Broadcasting, per-example reductions and the one deliberate device-to-host read."""

from __future__ import annotations

import torch
from torch import Tensor


def column(a: Tensor, x: Tensor) -> Tensor:
    """View ``a`` of shape (B,) as (B, 1, …, 1) with as many dimensions as ``x``."""
    return a.reshape(-1, *[1] * (x.ndim - 1))


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


def clock_dtype(device: torch.device) -> torch.dtype:
    """Dtype of per-sample times on ``device``: float64, or float32 where the hardware has no float64 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64
