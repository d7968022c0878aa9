"""SA-Solver: stochastic Adams methods, predictor and corrector."""

from __future__ import annotations

from dataclasses import dataclass

from samplers.base import SAMPLERS
from samplers.multistep import Multistep
from sde_diffusion.errors import require, require_float, require_int


@SAMPLERS.register("sa_solver")
@dataclass(frozen=True, kw_only=True)
class SASolver(Multistep):
    """An SDE of any strength τ by a multistep predictor, whose step is taken again with the same noise.

    Args:
        solver_order: predictions that the predictor goes through: 1, 2 or 3.
        corrector_order: those of the corrector, the one at the step's end among them; 0 leaves it out.
        tau: τ ≥ 0: 0 for the ODE, 1 for the reverse SDE.

    References:
        S. Xue et al., "SA-Solver", 2023, arXiv:2309.05019, Algorithm 1, Eqs. 14 and 17.
    """

    reference = "Xue et al. 2023, arXiv:2309.05019, Alg. 1"

    corrector_order: int = 2
    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("corrector_order", self.corrector_order, 0)
        require(self.corrector_order <= 4, "corrector_order", self.corrector_order, "0 to 4")
        require_float("tau", self.tau, 0.0)

    @property
    def noise_strength(self) -> float:
        return self.tau

    def corrector_nodes(self, order: int) -> int:
        return min(self.corrector_order, order + 1)

    @property
    def full_order(self) -> int:
        return min(self.corrector_order, self.solver_order + 1) if self.corrector_order else self.solver_order
