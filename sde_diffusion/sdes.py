"""Forward SDEs: two functions of time, α(t) and σ(t), from which everything else follows.

A linear SDE dx = f(t) x dt + g(t) dw carries a point x₀ to a Gaussian, x_t = α(t) x₀ + σ(t) ε with ε ~ N(0, I).
α and σ are the primitives here; the drift and diffusion coefficients

    f = α′/α,    g² = (σ²)′ − 2 f σ²

are given in closed form and tested against the primitives by automatic differentiation. Nothing in this file knows a
step count, a device or a discretisation. σ is always built from ``expm1`` or a product, never from 1 − α²: in float32
that difference has lost 0.6 % of σ at t = 1e-5.

References:
    Y. Song, J. Sohl-Dickstein, D. P. Kingma, A. Kumar, S. Ermon, B. Poole, "Score-Based Generative Modeling through
    Stochastic Differential Equations", 2021, arXiv:2011.13456, Section 3.4 and Appendix B.
    J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239, Section 2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion import levels
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, expand, per_example
from sde_diffusion.registry import Registry

SDES: Registry[SDE] = Registry("sde")
LEAST_BETA = 1e-12
"""The least β of a chain: of less, float64 holds no more than a few digits of what it changes in ᾱ."""


class SDE(ABC):
    """A linear forward SDE on times (0, T], described by α(t) and σ(t).

    Times are tensors of shape () or (B,) (any shape where no state is involved) and results have their shape and
    dtype; float64 is the dtype to prefer. ``t_min`` is the smallest time at which sampling should stop.
    """

    T: float = 1.0
    t_min: float = 1e-3
    smooth: bool = True  # f and g are continuous; a scheme that evaluates them has order 1 at most where they jump
    prior_std: float = 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale α(t) > 0, decreasing or constant."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation σ(t) ≥ 0, such that σ/α increases."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(t) and g(t) of dx = f x dt + g dw."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio λ(t) = log(α²/σ²), strictly decreasing."""
        return 2.0 * (self.alpha(t).log() - self.sigma(t).log())

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which :meth:`log_snr` takes the given value, in its shape and dtype.

        By bisection on (0, T], which serves any SDE; those of this file have closed forms.
        """
        low, high = torch.zeros_like(log_snr), torch.full_like(log_snr, self.T)
        for _ in range(60):  # halves T to below float64 resolution
            middle = 0.5 * (low + high)
            early = self.log_snr(middle) > log_snr
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return 0.5 * (low + high)

    def at(self, t: Number) -> NoiseLevel:
        """Return the noise level at a time: floats for a number or a grid's time, tensors for a time of each sample."""
        return levels.at(self, t)

    def levels(self, times: Tensor) -> list[NoiseLevel]:
        """Return the noise levels of times (N,) on the CPU, computed at once."""
        return levels.on_grid(self, times)

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift f(t) x, shape (B, *), and diffusion g(t), shape of ``t``, of the forward SDE."""
        f, g = self.coefficients(t)
        return expand(f, x) * x, g

    def marginal_prob(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean α(t) x₀, shape (B, *), and standard deviation σ(t), shape of ``t``, of p(x_t | x₀)."""
        return expand(self.alpha(t), x0) * x0, self.sigma(t)

    def prior_sampling(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw x_T ~ N(0, prior_std² I) of the given shape (B, *), float32, on the generator's device."""
        device = generator.device if generator is not None else None
        return self.prior_std * torch.randn(*shape, generator=generator, device=device)

    def prior_logp(self, x: Tensor) -> Tensor:
        """Log density of the prior N(0, prior_std² I) at ``x``: (B, *) → (B,), nats."""
        flat = per_example(x)
        norm = 0.5 * flat.shape[1] * math.log(2.0 * math.pi * self.prior_std**2)
        return -0.5 * (flat / self.prior_std).square().sum(dim=1) - norm


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


class DDPMChain(SDE):
    """The discrete DDPM chain as an exact SDE.

    A rate β(t) that is constant, −N log(1 − β_i), on ((i−1)/N, i/N] gives α(i/N)² = ᾱ_i = Π_{j≤i}(1 − β_j): the chain
    *is* the SDE seen at t = i/N, not its limit. The linear :class:`VPSDE` only approximates it.

    Args:
        betas: β_1 … β_N, each in [1e-12, 1).

    Raises:
        InputError: if ``betas`` is empty or one lies outside [1e-12, 1).

    References:
        Ho et al. 2020, arXiv:2006.11239, Eqs. 2 and 4 and Section 4; Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17.
    """

    smooth = False

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        self.betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu").clone()
        require(self.betas.ndim == 1 and len(self.betas) > 0, "betas", tuple(self.betas.shape), "a non-empty list")
        for i, beta in enumerate(self.betas.tolist(), start=1):
            if not LEAST_BETA <= beta < 1.0:
                raise InputError(f"betas[{i - 1}]={beta!r}: expected every beta in [{LEAST_BETA:g}, 1)")
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.num_train_steps = len(self.betas)
        self.t_min = 1.0 / self.num_train_steps

    @classmethod
    def linear(cls, num_train_steps: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02) -> DDPMChain:
        """DDPM's own schedule: ``num_train_steps`` betas evenly from ``beta_first`` to ``beta_last``."""
        require_int("num_train_steps", num_train_steps, 1)
        return cls(torch.linspace(beta_first, beta_last, num_train_steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, num_train_steps: int = 1000, beta_last: float = 0.999) -> DDPMChain:
        """Improved DDPM's schedule, β_i = 1 − ᾱ_i/ᾱ_{i−1}, clipped at ``beta_last``."""
        require_int("num_train_steps", num_train_steps, 1)
        t = torch.linspace(0.0, 1.0, num_train_steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls((1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp_max(beta_last))

    def __repr__(self) -> str:
        return f"DDPMChain({self.num_train_steps} betas, {self.betas[0]:.3g} … {self.betas[-1]:.3g})"

    @cached_property
    def _log_rates(self) -> Tensor:
        return -torch.log1p(-self.betas)  # −log(1 − β_i) > 0, (N,)

    @cached_property
    def _integrals(self) -> Tensor:
        return torch.cat([self._log_rates.new_zeros(1), self._log_rates.cumsum(0)])  # B(i/N), (N + 1,)

    def _tables(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return B(i/N) and the rates in the dtype and on the device of ``t``, copied there once."""
        key = t.device, t.dtype
        if key not in self._copies:
            self._copies[key] = self._integrals.to(t), self._log_rates.to(t)
        return self._copies[key]

    def _integral(self, t: Tensor) -> Tensor:
        position = t * self.num_train_steps
        index = position.floor().clamp(0, self.num_train_steps - 1)
        i = index.long()
        table, rates = self._tables(t)
        return table[i] + (position - index) * rates[i]

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        integral = F.softplus(-log_snr)
        table, rates = self._tables(integral)
        i = torch.searchsorted(table, integral.contiguous()).clamp(1, self.num_train_steps) - 1
        return (i + (integral - table[i]) / rates[i]) / self.num_train_steps

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # i/N·N may exceed i by rounding; the slack keeps t = i/N in the interval that ends there.
        index = (t * self.num_train_steps - 1e-6).ceil().long().clamp(1, self.num_train_steps) - 1
        rate = self.num_train_steps * self._tables(t)[1][index]
        return -0.5 * rate, rate.sqrt()


@SDES.register("ddpm")
def ddpm_chain(
    schedule: str = "linear",
    num_train_steps: int = 1000,
    beta_first: float = 1e-4,
    beta_last: float = 0.02,
    betas: Sequence[float] = (),
) -> DDPMChain:
    """The DDPM chain for configs: ``schedule`` "linear", "cosine" which needs no betas, or its ``betas`` one by one."""
    if betas:
        return DDPMChain(betas)
    require(schedule in ("linear", "cosine"), "schedule", schedule, "'linear' or 'cosine'")
    if schedule == "cosine":
        return DDPMChain.cosine(num_train_steps)
    return DDPMChain.linear(num_train_steps, beta_first, beta_last)
