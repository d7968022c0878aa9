"""UniPC: a multistep predictor, and a corrector that costs no evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from samplers.base import SAMPLERS
from samplers.exponential import FORMS
from samplers.multistep import Multistep
from sde_diffusion.errors import require

VARIANTS = {"bh1": "bh1", "bh2": "midpoint"}


@SAMPLERS.register("unipc")
@dataclass(frozen=True, kw_only=True)
class UniPC(Multistep):
    """UniP-p predicts the state at s; what is then evaluated there lets UniC-p correct it, one order higher.

    Its linear systems are those of the polynomial through p predictions, and p + 1: exponential Adams-Bashforth and
    Adams-Moulton. In first and second order B(h) takes the place of an integral.

    Args:
        solver_order: p: 1, 2 or 3.
        form: "x0" or "eps": what is taken for a polynomial.
        variant: "bh1", B(h) = h, or "bh2", B(h) = eʰ − 1.
        corrector: whether to correct.

    References:
        W. Zhao et al., "UniPC", 2023, arXiv:2302.04867, Algorithms 1 and 2, Eqs. 5 to 9.
    """

    reference = "Zhao et al. 2023, arXiv:2302.04867, Alg. 1-2"

    form: str = "x0"
    variant: str = "bh2"
    corrector: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.form in FORMS, "form", self.form, "'x0' or 'eps'")
        require(self.variant in VARIANTS, "variant", self.variant, "'bh1' or 'bh2'")
        require(isinstance(self.corrector, bool), "corrector", self.corrector, "True or False")

    @property
    def prediction(self) -> str:
        return self.form

    @property
    def two_node_rule(self) -> str:
        return VARIANTS[self.variant]

    def corrector_nodes(self, order: int) -> int:
        return order + 1 if self.corrector else 0

    @property
    def full_order(self) -> int:
        return self.solver_order + self.corrector
