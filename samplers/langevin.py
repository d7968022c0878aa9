"""Annealed Langevin dynamics, the sampler of NCSN: Langevin steps at ever smaller noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from samplers.base import SAMPLERS, GridSampler
from samplers.predictor_corrector import PredictorCorrector
from sde_diffusion.sdes import SDE
from sde_diffusion.types import DenoiserLike, NoiseFn


@SAMPLERS.register("langevin")
@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(GridSampler):
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
        self._dynamics()

    def _dynamics(self) -> PredictorCorrector:
        return PredictorCorrector(
            predictor="identity", corrector_steps=self.corrector_steps, snr=self.snr, step_rule=self.step_rule
        )

    @property
    def nfe_per_step(self) -> int | None:
        return self.corrector_steps

    def limit_variance(self, sde: SDE, t: float, variance: float) -> float:
        return self._dynamics().limit_variance(sde, t, variance)

    def init(self, denoiser: DenoiserLike, x: Tensor, grid: Tensor) -> Any:
        dynamics = self._dynamics()
        return dynamics, dynamics.init(denoiser, x, grid)

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: NoiseFn
    ) -> tuple[Tensor, Any]:
        dynamics, inner = state
        x, inner = dynamics.step(denoiser, x, t, s, inner, noise)
        return x, (dynamics, inner)
