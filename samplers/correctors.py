"""Correctors: what moves a state towards p_s without changing its time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require, require_float
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, add_scaled_, per_example, sqrt
from sde_diffusion.registry import Registry
from sde_diffusion.sde import SDE
from sde_diffusion.types import NoiseFn

CORRECTORS: Registry[Corrector] = Registry("corrector")


@dataclass(frozen=True)
class Corrector(ABC):
    """Moves a state towards p_s; a frozen dataclass whose fields are its options.

    It declares ``nfe``, the evaluations of one correction.
    """

    nfe: ClassVar[int] = 1

    @abstractmethod
    def correct(self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, noise: NoiseFn) -> Tensor:
        """Return the state after one correction at level ``s``, which a predictor has reached from ``t``."""

    def limit_variance(self, sde: SDE, t: float, variance: float) -> float:
        """Variance that many corrections reach at time ``t`` where the exact law is Gaussian with ``variance``."""
        return variance


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

    def correct(self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, noise: NoiseFn) -> Tensor:
        p, z = denoiser(x, s), noise(x, s, s)
        ratio: Number = s.sigma
        if self.step_rule == "batch_norms":
            ratio = per_example(z).norm(dim=1).mean() / per_example(p.score).norm(dim=1).mean()
        size = 2.0 * (t.alpha / s.alpha * self.snr * ratio) ** 2
        return add_scaled_(p.combine(x=1.0, score=size), sqrt(2.0 * size), z)

    def limit_variance(self, sde: SDE, t: float, variance: float) -> float:
        """The stationary variance of unadjusted Langevin, V/(1 − ε/(2V))."""
        size = 2.0 * (self.snr * float(sde.at(t).sigma)) ** 2
        return variance / (1.0 - size / (2.0 * variance))
