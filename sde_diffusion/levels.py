"""A noise level: the numbers of one time of an SDE, x_t = α x₀ + σ ε, as formulas want them.

On a grid they are Python floats, all of them computed at once (:func:`on_grid`); for a time of each sample they are
float64 tensors, and :meth:`NoiseLevel.like` casts and shapes them to a state. A formula reads the same for both:

    s.alpha * p.x0 + s.sigma * p.eps
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.ops import Number, divide, expm1, like, sqrt, widest_float

if TYPE_CHECKING:
    from sde_diffusion.sde import SDE


class Rates(NamedTuple):
    """f and g of dx = f x dt + g dw, and the slopes α′ and σ′."""

    f: Number
    g: Number
    d_alpha: Number
    d_sigma: Number


@dataclass(frozen=True, eq=False, init=False)
class NoiseLevel:
    """One time and what belongs to it; all numbers are floats, or tensors of one shape.

    Attributes:
        t: the time.
        alpha, sigma: of x_t = α x₀ + σ ε.
        log_snr: λ = log(α²/σ²); +∞ where σ is 0, −∞ where α is.
        rates: returns the rates, which few formulas need and are computed once, when the first is asked for.
    """

    t: Number
    alpha: Number
    sigma: Number
    log_snr: Number
    rates: Callable[[], Rates] = field(repr=False)

    def __init__(self, t: Number, alpha: Number, sigma: Number, log_snr: Number, rates: Callable[[], Rates]) -> None:
        # Not by the dataclass, whose way round its own lock costs a microsecond, at every step.
        self.__dict__.update(t=t, alpha=alpha, sigma=sigma, log_snr=log_snr, rates=rates)

    @property
    def f(self) -> Number:
        """Drift coefficient f = α′/α."""
        return self.rates().f

    @property
    def g(self) -> Number:
        """Diffusion coefficient g, g² = (σ²)′ − 2 f σ²."""
        return self.rates().g

    @property
    def d_alpha(self) -> Number:
        """Slope α′ = f α, finite where α is 0."""
        return self.rates().d_alpha

    @property
    def d_sigma(self) -> Number:
        """Slope σ′ = f σ + g²/(2σ), finite where α is 0."""
        return self.rates().d_sigma

    @property
    def radius(self) -> Number:
        """r = √(α² + σ²), the size of a state of unit data."""
        return sqrt(self.alpha**2 + self.sigma**2)

    @property
    def ratio(self) -> Number:
        """ρ = σ/α, the noise in units of the signal; ∞ where α is 0."""
        return divide(self.sigma, self.alpha)

    def like(self, x: Tensor) -> NoiseLevel:
        """Return the level as formulas with ``x`` (B, *) need it: tensors in its dtype, on its device, (B, 1, …, 1)."""
        if not isinstance(self.t, Tensor):
            return self
        t, alpha, sigma, log_snr = (like(number, x) for number in (self.t, self.alpha, self.sigma, self.log_snr))
        return NoiseLevel(t, alpha, sigma, log_snr, cache(lambda: Rates(*(like(number, x) for number in self.rates()))))


def _numbers(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return α, σ and λ."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha, sigma, 2.0 * (alpha.log() - sigma.log())


def _rates(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return f, g, α′ and σ′."""
    return *sde.coefficients(t), *sde.slopes(t)


class _GridRates:
    """The rates of a whole grid, computed when the first of them is asked for."""

    def __init__(self, sde: SDE, t: Tensor) -> None:
        self._sde, self._t = sde, t

    @cached_property
    def _table(self) -> list[Rates]:
        columns = (column.tolist() for column in _rates(self._sde, self._t))
        return [Rates(*row) for row in zip(*columns, strict=True)]

    def of(self, row: int) -> Callable[[], Rates]:
        return lambda: self._table[row]


def on_grid(sde: SDE, times: Tensor) -> list[NoiseLevel]:
    """Return the levels of times (N,) on the CPU, their numbers floats, by one computation for all."""
    clock = times.detach().to(torch.float64)
    rates = _GridRates(sde, clock)
    columns = (clock, *_numbers(sde, clock))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [NoiseLevel(t, alpha, sigma, snr, rates.of(i)) for i, (t, alpha, sigma, snr) in enumerate(rows)]


def at(sde: SDE, t: Number) -> NoiseLevel:
    """Return the level of a time.

    Args:
        t: a number, or a 0-dimensional tensor on the CPU: the level's numbers are floats; or a tensor of times (B,), or
            one that needs a gradient: they are tensors of its shape in float64 (float32 on MPS), on its device.
    """
    if not isinstance(t, Tensor) or (t.ndim == 0 and t.device.type == "cpu" and not t.requires_grad):
        return on_grid(sde, torch.as_tensor(t, dtype=torch.float64).reshape(1))[0]
    t = t.to(widest_float(t.device))
    alpha, sigma, log_snr = _numbers(sde, t)
    return NoiseLevel(t, alpha, sigma, log_snr, cache(lambda: Rates(*_rates(sde, t))))


def transition(t: NoiseLevel, s: NoiseLevel) -> tuple[Number, Number]:
    """Return α_{t|s} and σ²_{t|s} of the forward transition p(x_t | x_s) for s ≤ t, for every linear SDE.

    α_{t|s} = α_t/α_s and σ²_{t|s} = σ_t² − α_{t|s}² σ_s² = −σ_t² expm1(λ_t − λ_s), without cancellation.
    """
    return divide(t.alpha, s.alpha), -(t.sigma**2) * expm1(t.log_snr - s.log_snr)
