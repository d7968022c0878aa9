"""Restart sampling: a deterministic sampler that goes back up to more noise and comes down again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from samplers.base import SAMPLERS, Path, Sampler
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.levels import transition
from sde_diffusion.ops import add_scaled_, sqrt
from sde_diffusion.sde import SDE
from sde_diffusion.types import Callback, NoiseFn

SHARED = ("num_steps", "t_min", "denoise")
"""Options of the part that are those of the whole."""


class Interval(NamedTuple):
    """Where to restart: ``restarts`` times from ``low`` up to ``high``, in σ/α, and down again in ``steps``."""

    low: float
    high: float
    restarts: int
    steps: int = 0


@SAMPLERS.register("restart")
@dataclass(frozen=True, kw_only=True)
class Restart(Sampler):
    """A sampler's way down; from the lower end of each interval K times noise up to its upper end and down again.

    With ρ = σ/α: x/α at ρ_max is x/α at ρ_min + √(ρ_max² − ρ_min²) z, the SDE's own forward transition. A discretised
    ODE adds up its errors and the network's; fresh noise forgets them. Restarts begin at the first time of the grid at
    or below ρ_min, or at the last one; the way down is in equal steps of log SNR. The noise of restarts belongs to no
    interval of the reverse process: it is fresh on a Brownian path too.

    Args:
        num_steps: steps ≥ 1 from T to the end, the denoising step included; those after restarts come on top.
        sampler: a deterministic sampler that steps along a grid, its own: a name, a mapping of "name" and options, or
            an object. It starts anew after each restart.
        intervals: rows (ρ_min, ρ_max, K, steps), or one row: 0 ≤ ρ_min < ρ_max, K ≥ 1 restarts, and the steps of each
            way down, where 0 is a quarter of ``num_steps``: the law is exact in the limit only if both grow.

    References:
        Y. Xu et al., "Restart Sampling for Improving Generative Processes", 2023, arXiv:2306.14878, Algorithm 1.
    """

    stochastic = True
    reference = "Xu et al. 2023, arXiv:2306.14878, Alg. 1"
    parts = {"sampler": SAMPLERS}  # noqa: RUF012

    num_steps: int = 50
    sampler: str | Mapping[str, Any] | GridSampler[Any] = "heun"
    intervals: tuple[Any, ...] = ((0.1, 1.0, 2, 0),)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("num_steps", self.num_steps, 1)
        object.__setattr__(self, "intervals", _intervals(self.intervals))
        object.__setattr__(self, "sampler", self._built(self.sampler))

    def _built(self, given: str | Mapping[str, Any] | GridSampler[Any]) -> GridSampler[Any]:
        shared = {option: getattr(self, option) for option in SHARED}
        for option in shared.keys() & (given.keys() if isinstance(given, Mapping) else ()):
            value = cast("Mapping[str, Any]", given)[option]
            expected = f"that of restart, {shared[option]!r}"
            require(value == shared[option], f"sampler.{option}", value, expected, "give it to restart itself")
        part: Any = SAMPLERS.part(given)
        expected = "a sampler that steps along a grid"
        require(isinstance(part, GridSampler), "sampler", given, expected, "this one has no single steps")
        require(not part.stochastic, "sampler", given, "a deterministic sampler", "restarts bring the noise")
        return cast("GridSampler[Any]", replace(part, **shared))

    @property
    def _part(self) -> GridSampler[Any]:
        return cast("GridSampler[Any]", self.sampler)

    def options(self) -> dict[str, Any]:
        """Return the options as plain values; the part as its name, and with it what is not its default."""
        name = SAMPLERS.name_of(self._part)
        default = SAMPLERS.build(name).options()
        own = {k: v for k, v in self._part.options().items() if k not in SHARED and v != default[k]}
        return super().options() | {"sampler": {"name": name, **own} if own else name}

    @property
    def order(self) -> float | None:
        return self._part.order

    @property
    def nfe_per_step(self) -> int | None:
        return self._part.nfe_per_step

    @property
    def start_nfe(self) -> int:
        """Those of restarts, and of the starts of all ways."""
        steps: int = sum(row.restarts * self._steps(row) for row in self.intervals)
        starts: int = 1 + sum(row.restarts + 1 for row in self.intervals)
        return steps * (self._part.nfe_per_step or 0) + starts * self._part.start_nfe

    def _steps(self, row: Interval) -> int:
        return row.steps or -(-self.num_steps // 4)

    def integrate(
        self, denoiser: AbstractDenoiser, x: Tensor, noise: NoiseFn, callback: Callback | None = None
    ) -> Path:
        first, *ways = self._ways(denoiser)
        path = self._part.integrate(denoiser, x, noise, callback, first)
        for times in ways:
            path = self._further(denoiser, path, times, noise, callback)
        return path

    def _further(
        self, denoiser: AbstractDenoiser, path: Path, times: Tensor, noise: NoiseFn, callback: Callback | None
    ) -> Path:
        """Return a path with a way down after it, which begins at its end or, with noise added, above it."""
        x, count, trace = path.x, len(path.times), [cast(Tensor, path.trace)]
        t, s = denoiser.sde.levels(torch.stack([times[0], path.times[-1]]))
        up = cast(float, t.t) > cast(float, s.t)
        if up:
            alpha_ts, added = transition(t, s)
            x = add_scaled_(alpha_ts * x, sqrt(added), noise(x, s, s))
            trace.append(x.sum().reshape(1))
        first = count if up else count - 1  # number of the first time

        def see(step: int, t: Tensor, x: Tensor) -> None:
            if callback is not None and first + step >= count:
                callback(first + step, t, x)

        down = self._part.integrate(denoiser, x, noise, see if callback else None, times)
        times = torch.cat([path.times, down.times[count - first :]])
        return Path(down.x, times, torch.cat([*trace, cast(Tensor, down.trace)]))

    def _ways(self, denoiser: AbstractDenoiser) -> list[Tensor]:
        """Return the times of all ways down, each from where the one before has ended, or from above it."""
        sde, grid = denoiser.sde, self._part.times(denoiser)
        ratios = [cast(float, level.ratio) for level in sde.levels(grid)]
        again: dict[int, list[Tensor]] = {}
        for row in self.intervals:
            _require_on_the_way(row, sde, self.stop_time(sde))
            turn = next((i for i, ratio in enumerate(ratios) if ratio <= row.low), len(grid) - 1)
            if ratios[turn] < row.high:  # a single time, T, is followed by no restart
                ends = -2.0 * math.log(row.high), -2.0 * math.log(ratios[turn])
                log_snr = torch.linspace(*ends, self._steps(row) + 1, dtype=torch.float64)
                times = denoiser.round_t(sde.time_of_log_snr(log_snr).clamp_max(sde.T))
                times[-1] = grid[turn]
                again.setdefault(turn, []).extend([torch.unique_consecutive(times)] * row.restarts)
        turns = [0, *sorted(again), len(grid) - 1]
        ways = [[grid[i : j + 1], *again.get(j, ())] for i, j in pairwise(turns) if i < j]
        return [way for group in ways for way in group] or [grid]


def _intervals(given: Any) -> tuple[Interval, ...]:
    """Return the rows, from rows or from one.

    Raises:
        InputError: names the row that is none, or the number.
    """
    expected = "rows (low, high, restarts, steps) in σ/α, or one row"
    ok = isinstance(given, (tuple, list)) and len(given) > 0
    require(ok, "intervals", given, expected, "for example 0.1,1.0,2,4")
    rows = given if all(isinstance(row, (tuple, list)) for row in given) else (given,)
    for row in rows:
        require(3 <= len(row) <= 4, "intervals", row, expected, "for example 0.1,1.0,2,4")
    found = tuple(Interval(*row) for row in rows)
    for low, high, restarts, steps in found:
        require_float("intervals: low", low, 0.0)
        require_float("intervals: high", high, low, open_low=True, remedy=f"low is {low:g}")
        require_int("intervals: restarts", restarts, 1)
        require_int("intervals: steps", steps, 0, "0 is a quarter of num_steps")
    return found


def _require_on_the_way(row: Interval, sde: SDE, stop: float) -> None:
    """Refuse an interval that the way from T to the stop time does not meet, or that begins above T."""
    start, end = (cast(float, sde.at(t).ratio) for t in (sde.T, stop))
    expected = f"a number above {end:.4g} and up to {start:.4g}, σ/α at the sampler's end and at T"
    require(end < row.high <= start * (1.0 + 1e-9), "intervals: high", row.high, expected)
