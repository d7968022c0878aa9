"""What a denoiser says of x_t = α x₀ + σ ε: one prediction with several views.

Every view is a combination w = a x₀ + b ε of the two that x determines one another by:

    view       x₀     ε      v = α ε − σ x₀     score = −ε/σ     velocity = α′ x₀ + σ′ ε = dx/dt
    a          1      0      −σ                 0                α′
    b          0      1      α                  −1/σ             σ′

and with x = α x₀ + σ ε each is read from any other: with Δ = α b − σ a,

    x₀ = (b x − σ w)/Δ,    ε = (α w − a x)/Δ.

Where α is 0, as at the end of a rectified flow, Δ of ε and of the score is 0: neither tells x₀. That of x₀ is −σ, of v
α² + σ², and of the velocity α σ′ − α′ σ, which is positive at all times, for σ/α grows.

References:
    P. Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011, Neural Computation 23(7).
    B. Efron, "Tweedie's Formula and Selection Bias", 2011; C. Luo, "Understanding Diffusion Models: A Unified
    Perspective", 2022, arXiv:2208.11970, Eqs. 131-133. v: T. Salimans, J. Ho, 2022, arXiv:2202.00512, Appendix D.
    Velocity: Y. Lipman et al., "Flow Matching for Generative Modeling", 2023, arXiv:2210.02747, Eq. 13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, add_scaled_, combine, divide

VIEWS: dict[str, Callable[[NoiseLevel], tuple[Number, Number]]] = {
    "x0": lambda level: (1.0, 0.0),
    "eps": lambda level: (0.0, 1.0),
    "v": lambda level: (-level.sigma, level.alpha),
    "score": lambda level: (0.0, divide(-1.0, level.sigma)),
    "velocity": lambda level: (level.d_alpha, level.d_sigma),
}
"""The a and b of each view at a level."""


def fold(level: NoiseLevel, known: tuple[Number, Number], wanted: tuple[Number, Number]) -> tuple[Number, Number]:
    """Return p and q such that A x₀ + B ε = p x + q w, for what is known, w = a x₀ + b ε.

    Args:
        known: a and b.
        wanted: A and B.
    """
    (a, b), (wanted_a, wanted_b) = known, wanted
    delta = level.alpha * b - level.sigma * a
    p, q = wanted_a * b - wanted_b * a, wanted_b * level.alpha - wanted_a * level.sigma
    return (p / delta, q / delta) if isinstance(delta, Tensor) or delta else (divide(p, delta), divide(q, delta))


@dataclass(frozen=True, eq=False, init=False)
class Prediction:
    """One prediction at (x, t); its views are computed when they are asked for, each once.

    Args:
        x: the state, (B, *).
        level: the noise level, its numbers floats or shaped like ``x`` (:meth:`NoiseLevel.like`).
        given: the views that are known, by name, (B, *) each. One determines the others. Two, x0 and eps, need not fit
            together: a bound on x₀ may leave ε as it was.
        spread: computes ``variance``, where it is known.
        variance_fraction: a learned range of the reverse variance, (B, *): the weight of log β against log β̃ (Nichol &
            Dhariwal 2021, arXiv:2102.09672, Eq. 15); None where the network tells none.
    """

    x: Tensor
    level: NoiseLevel
    given: Mapping[str, Tensor]
    spread: Callable[[], Tensor] | None
    variance_fraction: Tensor | None

    def __init__(
        self,
        x: Tensor,
        level: NoiseLevel,
        given: Mapping[str, Tensor],
        spread: Callable[[], Tensor] | None = None,
        variance_fraction: Tensor | None = None,
    ) -> None:
        # As of a noise level: there is one of these at every evaluation. The views that are known are there at once.
        self.__dict__.update(x=x, level=level, given=given, spread=spread, variance_fraction=variance_fraction, **given)

    @cached_property
    def x0(self) -> Tensor:
        """The posterior mean E[x₀ | x_t]."""
        return self.view("x0")

    @cached_property
    def eps(self) -> Tensor:
        """The expected noise E[ε | x_t]."""
        return self.view("eps")

    @cached_property
    def v(self) -> Tensor:
        """v = α ε − σ x₀."""
        return self.view("v")

    @cached_property
    def score(self) -> Tensor:
        """The score ∇ log p_t(x) = −ε/σ."""
        return self.view("score")

    @cached_property
    def velocity(self) -> Tensor:
        """The velocity α′ x₀ + σ′ ε of the probability-flow ODE."""
        return self.view("velocity")

    @cached_property
    def variance(self) -> Tensor | None:
        """The diagonal of Cov[x₀ | x_t], (B, *), where it is known; else None."""
        return None if self.spread is None else self.spread()

    def view(self, name: str) -> Tensor:
        """Compute a view by its name in ``VIEWS``."""
        whole: dict[str, Any] = {name: 1.0}
        return self.given[name] if name in self.given else self.combine(**whole)

    def combine(self, *, x: Number = 0.0, onto: Tensor | None = None, **views: Number) -> Tensor:
        """Return a sum of views and of the state, each times the coefficient that is given by its name, (B, *).

        ``p.combine(x=a, score=b)`` is a·x + b·p.score, and takes two passes over memory whatever the network predicts:
        all views are linear in x and the network's output. Multistep schemes keep predictions and add those of before.

        Args:
            x: coefficient of the state.
            onto: a tensor (B, *) that the sum is added to in place, which nobody else may hold, and that is returned.
            views: coefficients of views, by name.
        """
        a: Number = 0.0
        b: Number = 0.0
        for name, factor in views.items():
            of_x0, of_eps = VIEWS[name](self.level)
            a, b = a + factor * of_x0, b + factor * of_eps
        if len(self.given) > 1:
            found = combine(a, self.given["x0"], b, self.given["eps"]) + x * self.x
            return found if onto is None else onto.add_(found)
        name, w = next(iter(self.given.items()))
        p, q = fold(self.level, VIEWS[name](self.level), (a, b))
        if onto is not None:
            return add_scaled_(add_scaled_(onto, x + p, self.x), q, w)
        return combine(x + p, self.x, q, w)

    def lerp(self, other: Prediction, weight: Number) -> Prediction:
        """Return this prediction + ``weight`` · (the other one − this one), of the same x and level.

        Args:
            weight: a float, or a tensor that broadcasts against ``x``; above 1 it extrapolates.
        """
        if self.given.keys() == other.given.keys():
            pairs = {name: (w, other.given[name]) for name, w in self.given.items()}
        else:
            pairs = {"x0": (self.x0, other.x0), "eps": (self.eps, other.eps)}
        return Prediction(self.x, self.level, {name: torch.lerp(*pair, weight) for name, pair in pairs.items()})
