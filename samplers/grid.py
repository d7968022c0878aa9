"""Samplers that step along a time grid: the one loop, and what a step is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from samplers.base import Path, Sampler, SampleResult, report
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.timesteps import GRIDS, require_falling
from sde_diffusion.types import Callback, NoiseFn

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class GridSampler(Sampler, Generic[State]):
    """A sampler that steps along a fixed time grid; ``State`` is what its step remembers, None for most.

    Args:
        num_steps: number of steps ≥ 1, the denoising step included.
        grid: "uniform", "quadratic", "log_snr", "karras" or "indices" (:mod:`sde_diffusion.timesteps`).
    """

    num_steps: int = 50
    grid: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("num_steps", self.num_steps, 1)
        GRIDS[self.grid]

    def times(self, denoiser: AbstractDenoiser) -> Tensor:
        """Return the grid as float64 times on the CPU, from start to stop time, without the denoising step's 0.

        Times are rounded to those that the network was trained on, those before the start are the start; neighbours
        that become equal are merged.
        """
        sde, start = denoiser.sde, self.start_time(denoiser)
        num_points = self.num_steps if self.denoise else self.num_steps + 1
        rounded = denoiser.round_t(GRIDS[self.grid](sde, num_points, self.stop_time(sde))).clamp_max(start)
        times = torch.unique_consecutive(rounded) if num_points > 1 else rounded
        require_falling(times, start)
        return times

    def init(self, denoiser: AbstractDenoiser, x: Tensor, levels: Sequence[NoiseLevel]) -> State:
        """Return what the first step is given to remember; for samplers without memory, None.

        Args:
            levels: of all times of the grid.
        """
        return cast(State, None)

    @abstractmethod
    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: State, noise: NoiseFn
    ) -> tuple[Tensor, State]:
        """Take ``x`` (B, *) from level ``t`` to ``s``; returns the new state of the sample and what to remember.

        The numbers of levels are floats: ``s.alpha * p.x0 + s.sigma * p.eps`` with ``p = denoiser(x, t)``.
        """

    def integrate(
        self,
        denoiser: AbstractDenoiser,
        x: Tensor,
        noise: NoiseFn,
        callback: Callback | None = None,
        times: Tensor | None = None,
    ) -> Path:
        """Step along the grid, or along ``times``."""
        grid = self.times(denoiser) if times is None else times
        levels = denoiser.sde.levels(grid)
        state = self.init(denoiser, x, levels)
        report(callback, 0, grid[0].item(), x)
        # One number a step, looked at once at the end: a non-finite one names its step. They share one tensor, since
        # small tensors kept alive between the states' memory would fragment it, so that it grew with the steps.
        trace = x.new_zeros(len(levels) - 1)
        dims = tuple(range(x.ndim))
        for i, (slot, (t, s)) in enumerate(zip(trace.unbind(), pairwise(levels), strict=True), start=1):
            x, state = self.step(denoiser, x, t, s, state, noise)
            torch.sum(x.detach(), dims, out=slot)
            if callback is not None:
                report(callback, i, cast(float, s.t), x)
        return Path(x, grid, trace)

    def sample(
        self,
        denoiser: AbstractDenoiser,
        x: Tensor,
        noise: NoiseFn,
        *,
        times: Tensor | None = None,
        callback: Callback | None = None,
        **conditions: Any,
    ) -> SampleResult:
        """Integrate from the state ``x`` (B, *) with the given noise.

        Args:
            noise: ``noise(x, t, s)`` returns standard normal noise for the step from level ``t`` to ``s``.
            times: falling float64 CPU times, none before the start, instead of the sampler's own grid; ``x`` is at the
                first.
            callback, conditions: as of :meth:`draw`.

        Raises:
            InputError: on bad ``times``, or if the state becomes non-finite (names the step and the time).
        """
        if times is not None:
            require_falling(times, self.start_time(denoiser))
        return self._finish(partial(self.integrate, times=times), denoiser, x, noise, callback, conditions)
