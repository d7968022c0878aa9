"""What every sampler is: options, a start, a loop over a time grid, counted evaluations.

    x_T ~ prior → step, step, … → x_{t_min} → (denoise) E[x₀ | x_{t_min}]

A sampler is a frozen dataclass whose fields are its options. :class:`GridSampler` owns the only loop over a grid;
:class:`LinearSampler` is a grid sampler whose step is one line, x_s = a x_t + b·view(x_t) + c z, with coefficients that
follow from α and σ at t and s. Samplers that choose their own times derive from :class:`Sampler`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.denoisers import PREDICTIONS, CountedDenoiser, view_of
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.noise import NoiseStream
from sde_diffusion.ops import host_bool
from sde_diffusion.registry import Registry
from sde_diffusion.sdes import SDE
from sde_diffusion.timesteps import GRIDS, require_falling
from sde_diffusion.types import Callback, DenoiserLike, NoiseFn

SAMPLERS: Registry[Sampler] = Registry("sampler")


@dataclass(frozen=True)
class SampleResult:
    """Samples and what they cost.

    Attributes:
        x: samples, shape (B, *).
        nfe: network evaluations of the batch, counted.
        nfe_per_sample: evaluations that each sample needed, int64, (B,); it differs from ``nfe`` where samples choose
            their own steps.
        times: the times visited, float64, falling; 0 at the end stands for the denoising step.
    """

    x: Tensor
    nfe: int
    nfe_per_sample: Tensor
    times: Tensor


def _default_device(denoiser: DenoiserLike) -> torch.device:
    net = getattr(denoiser, "net", None)
    first = next(net.parameters(), None) if isinstance(net, torch.nn.Module) else None
    return torch.device("cpu") if first is None else first.device


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Turns a denoiser into samples.

    Args:
        t_min: the time at which the scheme stops; 0 takes the SDE's own ``t_min``.
        denoise: finish with the posterior mean E[x₀ | x], one more evaluation, as "last step without noise" of DDPM.
        clip: keep each predicted x₀ within [−clip, clip], as Ho et al. 2020 do with 1 for pictures; 0 leaves it alone.
            Near T an error in ε is one σ/α times as large, 150 times, in x₀: pictures end up all white or black where
            training has not made it small. All views of the prediction follow the bounded x₀.

    What a sampler declares about itself is checked by measurement, over the registry:
        host_bound: whether it computes on the host by its nature, not on the denoiser's device.
        reference: author, year, arXiv id, equation.
        valid_sdes: "all", or the names of the SDEs it is valid on; it refuses others with a clear line.
    """

    host_bound: ClassVar[bool] = False
    valid_sdes: ClassVar[str] = "all"
    reference: ClassVar[str]

    t_min: float = 0.0
    denoise: bool = True
    clip: float = 0.0

    def __post_init__(self) -> None:
        require_float("t_min", self.t_min, 0.0, 1.0)
        require(isinstance(self.denoise, bool), "denoise", self.denoise, "True or False")
        require_float("clip", self.clip, 0.0)

    @property
    @abstractmethod
    def order(self) -> float | None:
        """Weak order in the largest step; None for a scheme that chooses its own steps."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether noise is drawn after the start."""

    @property
    @abstractmethod
    def nfe_per_step(self) -> int | None:
        """Network evaluations a step; None for a scheme that chooses its own steps."""

    def limit_variance(self, sde: SDE, t: float, variance: float) -> float:
        """Variance that infinitely many steps reach at time ``t`` where the exact law is Gaussian with ``variance``."""
        return variance

    def stop_time(self, sde: SDE) -> float:
        """Return the time at which the scheme stops on ``sde``."""
        t_min = self.t_min or sde.t_min
        require(t_min < sde.T, "t_min", t_min, f"a time below T={sde.T:g}")
        return t_min

    def draw(
        self,
        denoiser: DenoiserLike,
        shape: Sequence[int],
        seed: int = 0,
        *,
        first_index: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        callback: Callback | None = None,
        **conditioning: Any,
    ) -> SampleResult:
        """Draw samples from noise; sample i depends on (seed, ``first_index`` + i) alone.

        Args:
            denoiser: a :class:`~sde_diffusion.Denoiser` or an analytic law's.
            shape: (B, *), the number of samples and the shape of one.
            seed: whole number ≥ 0.
            first_index: number of the first sample; the second batch of 64 has 64.
            device: where to sample; by default where the network's parameters are.
            dtype: dtype of the state.
            callback: ``callback(step, t, x)``, called before the first step and after each.
            conditioning: passed on to the network.

        Raises:
            InputError: on a bad shape or seed, or if the state becomes non-finite (names the step and the time).
        """
        ok = len(shape) >= 2 and all(isinstance(n, int) and n > 0 for n in shape)
        require(ok, "shape", tuple(shape), "positive whole numbers (B, *)", "for example (16, 1, 8, 8)")
        require_int("first_index", first_index, 0)
        noise = NoiseStream(seed, range(first_index, first_index + shape[0]))
        where = _default_device(denoiser) if device is None else torch.device(device)
        start = torch.empty(*shape, device=where, dtype=dtype)
        zero = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            x = noise(start, zero, zero) * denoiser.sde.prior_std
            return self.sample(denoiser, x, noise, callback=callback, **conditioning)

    def sample(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        noise: NoiseFn,
        *,
        callback: Callback | None = None,
        **conditioning: Any,
    ) -> SampleResult:
        """Integrate from the state ``x`` (B, *) at time T with the given noise.

        Args:
            noise: ``noise(x, t, s)`` returns standard normal noise for the step from ``t`` to ``s``.
        """
        counted = CountedDenoiser(denoiser, conditioning, self.clip)
        return self._run(counted, x, noise, callback)

    @abstractmethod
    def _run(self, denoiser: CountedDenoiser, x: Tensor, noise: NoiseFn, callback: Callback | None) -> SampleResult:
        """Integrate from T to the end."""


