"""iPNDM: Adams-Bashforth in σ/α, with fixed coefficients or with those of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.exponential import Node, interpolate, weigh
from samplers.multistep import History, Multistep
from sde_diffusion.errors import require
from sde_diffusion.levels import NoiseLevel

FIXED = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the newest prediction and of those before it, on equal steps."""


@SAMPLERS.register("ipndm")
@dataclass(frozen=True, kw_only=True)
class IPNDM(Multistep):
    """x_s = (α_s/α_t) x_t + α_s (ρ_s − ρ_t) Σ c_j ε̂_j with ρ = σ/α: DDIM with a mean of the last predictions for ε̂.

    Args:
        solver_order: predictions that a step is made of: 1 to 4.
        variable_step: take the c_j of the polynomial in ρ through the predictions where they are. Without, they are
            those of equal steps in ρ, and on another grid the order is 2 at most.

    References:
        L. Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, arXiv:2202.09778, Eqs. 9-12.
        Q. Zhang, Y. Chen, 2023, arXiv:2204.13902, Appendix H.2 (the start by lower orders, "improved"; variable steps
        are their ρAB).
    """

    highest = 4
    reference = "Zhang & Chen 2023, arXiv:2204.13902, App. H.2"

    solver_order: int = 4
    variable_step: bool = False
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.variable_step, bool), "variable_step", self.variable_step, "True or False")

    @property
    def prediction(self) -> str:
        return "eps"

    @property
    def order(self) -> float | None:
        """Fixed coefficients are off by the change of the steps, which leaves 2 at most."""
        return super().order if self.variable_step else min(self.solver_order, 2)

    def place(self, t: NoiseLevel) -> float:
        return cast(float, t.ratio)

    def advance(self, x: Tensor, t: NoiseLevel, s: NoiseLevel, nodes: Sequence[Node], state: History) -> Tensor:
        first = nodes[0][0]
        h = cast(float, s.ratio) - first
        found: Sequence[float] = FIXED[len(nodes) - 1]
        if self.variable_step:
            places = [(place - first) / h for place, _ in nodes]
            found = interpolate([1.0 / (k + 1) for k in range(len(nodes))], places)
        return weigh(x, s.alpha / t.alpha, s.alpha * h, found, nodes)
