"""Annealed Langevin dynamics, the sampler of NCSN: Langevin steps at ever smaller noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.correctors import LangevinCorrector
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.sde import SDE
from sde_diffusion.types import NoiseFn


@SAMPLERS.register("langevin")
@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(GridSampler[None]):
    """``corrector_steps`` Langevin steps at every time of the grid: predictor-corrector without a predictor.

    Args:
        corrector_steps: Langevin steps at each noise level ≥ 1.
        snr, step_rule: as for the Langevin corrector of "pc". With no predictor the steps also carry the state from
            one noise level to the next, hence the larger default.

    References:
        Y. Song, S. Ermon, 2019, arXiv:1907.05600, Algorithm 1; as a corrector-only sampler, Song et al. 2021,
        arXiv:2011.13456, Section 4.2.
    """

    order = 1
    stochastic = True
    reference = "Song & Ermon 2019, arXiv:1907.05600, Alg. 1"

    grid: str = "log_snr"
    corrector_steps: int = 1
    snr: float = 0.5
    step_rule: str = "sigma"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("corrector_steps", self.corrector_steps, 1)
        self._corrector  # noqa: B018  (refuses bad options)

    @cached_property
    def _corrector(self) -> LangevinCorrector:
        return LangevinCorrector(self.snr, self.step_rule)

    @property
    def nfe_per_step(self) -> int | None:
        return self.corrector_steps

    def limit_variance(self, sde: SDE, t: float, variance: float) -> float:
        return self._corrector.limit_variance(sde, t, variance)

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
    ) -> tuple[Tensor, None]:
        for _ in range(self.corrector_steps):
            x = self._corrector.correct(denoiser, x, t, s, noise)
        return x, None
