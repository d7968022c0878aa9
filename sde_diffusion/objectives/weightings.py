"""Weightings: the factor w(t) of the mean squared error in ε.

References:
    Ho et al. 2020, arXiv:2006.11239, Eqs. 12 and 14. Song et al. 2021, arXiv:2011.13456, Eq. 7. Y. Song, C. Durkan,
    I. Murray, S. Ermon, 2021, arXiv:2101.09258, Section 4.1 (likelihood weighting). T. Hang et al., 2023,
    arXiv:2303.09556, Section 3.4 (Min-SNR). Karras et al. 2022, arXiv:2206.00364, Table 1 and Eq. 8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require_float
from sde_diffusion.registry import Registry
from sde_diffusion.sde import SDE

WEIGHTINGS: Registry[Weighting] = Registry("weighting")


class Weighting(ABC):
    """The factor w(t) of the mean squared error in ε."""

    @abstractmethod
    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """Return w at times ``t``, in their shape."""


@WEIGHTINGS.register("simple")
@dataclass(frozen=True)
class Simple(Weighting):
    """w = 1: DDPM's L_simple (Ho et al. 2020, Eq. 14)."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@WEIGHTINGS.register("likelihood")
@dataclass(frozen=True)
class Likelihood(Weighting):
    """w = g²/σ²: weight g² on the score's error, which bounds the likelihood (Song, Durkan et al., Section 4.1)."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return (sde.coefficients(t)[1] / sde.sigma(t)) ** 2


@WEIGHTINGS.register("min_snr")
@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(SNR, γ)/SNR: weight min(SNR, γ) on the error of x₀ (Hang et al. 2023).

    Args:
        gamma: γ > 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        require_float("gamma", self.gamma, 0.0, open_low=True)

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return (self.gamma * torch.exp(-sde.log_snr(t))).clamp_max(1.0)


@WEIGHTINGS.register("edm")
@dataclass(frozen=True)
class EDM(Weighting):
    """w = (ρ² + σ_d²)/σ_d² with ρ = σ/α: weight (ρ² + σ_d²)/(ρ σ_d)² on the error of x₀ (Karras et al. 2022).

    Args:
        sigma_data: σ_d > 0, standard deviation of the data.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require_float("sigma_data", self.sigma_data, 0.0, open_low=True)

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return 1.0 + torch.exp(-sde.log_snr(t)) / self.sigma_data**2
