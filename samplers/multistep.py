"""Multistep exponential integrators: what predictors and correctors of the Adams kind have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from samplers.exponential import Node, advance, half_log_snr, noise_std, single_step, stages
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require, require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import add_scaled_
from sde_diffusion.types import NoiseFn

STARTS = ("paper", "single_step")
FEW = 15
"""Steps below which the last ones are of lower order, as in the code of DPM-Solver's authors."""


@dataclass(frozen=True, eq=False)
class Taken:
    """A step that a corrector may take again.

    Attributes:
        t: the level that it began at.
        x: the state there, (B, *).
        noise: what was added, (B, *); None on the ODE.
        order: predictions that it was made of.
    """

    t: NoiseLevel
    x: Tensor
    noise: Tensor | None
    order: int


@dataclass(frozen=True, eq=False)
class History:
    """What a multistep scheme remembers.

    Attributes:
        left: steps yet to be taken, the denoising step among them.
        few: whether the last steps are to be of lower order.
        nodes: predictions, the newest first.
        last: the step before, for a corrector.
        start: levels within the first steps, of a start by single steps.
    """

    left: int
    few: bool
    nodes: tuple[Node, ...] = ()
    last: Taken | None = None
    start: tuple[Sequence[NoiseLevel], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Multistep(GridSampler[History]):
    """A polynomial through the predictions of the steps before (:mod:`samplers.exponential`), one evaluation a step.

    Args:
        solver_order: number of predictions that a step is made of ≥ 1.
        start: how the first ones are come by: "paper", by steps of lower order, which leave order 2 at most, 3 with a
            corrector; or "single_step", by Runge-Kutta steps of one order less than the whole with stages of their own.
        lower_order_final: below 15 steps, E[x₀ | x] among them, the last has order 1 and the one before it 2 at most.
    """

    nfe_per_step = 1
    highest: ClassVar[int] = 3

    grid: str = "log_snr"
    solver_order: int = 2
    start: str = "paper"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("solver_order", self.solver_order, 1)
        require(self.solver_order <= self.highest, "solver_order", self.solver_order, f"1 to {self.highest}")
        require(self.start in STARTS, "start", self.start, "'paper' or 'single_step'")
        flag = self.lower_order_final
        require(isinstance(flag, bool), "lower_order_final", flag, "True or False")

    @property
    def prediction(self) -> str:
        """What is taken for a polynomial: "x0" or "eps"."""
        return "x0"

    @property
    def from_pure_noise(self) -> bool:
        """With x₀; but stages within the first step need its length in λ, which is infinite there."""
        return self.prediction == "x0" and self.start == "paper"

    @property
    def noise_strength(self) -> float:
        """τ: 0 for the ODE, 1 for the reverse SDE."""
        return 0.0

    @property
    def two_node_rule(self) -> str:
        """How two nodes are weighed (:data:`samplers.exponential.RULES`)."""
        return "exact"

    def corrector_nodes(self, order: int) -> int:
        """Return how many predictions a corrector makes a step of, the one at its end among them; 0 for none."""
        return 0

    @property
    def intervals(self) -> int:
        """Steps along the grid."""
        return self.num_steps - self.denoise

    @property
    def full_order(self) -> int:
        """The order of a step whose predecessors were exact."""
        return self.solver_order

    @property
    def order(self) -> float | None:
        """2 at most with noise, and what the steps at the start leave: a lower one of local order 2, corrected 3."""
        if self.stochastic:
            return min(self.full_order, 2)
        left = 3 if self.corrector_nodes(1) > 1 else 2
        return min(self.full_order, left) if self.start == "paper" else self.full_order

    @property
    def stochastic(self) -> bool:
        return self.noise_strength > 0.0

    @property
    def start_nfe(self) -> int:
        steps = min(self.solver_order - 1, self.intervals) if self.start == "single_step" else 0
        return steps * max(self.full_order - 2, 0)

    def init(self, denoiser: AbstractDenoiser, x: Tensor, levels: Sequence[NoiseLevel]) -> History:
        left = len(levels) - 1 + self.denoise
        early = levels[: self.solver_order] if self.start == "single_step" else []
        start = tuple(stages(denoiser, t, s, self.full_order - 1) for t, s in pairwise(early))
        return History(left, self.lower_order_final and left < FEW, start=start)

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: History, noise: NoiseFn
    ) -> tuple[Tensor, History]:
        node = self.place(t), denoiser(x, t).view(self.prediction)
        x = self._correct(x, t, node, state)
        nodes = (node, *state.nodes[: self.solver_order - 1])
        order = min(len(nodes), state.left) if state.few else len(nodes)
        if state.start:
            new = single_step(denoiser, self.prediction, x, t, s, node[1], state.start[0])
        else:
            new = self.advance(x, t, s, nodes[:order], state)
        z = None
        if self.stochastic:
            z = noise(x, t, s) * noise_std(self.prediction, t, s, self.noise_strength)
            new += z
        corrected = self.corrector_nodes(order) > 0 and not state.start
        last = Taken(t, x, z, order) if corrected else None
        return new, replace(state, left=state.left - 1, nodes=nodes, last=last, start=state.start[1:])

    def place(self, t: NoiseLevel) -> float:
        """Return where a prediction lies that a polynomial goes through: λ."""
        return half_log_snr(t)

    def advance(self, x: Tensor, t: NoiseLevel, s: NoiseLevel, nodes: Sequence[Node], state: History) -> Tensor:
        """Return x_s without its noise, from predictions by :meth:`place`, of which the first is at ``t``."""
        return advance(self.prediction, x, t, s, nodes, self.noise_strength, self.two_node_rule)

    def _correct(self, x: Tensor, t: NoiseLevel, node: Node, state: History) -> Tensor:
        """Take the step that led to ``x`` again, now that it is known what is predicted at its end."""
        last = state.last
        if last is None:
            return x
        past = state.nodes[: self.corrector_nodes(last.order) - 1]
        better = self.advance(last.x, last.t, t, (*past[:1], node, *past[1:]), state)
        return better if last.noise is None else add_scaled_(better, 1.0, last.noise)
