"""How a network is told the noise level: a number, the label, and the times at which the network knows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.errors import require_float, require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, log
from sde_diffusion.registry import Registry

NOISE_LABELS: Registry[NoiseLabel] = Registry("noise_label")


class NoiseLabel(ABC):
    """What a network is told of the noise level."""

    @abstractmethod
    def __call__(self, level: NoiseLevel, T: float = 1.0) -> Number:
        """Return the label: a float, or of the shape of the level's numbers.

        Args:
            level: the noise level.
            T: the largest time of its SDE, at which the last of N training times t_i = T i/N is.
        """

    def round_t(self, t: Tensor, T: float = 1.0) -> Tensor:
        """Return the nearest times that the network was trained on; the identity for continuous time."""
        return t


@NOISE_LABELS.register("scaled")
@dataclass(frozen=True)
class Scaled(NoiseLabel):
    """label = scale · t; 999 t is what the continuous VP networks of score SDE are given."""

    scale: float = 999.0

    def __post_init__(self) -> None:
        require_float("scale", self.scale, 0.0, open_low=True)

    def __call__(self, level: NoiseLevel, T: float = 1.0) -> Number:
        return self.scale * level.t


@NOISE_LABELS.register("discrete")
@dataclass(frozen=True)
class Index(NoiseLabel):
    """label = scale · (N t/T − 1), the index 0 … N − 1 of DDPM's chain at t = T i/N; fractional between those times.

    Improved DDPM's networks of N = 4000 steps are told an index out of 1000: scale ¼.
    """

    num_train_steps: int = 1000
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_int("num_train_steps", self.num_train_steps, 1)
        require_float("scale", self.scale, 0.0, open_low=True)

    def __call__(self, level: NoiseLevel, T: float = 1.0) -> Number:
        index = self.num_train_steps * level.t / T - 1.0
        return index if self.scale == 1.0 else self.scale * index

    def round_t(self, t: Tensor, T: float = 1.0) -> Tensor:
        return (t / T * self.num_train_steps).round().clamp(1, self.num_train_steps) / self.num_train_steps * T


@NOISE_LABELS.register("reversed")
@dataclass(frozen=True)
class ReversedIndex(NoiseLabel):
    """label = (N − 1)(1 − t/T), which counts NCSN's noise levels t = T i/(N − 1) from the largest; else fractional.

    The last of them, t = 0, is no time of an SDE here: the smallest level is the one before it.
    """

    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        require_int("num_train_steps", self.num_train_steps, 2)

    def __call__(self, level: NoiseLevel, T: float = 1.0) -> Number:
        return (self.num_train_steps - 1) * (1.0 - level.t / T)

    def round_t(self, t: Tensor, T: float = 1.0) -> Tensor:
        last = self.num_train_steps - 1
        return (t / T * last).round().clamp(1, last) / last * T


@NOISE_LABELS.register("log_sigma")
@dataclass(frozen=True)
class LogSigma(NoiseLabel):
    """label = log(scale·σ(t)), what the continuous VE networks of score SDE are given.

    Theirs have data in [0, 1]. Data in [−1, 1] are twice as large, and so is their noise: the label is then log(σ/2),
    scale ½.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        require_float("scale", self.scale, 0.0, open_low=True)

    def __call__(self, level: NoiseLevel, T: float = 1.0) -> Number:
        return log(self.scale * level.sigma)


@NOISE_LABELS.register("log_snr")
@dataclass(frozen=True)
class LogSNR(NoiseLabel):
    """label = −scale · λ(t) with λ = log(α²/σ²), the same for every SDE; EDM's ¼ log σ is scale ⅛.

    Of unit size at all noise levels that matter, which suits a network as it was just built. It then changes with the
    noise level alone, and as slowly as the noise does: label 999 t turns the fastest feature of a sinusoidal embedding
    159 times between 0 and T, which an ODE solver has to follow (see the findings).

    References:
        Karras et al. 2022, arXiv:2206.00364, Table 1 (c_noise); Kingma et al. 2021, arXiv:2107.00630, Section 3.3.
    """

    scale: float = 0.125

    def __post_init__(self) -> None:
        require_float("scale", self.scale, 0.0, open_low=True)

    def __call__(self, level: NoiseLevel, T: float = 1.0) -> Number:
        return -self.scale * level.log_snr
