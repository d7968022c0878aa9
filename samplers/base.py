"""What every sampler is: options, a start, a way from T to the end, counted evaluations.

    x_T ~ prior → step, step, … → x_{t_min} → (denoise) E[x₀ | x_{t_min}]

A sampler is a frozen dataclass whose fields are its options. Most derive from :class:`~samplers.grid.GridSampler`,
which owns the only loop over a time grid; those that choose their own times write :meth:`Sampler.integrate`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.brownian import BrownianPath
from sde_diffusion.denoisers import AbstractDenoiser, counted, evaluating
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.memory import require_memory
from sde_diffusion.noise import NoiseStream
from sde_diffusion.ops import host_bool, widest_float
from sde_diffusion.registry import Registry
from sde_diffusion.sde import SDE
from sde_diffusion.timesteps import require_start
from sde_diffusion.types import Callback, NoiseFn

SAMPLERS: Registry[Sampler] = Registry("sampler")
NOISES = ("independent", "brownian")
"""What draws may take their noise from: a stream of each sample, or its Brownian path."""


@dataclass(frozen=True)
class SampleResult:
    """Samples and what they cost.

    Attributes:
        x: samples, shape (B, *).
        nfe: network evaluations of a sample, counted where the network is called: rows that it was given ÷ B.
        nfe_per_sample: evaluations that each sample needed, (B,); it differs from ``nfe`` where samples choose their
            own steps.
        network_calls: calls of the network; fewer than ``nfe`` where one call evaluates several branches.
        times: the times visited, float64, falling but where noise is added again; 0 at the end is the denoising step.
    """

    x: Tensor
    nfe: int | float
    nfe_per_sample: Tensor
    network_calls: int
    times: Tensor


@dataclass(frozen=True)
class Path:
    """What an integration from the start to the stop time gives back.

    Attributes:
        x: the state at the last time, (B, *).
        times: the times visited, float64 on the CPU, (N,).
        trace: one number a step, not finite where the state was not: (N − 1,); a bad one names its step.
        needed: how many evaluations of the denoiser each sample needed, (B,), of ``asked`` for the batch; None if all.
        reasons: asked if a state is not finite, says why by the place in the batch, where the scheme knows it.
    """

    x: Tensor
    times: Tensor
    trace: Tensor | None = None
    needed: Tensor | None = None
    asked: int = 0
    reasons: Callable[[], dict[int, str]] = dict


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Turns a denoiser into samples.

    Args:
        t_min: the time at which the scheme stops; 0 takes the SDE's own ``t_min``.
        denoise: finish with the posterior mean E[x₀ | x], one more evaluation, as "last step without noise" of DDPM.

    What a sampler declares about itself may depend on its options, and is checked by measurement, over the registry:
        parts: options that are parts with options of their own, and the registries that they are chosen from.
        from_pure_noise: whether it can start where α is 0.
        host_bound: whether it computes on the host by its nature, not on the denoiser's device.
        start_nfe: evaluations beside those of its steps, as before the first one.
        reference: author, year, arXiv id, equation.
        valid_sdes: "all", or the names of the SDEs it is valid on; it refuses others with a clear line.
    """

    host_bound: ClassVar[bool] = False
    parts: ClassVar[Mapping[str, Registry[Any]]] = {}
    valid_sdes: ClassVar[str] = "all"
    reference: ClassVar[str]

    t_min: float = 0.0
    denoise: bool = True

    def __post_init__(self) -> None:
        require_float("t_min", self.t_min, 0.0, 1.0)
        require(isinstance(self.denoise, bool), "denoise", self.denoise, "True or False")

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
        """Evaluations of the denoiser a step; None for a scheme that chooses its own steps."""

    @property
    def from_pure_noise(self) -> bool:
        """Whether its formulas hold where α is 0; one on f, g or 1/α starts at the SDE's ``t_max``."""
        return False

    @property
    def start_nfe(self) -> int:
        """Evaluations of the denoiser beside those of its ``num_steps`` steps, as before the first one."""
        return 0

    def limit_variance(self, sde: SDE, t: float, variance: float) -> float:
        """Variance that infinitely many steps reach at time ``t`` where the exact law is Gaussian with ``variance``."""
        return variance

    @abstractmethod
    def integrate(
        self, denoiser: AbstractDenoiser, x: Tensor, noise: NoiseFn, callback: Callback | None = None
    ) -> Path:
        """Take the state ``x`` (B, *) from the start time, T or close to it, to the stop time: what a sampler is.

        Args:
            denoiser: its conditions filled in: call it as ``denoiser(x, t)``.
            noise: ``noise(x, t, s)`` returns standard normal noise for the step from level ``t`` to ``s``.
            callback: to be called at the start and after each step, with times (B,) (:func:`report`).
        """

    def options(self) -> dict[str, Any]:
        """Return the options as plain values, from which the registry builds the same sampler."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def start_time(self, denoiser: AbstractDenoiser) -> float:
        """Return the time at which the scheme starts: T, or where it or the prediction needs α > 0, before it."""
        return denoiser.start_time(self.from_pure_noise)

    def stop_time(self, sde: SDE) -> float:
        """Return the time at which the scheme stops on ``sde``."""
        t_min = self.t_min or sde.t_min
        require_start(sde, t_min)
        return t_min

    def draw(
        self,
        denoiser: AbstractDenoiser,
        shape: Sequence[int],
        seed: int = 0,
        *,
        first_index: int = 0,
        noise: str = "independent",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        callback: Callback | None = None,
        **conditions: Any,
    ) -> SampleResult:
        """Draw samples from noise; sample i depends on (seed, ``first_index`` + i) alone.

        Args:
            denoiser: a :class:`~sde_diffusion.Denoiser`, an analytic law's, or what wraps one.
            shape: (B, *), the number of samples and the shape of one.
            seed: whole number ≥ 0.
            first_index: number of the first sample; the second batch of 64 has 64.
            noise: "independent" of each step, or "brownian": increments of one path a sample
                (:class:`~sde_diffusion.BrownianPath`), the same whatever the sampler, its grid and number of steps.
                The start is the same for both.
            device: where to sample; by default the denoiser's.
            dtype: of the state, torch.float32 or torch.float64: fewer digits do not hold what steps add. A network
                computes in its own.
            callback: ``callback(step, t, x)`` with times (B,), called before the first step and after each.
            conditions: what to condition on, such as ``classes``: one a sample, (B, *), or one number for all.

        Raises:
            InputError: on a bad shape or seed, conditions that the denoiser does not take or that are missing, or if
                the state becomes non-finite (names the step and the time).
        """
        ok = len(shape) >= 2 and all(isinstance(n, int) and n > 0 for n in shape)
        require(ok, "shape", tuple(shape), "positive whole numbers (B, *)", "for example (16, 1, 8, 8)")
        require_int("first_index", first_index, 0)
        require(dtype in (torch.float32, torch.float64), "dtype", dtype, "torch.float32 or torch.float64")
        require(noise in NOISES, "noise", noise, " or ".join(map(repr, NOISES)))
        where = denoiser.device if device is None else torch.device(device)
        ok = dtype == torch.float32 or dtype == widest_float(where)
        require(ok, "dtype", dtype, f"torch.float32 on {where}, which has no float64")
        # At the least the state, noise, and what is predicted:
        size = 3 * math.prod(shape) * dtype.itemsize
        require_memory("shape", tuple(shape), size, "three states", "lower the batch size", where)
        indices = range(first_index, first_index + shape[0])
        start = NoiseStream(seed, indices)
        with torch.no_grad():
            x = start(torch.empty(*shape, device=where, dtype=dtype)) * denoiser.sde.prior_std
            drawn: NoiseFn = BrownianPath(seed, indices) if noise == "brownian" else start
            return self.sample(denoiser, x, drawn, callback=callback, **conditions)

    def sample(
        self,
        denoiser: AbstractDenoiser,
        x: Tensor,
        noise: NoiseFn,
        *,
        callback: Callback | None = None,
        **conditions: Any,
    ) -> SampleResult:
        """Integrate from the state ``x`` (B, *) at the start time with the given noise.

        Args:
            noise: ``noise(x, t, s)`` returns standard normal noise for the step from level ``t`` to ``s``.
            callback, conditions: as of :meth:`draw`.

        Raises:
            InputError: if the state becomes non-finite.
        """
        return self._finish(self.integrate, denoiser, x, noise, callback, conditions)

    def _finish(
        self,
        integrate: Callable[..., Path],
        denoiser: AbstractDenoiser,
        x: Tensor,
        noise: NoiseFn,
        callback: Callback | None,
        conditions: dict[str, Any],
    ) -> SampleResult:
        """Integrate, denoise, count, and refuse what is not finite."""
        asked = denoiser.given(conditions, len(x))
        with counted() as evaluations, evaluating(denoiser):
            path = integrate(asked, x, noise, callback)
            x, times = path.x, path.times
            if self.denoise:
                x = asked(x, float(times[-1])).x0
                times = torch.cat([times, times.new_zeros(1)])
                report(callback, len(path.times), 0.0, x)
        _require_finite(x, path, times, self)
        nfe = evaluations.of_a_sample(len(x))
        each = torch.full((len(x),), nfe)
        if path.needed is not None:  # of evaluations that may each have cost more than one
            needed = (path.needed + self.denoise).to(widest_float(x.device))
            each = needed.mul(nfe / (path.asked + self.denoise)).round().long()
        return SampleResult(x, nfe, each, evaluations.calls, times)


def report(callback: Callback | None, step: int, t: float | Tensor, x: Tensor) -> None:
    """Call a callback, if there is one, with ``t``, a number or (B,), as the times of the samples (B,)."""
    if callback is not None:
        times = (
            t if isinstance(t, Tensor) else torch.full(x.shape[:1], t, dtype=widest_float(x.device), device=x.device)
        )
        callback(step, times, x)


def _require_finite(x: Tensor, path: Path, times: Tensor, sampler: Sampler) -> None:
    """Refuse a state that is or was not finite: one look at the device, and what is known about it if it has to be."""
    last = x.detach().sum().reshape(1)
    trace = last if path.trace is None else torch.cat([path.trace, last])
    bad = ~torch.isfinite(trace)
    if not host_bool(bad.any()):
        return
    if path.trace is not None:
        step = min(int(bad.int().argmax()), len(times) - 2)
        raise InputError(
            f"the state is not finite after step {step + 1} of {len(times) - 1}, from t={float(times[step]):.6g} to "
            f"t={float(times[step + 1]):.6g}, with {sampler}; take more steps or check the network"
        )
    broken = int((~torch.isfinite(x.reshape(x.shape[0], -1)).all(dim=1)).sum())
    why = next((f" (sample {i}: {reason})" for i, reason in path.reasons().items()), "")
    raise InputError(
        f"{broken} of {x.shape[0]} samples are not finite with {sampler}{why}; loosen its tolerances or check the "
        "network"
    )
