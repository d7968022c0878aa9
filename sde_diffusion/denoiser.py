"""The one contract between models and everything else: a state and a time in, a prediction out.

A network is a denoiser (:class:`~sde_diffusion.denoisers.Denoiser`), exact laws are, and so is whatever wraps one:
guidance, a bound on x₀, conditions filled in, another clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, like
from sde_diffusion.predictions import Prediction
from sde_diffusion.sde import SDE


@dataclass
class Evaluations:
    """What a draw has asked of networks so far: rows of their inputs, and calls."""

    rows: int = 0
    calls: int = 0

    def of_a_sample(self, batch: int) -> int | float:
        """Return the evaluations of each of ``batch`` samples: rows ÷ batch, whole where it is."""
        return self.rows / batch if self.rows % batch else self.rows // batch


_COUNTED: ContextVar[Evaluations | None] = ContextVar("evaluations", default=None)


@contextmanager
def counted() -> Iterator[Evaluations]:
    """Count the evaluations within; of this thread and task alone, and of the innermost count."""
    evaluations = Evaluations()
    token = _COUNTED.set(evaluations)
    try:
        yield evaluations
    finally:
        _COUNTED.reset(token)


def count_evaluation(rows: int) -> None:
    """Note one evaluation of a network, or of what stands for one, on ``rows`` states."""
    evaluations = _COUNTED.get()
    if evaluations is not None:
        evaluations.rows += rows
        evaluations.calls += 1


class AbstractDenoiser(nn.Module, ABC):
    """Predicts x₀ and ε from a noisy state: what samplers, losses and likelihoods are given.

    One's own derives from it and writes :meth:`forward`; one that asks another denoiser (guidance, a bound) holds it as
    a submodule, so that ``.to``, ``.device`` and ``parameters`` reach it, and leaves counting to it; one that is its
    own model calls :func:`count_evaluation`.

    Args:
        sde: the forward SDE.
    """

    sde: SDE

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        require(isinstance(sde, SDE), "sde", sde, "an SDE such as VPSDE()")
        self.sde = sde

    @abstractmethod
    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        """Predict.

        Args:
            x: state, (B, *).
            t: noise level, or time in (0, T]: a number, or a tensor () or (B,).
            conditions: what the user conditions on.
        """

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction: ...

    def round_t(self, t: Tensor) -> Tensor:
        """Return the times nearest to ``t`` that the model was trained on; the identity for continuous time."""
        return t

    @property
    def from_pure_noise(self) -> bool:
        """Whether x₀ and ε can be read from its prediction where α is 0; of ε or the score alone they cannot."""
        return False

    def start_time(self, from_pure_noise: bool = True) -> float:
        """Return the time at which draws start and likelihoods end: T, or the last that the model knows up to t_max.

        The difference between p at that time and the prior is part of :attr:`~sde_diffusion.ErrorBudget.prior`.

        Args:
            from_pure_noise: whether what asks for it could begin where α is 0.
        """
        sde = self.sde
        if sde.t_max == sde.T or (from_pure_noise and self.from_pure_noise):
            return sde.T
        known = self.round_t(torch.linspace(0.0, sde.t_max, 4097, dtype=torch.float64)[1:])
        return float(known[known <= sde.t_max].max())

    def under(self, sde: SDE) -> AbstractDenoiser:
        """Return this denoiser under the clock of another SDE (:class:`Under`)."""
        return self if sde == self.sde else Under(self, sde)

    def prior_kl(self) -> Tensor | None:
        """Return KL(p ‖ prior) at the start time, nats, (), where the law of the data is known; else None."""
        return None

    @property
    def conditions(self) -> tuple[str, ...] | None:
        """Names of the conditions that :meth:`forward` takes; None where nothing tells."""
        return None

    def require_conditions(self, conditions: Mapping[str, Any], batch: int) -> None:
        """Refuse conditions that this denoiser does not take, or that are not one a sample.

        Raises:
            InputError: names the condition.
        """
        known = self.conditions
        for name, value in conditions.items():
            there = f"only {', '.join(known)}" if known else "none"
            there += f", for the model is told nothing{' else' * bool(known)}"
            require(known is None or name in known, "condition", name, there, "leave it out")
            if isinstance(value, Tensor):
                expected = f"({batch}, *), a row for each of the batch"
                require(value.ndim > 0 and len(value) == batch, f"{name} shape", tuple(value.shape), expected)

    def given(self, conditions: Mapping[str, Any], batch: int) -> AbstractDenoiser:
        """Return this denoiser with the conditions of a batch filled in, checked, and on its device.

        Args:
            conditions: by name: (B, *) each, as tensors, arrays or lists; a single number is that of every sample.
            batch: B.

        Raises:
            InputError: on conditions that it does not take, of another length, or out of range.
        """
        filled = {name: of_batch(name, value, batch) for name, value in conditions.items() if value is not None}
        self.require_conditions(filled, batch)
        moved = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in filled.items()}
        return Given(self, moved) if moved else self

    def level(self, t: NoiseLevel | Number) -> NoiseLevel:
        """Return the noise level at ``t``."""
        return t if isinstance(t, NoiseLevel) else self.sde.at(t)

    @property
    def device(self) -> torch.device:
        """Where its parameters are, or else its buffers; the CPU if it has none."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device