def ode_times(start: float, stop: float, denoise: bool) -> Tensor:
    """Return start, stop and, for a denoising step, 0: all that a solver with times of its own can report."""
    return torch.tensor([start, stop, 0.0][: 3 if denoise else 2], dtype=torch.float64)


def check_finite(x: Tensor, sampler: Sampler, reasons: Callable[[], dict[int, str]] = dict) -> None:
    """Refuse a final state that is not finite, for samplers that keep no trace of their steps.

    Args:
        reasons: asked then, returns why samples failed where the solver knows it.
    """
    if host_bool(~torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x.reshape(x.shape[0], -1)).all(dim=1)).sum())
        why = next((f" (sample {i}: {reason})" for i, reason in reasons().items()), "")
        raise InputError(
            f"{bad} of {x.shape[0]} samples are not finite with {sampler}{why}; loosen its tolerances or check the "
            "network"
        )


@dataclass(frozen=True, kw_only=True)
class GridSampler(Sampler):
    """A sampler that steps along a fixed time grid.

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

    def times(self, denoiser: DenoiserLike) -> Tensor:
        """Return the grid as float64 times on the CPU, from T to the stop time, without the denoising step's 0.

        Times are rounded to those that the network was trained on; neighbours that become equal are merged.
        """
        sde = denoiser.sde
        num_points = self.num_steps if self.denoise else self.num_steps + 1
        rounded = denoiser.round_t(GRIDS[self.grid](sde, num_points, self.stop_time(sde)))
        return torch.unique_consecutive(rounded) if num_points > 1 else rounded

    def init(self, denoiser: DenoiserLike, x: Tensor, grid: Tensor) -> Any:
        """Return the state that ``step`` carries along; None by default."""
        return None

    @abstractmethod
    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: NoiseFn
    ) -> tuple[Tensor, Any]:
        """Take ``x`` from time ``t`` to ``s`` < ``t``; returns the new state and what to carry along."""

    def sample(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        noise: NoiseFn,
        *,
        times: Tensor | None = None,
        callback: Callback | None = None,
        **conditioning: Any,
    ) -> SampleResult:
        """Integrate from the state ``x`` (B, *) with the given noise.

        Args:
            noise: ``noise(x, t, s)`` returns standard normal noise for the step from ``t`` to ``s``.
            times: falling float64 CPU times in (0, T] instead of the sampler's own grid; ``x`` is at the first.

        Raises:
            InputError: on bad ``times``, or if the state becomes non-finite (names the step and the time).
        """
        if times is not None:
            require_falling(times, denoiser.sde.T)
        counted = CountedDenoiser(denoiser, conditioning, self.clip)
        return self._run(counted, x, noise, callback, times)

    def _run(
        self,
        denoiser: CountedDenoiser,
        x: Tensor,
        noise: NoiseFn,
        callback: Callback | None,
        times: Tensor | None = None,
    ) -> SampleResult:
        grid = self.times(denoiser) if times is None else times
        points = grid.unbind()
        denoiser.tabulate(grid, points)
        state = self.init(denoiser, x, grid)
        if callback is not None:
            callback(0, points[0], x)
        # One number a step, looked at once at the end: a non-finite one names its step. They share one tensor, since
        # small tensors kept alive between the states' memory would fragment it, so that it grew with the steps.
        sums = x.new_zeros(len(points) - 1 + self.denoise)
        slots, dims = sums.unbind(), tuple(range(x.ndim))
        for i, (t, s) in enumerate(pairwise(points), start=1):
            x, state = self.step(denoiser, x, t, s, state, noise)
            torch.sum(x.detach(), dims, out=slots[i - 1])
            if callback is not None:
                callback(i, s, x)
        if self.denoise:
            x = denoiser(x, points[-1]).x0
            torch.sum(x.detach(), dims, out=slots[-1])
            grid = torch.cat([grid, grid.new_zeros(1)])
            if callback is not None:
                callback(len(sums), grid[-1], x)
        self._check_finite(sums, grid)
        return SampleResult(x, denoiser.nfe, torch.full((x.shape[0],), denoiser.nfe), grid)

    def _check_finite(self, sums: Tensor, grid: Tensor) -> None:
        bad = ~torch.isfinite(sums)
        if host_bool(bad.any()):
            step = int(bad.int().argmax())
            raise InputError(
                f"the state is not finite after step {step + 1} of {len(sums)}, from t={float(grid[step]):.6g} to "
                f"t={float(grid[step + 1]):.6g}, with {self}; take more steps or check the network"
            )


@dataclass(frozen=True, kw_only=True)
class LinearSampler(GridSampler):
    """A grid sampler whose step is x_s = a x_t + b·view(x_t) + c z.

    The coefficients are computed for the whole grid at once. Every view is itself linear in the state and the network's
    raw output, so a step is one network evaluation and a handful of multiply-adds whatever the network predicts.
    """

    nfe_per_step = 1
    view: ClassVar[str]

    @abstractmethod
    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a, b and c of the steps from times ``t`` to ``s``, shapes of ``t``."""

    def init(self, denoiser: DenoiserLike, x: Tensor, grid: Tensor) -> Any:
        sde, t = denoiser.sde, grid[:-1]
        a, b, c = self.coefficients(sde, t, grid[1:])
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        tables = {}
        for kind in PREDICTIONS:
            p, q = view_of(self.view, kind, alpha, sigma)
            columns = (
                (a + b * p).tolist(),
                (b * q).tolist(),
                c.tolist(),
            )  # numbers: a step then needs no memory for them
            tables[kind] = list(zip(*columns, strict=True))
        return 0, tables

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: NoiseFn
    ) -> tuple[Tensor, Any]:
        i, tables = state
        prediction = denoiser(x, t)
        of_x, of_raw, of_noise = tables[prediction.kind][i]
        new = (x * of_x).add_(prediction.raw, alpha=of_raw)
        if self.stochastic:
            new.add_(noise(x, t, s), alpha=of_noise)
        return new, (i + 1, tables)
