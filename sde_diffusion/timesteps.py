"""Time grids: which times a sampler visits.

A grid is a function ``(sde, num_points, t_min) → times``: ``num_points`` float64 times on the CPU that fall from T to
``t_min`` (a single point is T). Those that are spaced in the noise level, which is infinite where α is 0, are spaced
from the SDE's ``t_max``, and T is in its place. Zero-dimensional CPU times multiply tensors of any device without a
sync.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.memory import require_memory
from sde_diffusion.registry import Registry
from sde_diffusion.sde import SDE

GRIDS: Registry[Tensor] = Registry("grid")

LEVEL = 1000
"""Bytes of a time and its noise level, about."""
TRAINING_INDICES = 1000
"""Number of training times of "indices" on an SDE that is not itself a chain: DDPM's (Ho et al. 2020, Section 4)."""

RESOLVED = (1e-15, 1e15)
"""What α and σ are within where a run starts and stops: float32 still holds their squares, and those of ratios."""


def require_falling(times: Tensor, T: float) -> None:
    """Refuse times that do not fall, on the CPU, within (0, T].

    Raises:
        InputError: names the first of them.
    """
    ok = times.ndim == 1 and len(times) > 0 and times.device.type == "cpu" and bool((times.diff() < 0).all())
    ok = ok and float(times[-1]) > 0.0 and float(times[0]) <= T
    require(ok, "times", times.flatten()[:4].tolist(), f"times that fall, on the CPU, within (0, {T:g}]")


def require_start(sde: SDE, t_min: float) -> None:
    """Refuse a time to start or to stop at that is not below T, or noise levels that are not resolved.

    Raises:
        InputError: names the time and what is wrong with it.
    """
    require(t_min < sde.t_max, "t_min", t_min, f"a time below {sde.t_max:g}, where draws start")
    require_resolved(sde, t_min)


def require_resolved(sde: SDE, t_min: float) -> None:
    """Refuse noise levels, of T or of ``t_min``, whose numbers float32 cannot square.

    Raises:
        InputError: names the time and its numbers.
    """
    low, high = RESOLVED
    ends = torch.tensor([sde.t_max, t_min], dtype=torch.float64)
    for name, level in zip(("T", "t_min"), sde.levels(ends), strict=True):
        ok = all(low <= float(number) <= high for number in (level.alpha, level.sigma))
        expected = f"a time at which α and σ are within {low:g} … {high:g}, not {level.alpha:.2g} and {level.sigma:.2g}"
        require(ok, name, level.t, expected, "change it, or the parameters of the SDE")


def _ramp(num_points: int) -> Tensor:
    require_memory("points of a grid", num_points, LEVEL * num_points, "them", "take fewer steps")
    return torch.linspace(0.0, 1.0, num_points, dtype=torch.float64)


def _ends(sde: SDE, t_min: float) -> Tensor:
    return sde.log_snr(torch.tensor([sde.t_max, t_min], dtype=torch.float64))


def _between(sde: SDE, t_min: float, times: Tensor) -> Tensor:
    """Return times that fall from T to ``t_min``, with these as their ends and none beyond, whatever was rounded."""
    times = times.clamp(t_min, sde.T).cummin(dim=0).values
    times[-1], times[0] = t_min, sde.T  # a single point is T
    return times


@GRIDS.register("uniform")
def uniform(sde: SDE, num_points: int, t_min: float) -> Tensor:
    """Equal steps in t (Song et al. 2021, arXiv:2011.13456, Appendix B: t = i/N)."""
    return _between(sde, t_min, sde.T + (t_min - sde.T) * _ramp(num_points))


@GRIDS.register("quadratic")
def quadratic(sde: SDE, num_points: int, t_min: float) -> Tensor:
    """Equal steps in √t (Song, Meng, Ermon 2021, arXiv:2010.02502, Appendix D.2)."""
    root = math.sqrt(sde.T)
    return _between(sde, t_min, (root + (math.sqrt(t_min) - root) * _ramp(num_points)) ** 2)


@GRIDS.register("log_snr")
def log_snr(sde: SDE, num_points: int, t_min: float) -> Tensor:
    """Equal steps in log(α²/σ²) (Lu et al. 2022, arXiv:2206.00927, Section 3)."""
    first, last = _ends(sde, t_min)
    return _between(sde, t_min, sde.time_of_log_snr(first + (last - first) * _ramp(num_points)))


@GRIDS.register("karras")
def karras(sde: SDE, num_points: int, t_min: float) -> Tensor:
    """Equal steps in (σ/α)^{1/ρ} with ρ = 7 (Karras et al. 2022, arXiv:2206.00364, Eq. 5)."""
    first, last = torch.exp(_ends(sde, t_min) / -14.0)
    root = first + (last - first) * _ramp(num_points)
    return _between(sde, t_min, sde.time_of_log_snr(-14.0 * root.log()))


@GRIDS.register("indices")
def indices(sde: SDE, num_points: int, t_min: float) -> Tensor:
    """Times T i/N of a discrete chain, evenly spaced from i = N to the first one at or above ``t_min``.

    Raises:
        InputError: if more points are asked for than there are indices.
    """
    n: int = getattr(sde, "num_train_steps", TRAINING_INDICES)
    first = max(1, math.ceil(t_min / sde.T * n - 1e-6))
    if num_points > n - first + 1:
        have = n - first + 1
        raise InputError(f"num_steps: the grid 'indices' has {have} times, not {num_points}; take fewer steps")
    return (n + (first - n) * _ramp(num_points)).round() / n * sde.T
