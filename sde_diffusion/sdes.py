"""The SDEs: the continuous ones of the papers, and with them the chain; the contract is in :mod:`sde_diffusion.sde`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion.chain import DDPMChain
from sde_diffusion.errors import require_float
from sde_diffusion.sde import SDE, SDES

__all__ = ["SDE", "SDES", "VESDE", "VPSDE", "CosineVPSDE", "DDPMChain", "FlowSDE", "SubVPSDE"]


class _LinearRate(SDE):
    """Shared by VP and sub-VP: β(t) = β_min + t (β_max − β_min) and its integral B(t)."""

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        require_float("beta_min", self.beta_min, 0.0)
        require_float("beta_max", self.beta_max, self.beta_min, open_low=self.beta_min == 0.0)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2.0 * integral / (self.beta_min + (self.beta_min**2 + 2.0 * slope * integral).sqrt())

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))


@SDES.register("vp")
@dataclass(frozen=True)
class VPSDE(_LinearRate):
    """Variance-preserving SDE, the continuous limit of DDPM.

    dx = −½ β(t) x dt + √β(t) dw,  α = exp(−½ B),  σ² = 1 − exp(−B),  B(t) = ∫₀ᵗ β.

    Args:
        beta_min: β(0) ≥ 0.
        beta_max: β(1) ≥ ``beta_min``.

    References:
        Song et al. 2021, arXiv:2011.13456, Eqs. 11, 32 and 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._time_of_integral(F.softplus(-log_snr))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self._beta(t)
        return -0.5 * beta, beta.sqrt()


@SDES.register("subvp")
@dataclass(frozen=True)
class SubVPSDE(_LinearRate):
    """Sub-variance-preserving SDE: the VP mean with a smaller variance; here α² + σ² ≠ 1.

    dx = −½ β(t) x dt + √(β(t) (1 − e^{−2B})) dw,  α = exp(−½ B),  σ = 1 − exp(−B).

    Args:
        beta_min: β(0) ≥ 0.
        beta_max: β(1) ≥ ``beta_min``.

    References:
        Song et al. 2021, arXiv:2011.13456, Eqs. 12 and 29 and Appendix B.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._time_of_integral(2.0 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self._beta(t)
        return -0.5 * beta, (beta * -torch.expm1(-2.0 * self._integral(t))).sqrt()


@SDES.register("ve")
@dataclass(frozen=True)
class VESDE(SDE):
    """Variance-exploding SDE, the continuous limit of NCSN's noise levels.

    dx = σ(t) √(2 log(σ_max/σ_min)) dw,  α = 1,  σ = σ_min (σ_max/σ_min)^t. The prior is N(0, σ_max² I).

    Args:
        sigma_min: σ(0) > 0.
        sigma_max: σ(1) > ``sigma_min``; about the largest distance between two data points (Song & Ermon 2020,
            arXiv:2006.09011, Technique 1).

    References:
        Song et al. 2021, arXiv:2011.13456, Eqs. 9, 30 and 31.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min = 1e-5

    def __post_init__(self) -> None:
        require_float("sigma_min", self.sigma_min, 0.0, open_low=True)
        require_float("sigma_max", self.sigma_max, self.sigma_min, open_low=True)

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        return self.sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.sigma(t) * math.sqrt(2.0 * self._log_ratio)


@SDES.register("cosine")
@dataclass(frozen=True)
class CosineVPSDE(SDE):
    """Variance-preserving SDE with the cosine schedule of improved DDPM.

    α(t) = cos θ(t)/cos θ(0),  θ(t) = (π/2)(t + offset)/(1 + offset),  σ² = sin(θ − θ₀) sin(θ + θ₀)/cos² θ₀ = 1 − α².
    α reaches 0 at t = 1 where the drift is infinite, hence T < 1.

    Args:
        offset: the small shift that keeps β from vanishing at t = 0.
        T: the last time, below 1.

    References:
        A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672, Eq. 17.
        T = 0.9946 as in C. Lu et al., "DPM-Solver", 2022, arXiv:2206.00927.
    """

    offset: float = 0.008
    T: float = 0.9946

    def __post_init__(self) -> None:
        require_float("offset", self.offset, 0.0)
        require_float("T", self.T, 0.0, 0.9999, open_low=True, remedy="the drift is infinite at 1")

    @property
    def _theta_0(self) -> float:
        return 0.5 * math.pi * self.offset / (1.0 + self.offset)

    def _theta(self, t: Tensor) -> Tensor:
        return (t + self.offset) * (0.5 * math.pi / (1.0 + self.offset))

    def alpha(self, t: Tensor) -> Tensor:
        return self._theta(t).cos() / math.cos(self._theta_0)

    def sigma(self, t: Tensor) -> Tensor:
        gap = t * (0.5 * math.pi / (1.0 + self.offset))  # θ − θ₀ without cancellation
        return (gap.sin() * (gap + 2.0 * self._theta_0).sin()).sqrt() / math.cos(self._theta_0)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        cos_0, sin_0 = math.cos(self._theta_0), math.sin(self._theta_0)
        cos, sin = (log_snr.sigmoid() * cos_0**2).sqrt(), ((-log_snr).sigmoid() * cos_0**2 + sin_0**2).sqrt()
        return torch.atan2(sin, cos) * ((1.0 + self.offset) / (0.5 * math.pi)) - self.offset

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        half_beta = self._theta(t).tan() * (0.5 * math.pi / (1.0 + self.offset))
        return -half_beta, (2.0 * half_beta).sqrt()


@SDES.register("flow")
@dataclass(frozen=True)
class FlowSDE(SDE):
    """Rectified flow: straight lines from data at t = 0 to noise at T = 1, where nothing of the data is left.

    α = 1 − t,  σ = t,  hence  f = −1/(1 − t),  g² = 2t/(1 − t),  velocity ε − x₀.

    The prior N(0, I) is exact at T, where f and g are infinite: what needs them, or 1/α, starts at ``t_max`` = 0.999.
    (The papers' clocks run the other way.)

    References:
        X. Liu, C. Gong, Q. Liu, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        2023, arXiv:2209.03003, Eq. 1. Y. Lipman, R. Chen, H. Ben-Hamu, M. Nickel, M. Le, "Flow Matching for Generative
        Modeling", 2023, arXiv:2210.02747, Section 4.1, Example II with σ_min = 0. M. Albergo, E. Vanden-Eijnden,
        "Building Normalizing Flows with Stochastic Interpolants", 2023, arXiv:2209.15571.
    """

    t_max = 0.999

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr).sigmoid()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -1.0 / (1.0 - t), (2.0 * t / (1.0 - t)).sqrt()
