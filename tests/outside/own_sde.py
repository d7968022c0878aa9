"""An SDE of one's own: the straight line from data to noise in the variance-preserving plane, α = 1 − t."""

from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.errors import require_float
from sde_diffusion.sdes import SDE, SDES


@SDES.register("own_sde")
@dataclass(frozen=True)
class StraightVP(SDE):
    """α = 1 − t, σ = √(t (2 − t)): α² + σ² = 1."""

    T: float = 0.995

    def __post_init__(self) -> None:
        require_float("T", self.T, 0.0, 0.9999, open_low=True)

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        return (t * (2.0 - t)).sqrt()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        f = -1.0 / (1.0 - t)
        return f, (-2.0 * f).sqrt()
