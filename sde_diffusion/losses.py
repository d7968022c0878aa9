"""Denoising score matching: times, weightings and the loss of each example.

Vincent's identity makes learning possible: with x_t = α x₀ + σ ε,

    E‖s(x_t) − ∇log p_t(x_t)‖²  and  E‖s(x_t) + ε/σ‖²

differ by a constant only, so a network fitted to the noise is fitted to the score of a density nobody knows. DDPM's
L_simple is this loss with weight σ² (a mean squared error in ε); every weighting here is written as the factor w(t) of

    loss = w(t) · mean over components of (ε̂ − ε)²

and applied in the network's own prediction, where the error is that of ε times a known factor. The four predictions
have therefore the same weighted loss.

References:
    P. Vincent, 2011, Neural Computation 23(7) (the identity). Ho et al. 2020, arXiv:2006.11239, Eqs. 12 and 14. Song et
    al. 2021, arXiv:2011.13456, Eq. 7. Y. Song, C. Durkan, I. Murray, S. Ermon, 2021, arXiv:2101.09258, Sections 4.1
    (likelihood weighting) and 5.1 (importance sampling). T. Hang et al., 2023, arXiv:2303.09556, Section 3.4 (Min-SNR).
    Karras et al. 2022, arXiv:2206.00364, Table 1 and Eq. 8. D. Kingma et al., "Variational Diffusion Models", 2021,
    arXiv:2107.00630, Section 5.1 (the loss depends on the signal-to-noise ratio alone).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require_float, require_int
from sde_diffusion.noise import NoiseStream
from sde_diffusion.ops import mean_per_example
from sde_diffusion.predictions import VIEWS
from sde_diffusion.registry import Registry
from sde_diffusion.sdes import SDE

WEIGHTINGS: Registry[Weighting] = Registry("weighting")
TIMES: Registry[TimeDistribution] = Registry("time distribution")


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
        """Return times and factors, both (B,) float64, for uniform numbers ``u`` (B,) in (0, 1)."""


@TIMES.register("uniform")
@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """t ~ U(t_min, T) (Song et al. 2021, Appendix C)."""

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.t_min + u * (sde.T - self.t_min), torch.ones_like(u)


@TIMES.register("stratified")
@dataclass(frozen=True)
class Stratified(Uniform):
    """Uniform, but one time in each of B equal cells: less variance (cf. Kingma et al. 2021, Appendix I.1)."""

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        return super().__call__(sde, (torch.arange(len(u), device=u.device) + u) / len(u))


@TIMES.register("discrete")
@dataclass(frozen=True)
class Discrete(TimeDistribution):
    """t = i/N with i uniform on 1 … N: the indices of DDPM (Ho et al. 2020, Algorithm 1).

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
    """

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        u = (torch.arange(len(u), device=u.device) + u) / len(u)
        ends = torch.tensor([self.t_min, sde.T], dtype=torch.float64, device=u.device)
        high, low = sde.log_snr(ends).unbind()
        t = sde.time_of_log_snr(high + u * (low - high))
        density = (sde.coefficients(t)[1] / sde.sigma(t)) ** 2 / (high - low)
        return t, 1.0 / (density * (sde.T - self.t_min))


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
        ends = torch.tensor([self.t_min, sde.T], dtype=torch.float64, device=u.device)
        low, high = torch.special.ndtr((-0.5 * sde.log_snr(ends) - self.mean) / self.std).unbind()
        u = low + (high - low) * (torch.arange(len(u), device=u.device) + u) / len(u)
        t = sde.time_of_log_snr(-2.0 * (self.mean + self.std * torch.special.ndtri(u)))
        return t.clamp(self.t_min, sde.T), torch.ones_like(u)


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """The training loss of each example.

    Args:
        times: where the times fall.
        weighting: w(t).
    """

    times: TimeDistribution
    weighting: Weighting

    def __call__(
        self, denoiser: AbstractDenoiser, x0: Tensor, noise: NoiseStream, **conditions: Any
    ) -> tuple[Tensor, Tensor]:
        """Draw a time and a noise for each example.

        Args:
            x0: data, shape (B, *).
            noise: one stream an example.
            conditions: passed on to the denoiser.

        Returns:
            The loss of each example, (B,), whose mean estimates the weighted loss over ``times``, and the times.
        """
        u = noise.uniform(1, x0.device)[:, 0]
        t, factor = self.times(denoiser.sde, u)
        return factor.to(x0) * self.at(denoiser, x0, t, noise(x0), **conditions), t

    def at(self, denoiser: AbstractDenoiser, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return w(t) mean (ε̂ − ε)² of each example, (B,), at given times (B,) and noise (B, *).

        The view w = a x₀ + b ε that the denoiser gives is compared with its target: its error is that of ε times Δ/α,
        Δ = α b − σ a (:mod:`sde_diffusion.predictions`).
        """
        level = denoiser.sde.at(t)
        here = level.like(x0)
        prediction = denoiser(here.alpha * x0 + here.sigma * eps, level, **conditions)
        name, found = next(iter(prediction.given.items()))
        a, b = VIEWS[name](here)
        factor = here.alpha / (here.alpha * b - here.sigma * a)
        error = mean_per_example((factor * (found - (a * x0 + b * eps))).square())
        return self.weighting(denoiser.sde, t).to(x0) * error
