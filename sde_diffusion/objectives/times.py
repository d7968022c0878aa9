"""Time distributions: where the times of training fall.

References:
    Ho et al. 2020, arXiv:2006.11239, Algorithm 1. Y. Song, C. Durkan, I. Murray, S. Ermon, 2021, arXiv:2101.09258,
    Section 5.1 (importance sampling). Karras et al. 2022, arXiv:2206.00364, Table 1. D. Kingma et al., "Variational
    Diffusion Models", 2021, arXiv:2107.00630, Section 5.1 (the loss depends on the signal-to-noise ratio alone).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require_float, require_int
from sde_diffusion.registry import Registry
from sde_diffusion.sde import SDE

TIMES: Registry[TimeDistribution] = Registry("time distribution")


@dataclass(frozen=True)
class TimeDistribution(ABC):
    """Where training times fall on [t_min, T], and the factor of their losses.

    The factor makes the mean that of uniform times, but for a distribution that says otherwise.

    Args:
        t_min: the smallest time > 0.
    """

    t_min: float = 1e-5

    def __post_init__(self) -> None:
        require_float("t_min", self.t_min, 0.0, 1.0, open_low=True)

    @abstractmethod
    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return times and factors, both (B,), for uniform numbers ``u`` (B,) in (0, 1), in their dtype."""


@TIMES.register("uniform")
@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """t ~ U(t_min, T) (Song et al. 2021, Appendix C)."""

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        return (self.t_min + u * (sde.T - self.t_min)).clamp_max(sde.T), torch.ones_like(u)


@TIMES.register("stratified")
@dataclass(frozen=True)
class Stratified(Uniform):
    """Uniform, but one time in each of B equal cells: less variance (cf. Kingma et al. 2021, Appendix I.1)."""

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        return super().__call__(sde, (torch.arange(len(u), device=u.device) + u) / len(u))


@TIMES.register("discrete")
@dataclass(frozen=True)
class Discrete(TimeDistribution):
    """t = T i/N with i uniform on 1 … N: the indices of DDPM (Ho et al. 2020, Algorithm 1).

    Args:
        num_train_steps: N.
    """

    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("num_train_steps", self.num_train_steps, 1)

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        return (u * self.num_train_steps).floor().add(1.0) / self.num_train_steps * sde.T, torch.ones_like(u)


@TIMES.register("importance")
@dataclass(frozen=True)
class Importance(TimeDistribution):
    """Density proportional to the likelihood weighting g²/σ², stratified.

    For every linear SDE d log SNR/dt = −g²/σ², so these are times uniform in the log signal-to-noise ratio, and with
    the likelihood weighting each contributes the same factor (Song, Durkan et al., Section 5.1; Kingma et al. 2021).
    Where α is 0 at T, and log SNR −∞, they end at the SDE's ``t_max``.
    """

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        u = (torch.arange(len(u), device=u.device) + u) / len(u)
        high, low = _log_snr(sde, self.t_min, sde.t_max).tolist()
        t = sde.time_of_log_snr(high + u * (low - high)).clamp(self.t_min, sde.t_max)
        density = (sde.coefficients(t)[1] / sde.sigma(t)) ** 2 / (high - low)
        return t, 1.0 / (density * (sde.t_max - self.t_min))


@TIMES.register("log_normal")
@dataclass(frozen=True)
class LogNormal(TimeDistribution):
    """log(σ/α) ~ N(mean, std²) between t_min and T, stratified; for sample quality from little training.

    Alone among these its factor is 1: its density is part of the weighting, which so leaves alone what is nearly data
    and what is nearly noise.

    Args:
        mean, std: of log(σ/α); Karras et al. take −1.2 and 1.2 for data of standard deviation ½.

    References:
        Karras et al. 2022, arXiv:2206.00364, Table 1 and Section 5.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_float("mean", self.mean)
        require_float("std", self.std, 0.0, open_low=True)

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        ends = _log_snr(sde, self.t_min, sde.T)
        low, high = torch.special.ndtr((-0.5 * ends - self.mean) / self.std).tolist()
        u = low + (high - low) * (torch.arange(len(u), device=u.device) + u) / len(u)
        t = sde.time_of_log_snr(-2.0 * (self.mean + self.std * torch.special.ndtri(u)))
        return t.clamp(self.t_min, sde.T), torch.ones_like(u)


def _log_snr(sde: SDE, *times: float) -> Tensor:
    """Return log SNR of a few times, on the CPU, where there is float64 whatever the device has."""
    return sde.log_snr(torch.tensor(times, dtype=torch.float64))
