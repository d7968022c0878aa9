"""Predictor-corrector sampling: any grid sampler's step, then Langevin steps at the new time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.base import SAMPLERS, GridSampler
from sde_diffusion import ops
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.registry import Registry
from sde_diffusion.sdes import SDE
from sde_diffusion.types import DenoiserLike, NoiseFn

CORRECTORS: Registry[Corrector] = Registry("corrector")


class Corrector(ABC):
    """Moves a state towards p_s without changing its time."""

    @abstractmethod
    def correct(self, denoiser: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, noise: NoiseFn) -> Tensor:
        """Return the state after one correction at time ``s``, which a predictor has reached from ``t``."""


@CORRECTORS.register("langevin")
@dataclass(frozen=True)
class LangevinCorrector(Corrector):
    """One step of unadjusted Langevin dynamics, x ← x + ε score + √(2ε) z.

    ε = 2 α_{t|s}² (snr · r)², with α_{t|s}² = 1 − β_i on DDPM's grid as in the authors' code, where r stands for
    ‖z‖/‖score‖: the signal-to-noise ratio of a step.

    Args:
        snr: target ratio of the score's part of a step to the noise's; 0.16 suits CIFAR-10.
        step_rule: "sigma" takes r = σ_s, the value in high dimension: the step is deterministic and a sample does not
            depend on its batch. "batch_norms" is the paper's rule, norms averaged over the batch. (Norms of each sample
            would make the step a function of the state and bias the law.)

    References:
        Song et al. 2021, arXiv:2011.13456, Algorithms 4 and 5; Y. Song, S. Ermon, 2019, arXiv:1907.05600, Algorithm 1.
    """

    snr: float = 0.16
    step_rule: str = "sigma"

    def __post_init__(self) -> None:
        require_float("snr", self.snr, 0.0, open_low=True)
        require(self.step_rule in ("sigma", "batch_norms"), "step_rule", self.step_rule, "'sigma' or 'batch_norms'")

    def correct(self, denoiser: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, noise: NoiseFn) -> Tensor:
        score, z = denoiser(x, s).score, noise(x, s, s)
        if self.step_rule == "sigma":
            ratio = denoiser.sde.sigma(s)
        else:
            ratio = ops.per_example(z).norm(dim=1).mean() / ops.per_example(score).norm(dim=1).mean()
        alpha_ts = denoiser.sde.alpha(t) / denoiser.sde.alpha(s)
        size = 2.0 * (alpha_ts * self.snr * ratio) ** 2
        return x + score * size + z * (2.0 * size).sqrt()


@dataclass(frozen=True, kw_only=True)
class IdentityPredictor(GridSampler):
    """Changes the time and leaves the state: with a Langevin corrector, annealed Langevin dynamics."""

    order = None
    stochastic = False
    nfe_per_step = 0
    reference = "Song & Ermon 2019, arXiv:1907.05600"

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: NoiseFn
    ) -> tuple[Tensor, Any]:
        return x, state


@SAMPLERS.register("pc")
@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(GridSampler):
    """A predictor's step from t to s, then ``corrector_steps`` corrections at s.

    Args:
        predictor: the name of any grid sampler, or "identity".
        corrector: "langevin", the name of a registered corrector, or "none".
        corrector_steps: corrections a step ≥ 1.
        snr: signal-to-noise ratio of a Langevin correction; its ``step_rule`` is "sigma" or "batch_norms".

    References:
        Song et al. 2021, arXiv:2011.13456, Algorithm 1 and Appendix G.
    """

    reference = "Song et al. 2021, arXiv:2011.13456, Alg. 1"

    predictor: str = "reverse_diffusion"
    corrector: str = "langevin"
    corrector_steps: int = 1
    snr: float = 0.16
    step_rule: str = "sigma"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("corrector_steps", self.corrector_steps, 1)
        self._parts()

    def _parts(self) -> tuple[GridSampler, Corrector | None]:
        predictor = IdentityPredictor() if self.predictor == "identity" else SAMPLERS.build(self.predictor)
        if not isinstance(predictor, GridSampler) or isinstance(predictor, PredictorCorrector):
            raise InputError(
                f"predictor={self.predictor!r}: expected a sampler that steps along a grid, or 'identity'; "
                "this one has no single steps to correct"
            )
        if self.corrector == "none":
            return predictor, None
        options = {"snr": self.snr, "step_rule": self.step_rule}
        known = CORRECTORS.config(self.corrector)
        return predictor, CORRECTORS.build(self.corrector, **{k: v for k, v in options.items() if k in known})

    @property
    def order(self) -> float | None:
        return self._parts()[0].order if self.corrector == "none" else 1

    @property
    def stochastic(self) -> bool:
        return self.corrector != "none" or self._parts()[0].stochastic

    @property
    def nfe_per_step(self) -> int | None:
        predicted = self._parts()[0].nfe_per_step or 0
        return predicted if self.corrector == "none" else predicted + self.corrector_steps

    def limit_variance(self, sde: SDE, t: float, variance: float) -> float:
        """Correctors dominate many small steps: the stationary variance of unadjusted Langevin, V/(1 − ε/(2V))."""
        if self.corrector != "langevin":
            return variance
        size = 2.0 * (self.snr * float(sde.sigma(torch.tensor(t, dtype=torch.float64)))) ** 2
        return variance / (1.0 - size / (2.0 * variance))

    def init(self, denoiser: DenoiserLike, x: Tensor, grid: Tensor) -> Any:
        predictor, corrector = self._parts()
        return predictor, corrector, predictor.init(denoiser, x, grid)

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: NoiseFn
    ) -> tuple[Tensor, Any]:
        predictor, corrector, inner = state
        x, inner = predictor.step(denoiser, x, t, s, inner, noise)
        if corrector is not None:
            for _ in range(self.corrector_steps):
                x = corrector.correct(denoiser, x, t, s, noise)
        return x, (predictor, corrector, inner)
