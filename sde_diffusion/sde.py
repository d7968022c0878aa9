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

import torch
from torch import Tensor

from sde_diffusion import levels
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, expand, per_example
from sde_diffusion.registry import Registry

SDES: Registry[SDE] = Registry("sde")


class SDE(ABC):
    """A linear forward SDE on times (0, T], described by α(t) and σ(t).

    Times are tensors of shape () or (B,) (any shape where no state is involved) and results have their shape and
    dtype; float64 is the dtype to prefer. ``t_min`` is the smallest time at which sampling should stop. Where α reaches
    0 at T, f, g and 1/α are infinite there: ``t_max`` is then a time before T up to which formulas may use them, and
    :meth:`slopes` are written in closed form.
    """

    T: float = 1.0
    t_min: float = 1e-3
    smooth: bool = True  # f and g are continuous; a scheme that evaluates them has order 1 at most where they jump
    prior_std: float = 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale α(t) > 0, decreasing or constant; it may be 0 at T."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation σ(t) ≥ 0, such that σ/α increases."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(t) and g(t) of dx = f x dt + g dw."""

    @property
    def t_max(self) -> float:
        """The last time at which f, g and 1/α are used; T unless α is 0 there."""
        return self.T

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α′ = f α and σ′ = f σ + g²/(2σ), from the left where they jump."""
        (f, g), sigma = self.coefficients(t), self.sigma(t)
        return f * self.alpha(t), f * sigma + g**2 / (2.0 * sigma)

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
