"""The one contract between networks and everything else: a state and a time in, a prediction out.

A network is trained to predict one view of x_t = α x₀ + σ ε (:mod:`sde_diffusion.predictions`). What differs between
the networks of DDPM, NCSN and their successors is which, and how they are told the noise level; both are arguments of
:class:`Denoiser`. Exact laws are denoisers too, and so is whatever wraps one: guidance, a bound on x₀.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require, require_float
from sde_diffusion.labels import NOISE_LABELS, LogSNR, NoiseLabel
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, combine, per_sample, sqrt
from sde_diffusion.predictions import VIEWS, Prediction, fold
from sde_diffusion.registry import hint
from sde_diffusion.sde import SDE

PREDICTIONS = (*VIEWS, "edm")


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

    def prior_kl(self) -> Tensor | None:
        """Return KL(p_T ‖ prior), nats, (), where the law of the data is known; else None."""
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
class Denoiser(AbstractDenoiser):
    """A network, the SDE it was trained for, what it predicts and how it is told the noise level.

    With ``prediction="edm"`` its output F is preconditioned, x̂₀ = c_skip x/α + c_out F with ρ = σ/α,
    c_skip = σ_d²/(ρ² + σ_d²), c_out = ρ σ_d/√(ρ² + σ_d²); with the label and the scaling of its input that are then the
    default it is EDM's network under any SDE.

    Args:
        net: a module or a function, called as ``net(x, label, **conditions)`` with ``x`` (B, *) and ``label`` (B,) in
            its own dtype, whatever the state's; returns (B, *), or (B, 2C, *) for C channels: the second half then is
            the learned range of the reverse variance, ``variance_fraction`` = (output + 1)/2 (Nichol & Dhariwal 2021,
            arXiv:2102.09672).
        sde: the forward SDE.
        prediction: "x0", "eps", "v", "score", "velocity" or "edm".
        noise_label: a :class:`NoiseLabel`, or the name of one; by default −λ/8 with λ = log SNR, of unit size.
        sigma_data: standard deviation of the data; when given, the network sees x/√(α² sigma_data² + σ²), of variance
            1 at all times. "edm" takes 0.5 where it is not given.

    Raises:
        InputError: on an unknown prediction or label, an SDE that is none, a bad ``sigma_data``.

    References:
        Karras et al. 2022, arXiv:2206.00364, Eq. 7 and Table 1.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: SDE,
        prediction: str = "eps",
        noise_label: NoiseLabel | str | None = None,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__(sde)
        if prediction not in PREDICTIONS:
            near = hint(str(prediction), list(PREDICTIONS))
            raise InputError(f"prediction={prediction!r}: unknown{near} known: {', '.join(PREDICTIONS)}")
        if sigma_data is not None:
            require_float("sigma_data", sigma_data, 0.0, open_low=True)
        self.net = net
        # Of whose dtype the network's input is; looked for once, for at every evaluation it would take 6 µs.
        self._first = tuple(islice(net.parameters(), 1)) if isinstance(net, nn.Module) else ()
        self.prediction = prediction
        self.noise_label = NOISE_LABELS.build(noise_label) if isinstance(noise_label, str) else noise_label or LogSNR()
        self.sigma_data = 0.5 if sigma_data is None and prediction == "edm" else sigma_data

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        """Evaluate the network once.

        Raises:
            InputError: if its output has neither the shape of ``x`` nor twice its channels.
        """
        level = self.level(t)
        label = per_sample(self.noise_label(level, self.sde.T), x)
        level = level.like(x)
        seen = x if self.sigma_data is None else x / _size(level, self.sigma_data)
        own = self._first[0].dtype if self._first else x.dtype
        raw = self.net(seen.to(own), label.to(own), **conditions).to(x.dtype)
        count_evaluation(x.shape[0])
        raw, fraction = (raw, None) if raw.shape == x.shape else _halves(raw, x)
        if self.sigma_data is None or self.prediction != "edm":
            return Prediction(x, level, {self.prediction: raw}, None, fraction)
        return Prediction(x, level, {"x0": _edm(x, level, raw, self.sigma_data)}, None, fraction)

    def round_t(self, t: Tensor) -> Tensor:
        return self.noise_label.round_t(t, self.sde.T)

    @property
    def conditions(self) -> tuple[str, ...] | None:
        """What the network says that it takes (its attribute ``conditions``); None if it does not say."""
        known: tuple[str, ...] | None = getattr(self.net, "conditions", None)
        return known

    def require_conditions(self, conditions: Mapping[str, Any], batch: int) -> None:
        """Also that nothing is missing, and that classes are whole numbers below the network's ``num_classes``."""
        super().require_conditions(conditions, batch)
        count = int(getattr(self.net, "num_classes", 0))
        for name in self.conditions or ():
            optional = name == "classes" and bool(getattr(self.net, "null_class", False))
            of_each = f"a class from 0 to {count - 1}" if name == "classes" else "a value"
            there = optional or conditions.get(name) is not None
            require(there, name, None, f"{of_each} for each of the batch, for the network must be told it")
        classes = conditions.get("classes")
        if count and classes is not None:
            there = isinstance(classes, Tensor)
            whole = there and classes.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
            given = f"{classes.dtype} {tuple(classes.shape)}" if there else classes
            expected = f"whole numbers of shape ({batch},), such as torch.int64"
            require(whole and classes.ndim == 1, "classes", given, expected)
            low, high = int(classes.min()), int(classes.max())
            bad = low if low < 0 else high
            require(low >= 0 and high < count, "classes", bad, f"a class from 0 to {count - 1}")


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


def _size(level: NoiseLevel, sigma_data: float) -> Number:
    """Return √(α² σ_d² + σ²), the standard deviation of a state."""
    return sqrt((level.alpha * sigma_data) ** 2 + level.sigma**2)


def _edm(x: Tensor, level: NoiseLevel, raw: Tensor, sigma_data: float) -> Tensor:
    """Return x̂₀ of a preconditioned output: F = a x₀ + b ε with a = σ/(σ_d s), b = −α σ_d/s, s = √(α² σ_d² + σ²)."""
    size = _size(level, sigma_data)
    known = level.sigma / (sigma_data * size), -level.alpha * sigma_data / size
    p, q = fold(level, known, (1.0, 0.0))
    return combine(p, x, q, raw)


def _halves(raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance fraction of an output with twice the channels of ``x``."""
    doubled = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    expected = f"an output of shape {tuple(x.shape)}, or {doubled} with a variance"
    require(raw.shape == doubled, "net", tuple(raw.shape), expected)
    mean, spread = raw.chunk(2, dim=1)
    return mean, 0.5 * (spread + 1.0)