def of_batch(name: str, value: Any, batch: int) -> Any:
    """Return a condition as a tensor, one number repeated for each of ``batch`` samples.

    Raises:
        InputError: on a list or an array of anything but numbers; ``name`` is what the condition is called.
    """
    if isinstance(value, (bool, int, float, list, tuple, range, np.ndarray, np.generic)):
        try:
            value = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError):  # strings, objects, rows of different lengths
            raise InputError(f"{name}={value!r}: expected numbers, ({batch}, *) or one for all") from None
    return value.expand(batch) if isinstance(value, Tensor) and value.ndim == 0 else value


class Wrapper(AbstractDenoiser):
    """A denoiser around another, whose SDE and times it shares.

    Args:
        denoiser: the other.
    """

    def __init__(self, denoiser: AbstractDenoiser) -> None:
        require(isinstance(denoiser, AbstractDenoiser), "denoiser", denoiser, "a denoiser such as Denoiser(net, sde)")
        super().__init__(denoiser.sde)
        self.denoiser = denoiser

    def round_t(self, t: Tensor) -> Tensor:
        return self.denoiser.round_t(t)

    @property
    def from_pure_noise(self) -> bool:
        return self.denoiser.from_pure_noise

    @property
    def conditions(self) -> tuple[str, ...] | None:
        return self.denoiser.conditions

    def require_conditions(self, conditions: Mapping[str, Any], batch: int) -> None:
        self.denoiser.require_conditions(conditions, batch)


@final
class Given(Wrapper):
    """A denoiser with conditions filled in (:meth:`AbstractDenoiser.given`).

    Args:
        denoiser: the denoiser.
        filled: passed on to it at every call.
    """

    def __init__(self, denoiser: AbstractDenoiser, filled: Mapping[str, Any]) -> None:
        super().__init__(denoiser)
        self.filled = dict(filled)

    def require_conditions(self, conditions: Mapping[str, Any], batch: int) -> None:
        super().require_conditions({**self.filled, **conditions}, batch)

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        return self.denoiser(x, t, **self.filled, **conditions)

    def prior_kl(self) -> Tensor | None:
        return self.denoiser.prior_kl()


@final
class Under(Wrapper):
    """A denoiser under the clock of another SDE, whose samplers, likelihoods and bounds it then serves.

    States of two linear SDEs at the same log SNR λ differ in size alone, by the ratio of their radii √(α² + σ²): the
    network is asked for x₀ at the time of its own SDE that has this λ, with the state scaled to it. More noise than
    there is in its own SDE is taken for the most that it knows, of which x₀ depends little on the state.

    Args:
        denoiser: the denoiser.
        sde: the other SDE.

    References:
        Karras et al. 2022, arXiv:2206.00364, Section 2 and Eqs. 3 and 4 (s and σ). D. Kingma et al., "Variational
        Diffusion Models", 2021, arXiv:2107.00630, Section 5.1 (SNR alone matters).
    """

    def __init__(self, denoiser: AbstractDenoiser, sde: SDE) -> None:
        super().__init__(denoiser)
        require(isinstance(sde, SDE), "sde", sde, "an SDE such as VPSDE()")
        self.sde = sde
        self._least = denoiser.sde.at(denoiser.start_time()).log_snr

    def _own(self, log_snr: Tensor) -> Tensor:
        """Return the times of the network's own SDE."""
        return self.denoiser.sde.time_of_log_snr(log_snr.clamp_min(self._least))

    @property
    def from_pure_noise(self) -> bool:
        return True

    def round_t(self, t: Tensor) -> Tensor:
        own = self._own(self.sde.log_snr(t))
        known = self.denoiser.round_t(own)
        return torch.where(known == own, t, self.sde.time_of_log_snr(self.denoiser.sde.log_snr(known)))

    def under(self, sde: SDE) -> AbstractDenoiser:
        return self if sde == self.sde else self.denoiser.under(sde)

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        level = self.level(t)
        log_snr = torch.as_tensor(level.log_snr, dtype=None if isinstance(level.log_snr, Tensor) else torch.float64)
        own, here = self.denoiser.sde.at(self._own(log_snr)), level.like(x)
        p = self.denoiser(like(own.radius, x) / here.radius * x, own, **conditions)
        given = {"x0": p.x0, "eps": p.eps} if len(p.given) > 1 else {"x0": p.x0}
        return Prediction(x, here, given, p.spread, p.variance_fraction)


@contextmanager
def evaluating(denoiser: nn.Module) -> Iterator[None]:
    """Run what is within in evaluation mode, without dropout, each module's mode restored after."""
    training = [module for module in denoiser.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
