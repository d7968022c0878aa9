"""DPM-Solver and DPM-Solver++: exponential integrators of orders 1 to 3, multistep and single-step, ODE and SDE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.exponential import FORMS, Node, advance, half_log_snr
from samplers.multistep import History, Multistep
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require, require_float
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.types import NoiseFn

METHODS, RULES = ("multistep", "singlestep"), ("midpoint", "exact")


@dataclass(frozen=True, eq=False, kw_only=True)
class Group(History):
    """Where a single step is that takes several intervals of the grid.

    Attributes:
        nodes: predictions within it, the oldest first.
        t, x: level and state that it began at.
        size: how many intervals it takes.
    """

    t: NoiseLevel
    x: Tensor
    size: int = 0


@SAMPLERS.register("dpm_solver")
@dataclass(frozen=True, kw_only=True)
class DPMSolver(Multistep):
    """The prediction as a polynomial in λ = ½ log SNR (:mod:`samplers.exponential`), one evaluation a step.

    "multistep" goes on from the predictions of the steps before (2M, 3M). "singlestep" takes ``solver_order`` intervals
    of the grid for the stages of one Runge-Kutta step, and for the last one what is left (2S, 3S; r₁ is ½, r₁ and r₂
    are ⅓ and ⅔ on a grid of equal steps in log SNR).

    Args:
        solver_order: 1, 2 or 3.
        form: "x0", DPM-Solver++, or "eps", DPM-Solver.
        method: "multistep" or "singlestep".
        tau: τ ≥ 0, the noise of "multistep": 0 for the ODE, 1 for the reverse SDE (2M SDE, 3M SDE).
        rule: "midpoint", the papers': in second order the slope counts as at the step's middle, and 3S ends by the
            nodes at 0 and ⅔ alone; or "exact", of the polynomial through all nodes.
        start, lower_order_final: of "multistep".

    References:
        Lu et al. 2022, arXiv:2206.00927, Eqs. 3.3 and 3.4 and Algorithms 1 and 2; Lu et al. 2022, arXiv:2211.01095,
        Algorithms 1 and 2 and, of the SDE, Appendix C.
    """

    reference = "Lu et al. 2022, arXiv:2211.01095, Alg. 2"

    form: str = "x0"
    method: str = "multistep"
    tau: float = 0.0
    rule: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("form", FORMS), ("method", METHODS), ("rule", RULES)):
            value = getattr(self, name)
            require(value in known, name, value, " or ".join(map(repr, known)))
        require_float("tau", self.tau, 0.0)
        single = self.method == "singlestep"
        require(not (single and self.tau), "tau", self.tau, "0 with method 'singlestep'", "take 'multistep'")
        no_start = "'paper' with method 'singlestep', which needs no other start"
        require(not (single and self.start != "paper"), "start", self.start, no_start)

    @property
    def prediction(self) -> str:
        return self.form

    @property
    def noise_strength(self) -> float:
        return self.tau

    @property
    def two_node_rule(self) -> str:
        return self.rule

    @property
    def order(self) -> float | None:
        """Of single steps ``solver_order``, but 2 where the stages of 3 are not at thirds, or one interval is left."""
        if self.method == "multistep":
            return super().order
        thirds = self.grid == "log_snr" and self.intervals % 3 != 1
        return self.solver_order if self.solver_order < 3 or thirds else 2

    def init(self, denoiser: AbstractDenoiser, x: Tensor, levels: Sequence[NoiseLevel]) -> History:
        if self.method == "multistep":
            return super().init(denoiser, x, levels)
        return Group(len(levels) - 1, few=False, t=levels[0], x=x)

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: History, noise: NoiseFn
    ) -> tuple[Tensor, History]:
        if not isinstance(state, Group):
            return super().step(denoiser, x, t, s, state, noise)
        if len(state.nodes) == state.size:
            state = replace(state, nodes=(), t=t, x=x, size=min(self.solver_order, state.left))
        nodes = (*state.nodes, (half_log_snr(t), denoiser(x, t).view(self.form)))
        return self._within(state, s, nodes), replace(state, left=state.left - 1, nodes=nodes)

    def _within(self, state: Group, s: NoiseLevel, nodes: Sequence[Node]) -> Tensor:
        """Go from the beginning of a single step to a stage or to its end."""
        if self.solver_order < 3:
            return advance(self.form, state.x, state.t, s, nodes, rule=self.rule)
        ends = self.rule == "midpoint" and len(nodes) == 3
        return advance(self.form, state.x, state.t, s, nodes[::2] if ends else nodes)
