"""Networks as denoisers.

A network is trained to predict one view of x_t = α x₀ + σ ε (:mod:`sde_diffusion.predictions`). What differs between
the networks of DDPM, NCSN and their successors is which, and how they are told the noise level; both are arguments of
:class:`Denoiser`. The contract is in :mod:`sde_diffusion.denoiser`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn

from sde_diffusion.denoiser import AbstractDenoiser, Given, Wrapper, count_evaluation, counted, evaluating, of_batch
from sde_diffusion.errors import InputError, require, require_float
from sde_diffusion.labels import NOISE_LABELS, LogSNR, NoiseLabel
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number, at_least, combine, per_sample, sqrt
from sde_diffusion.predictions import VIEWS, Prediction, fold
from sde_diffusion.registry import hint
from sde_diffusion.sde import SDE

__all__ = [
    "PREDICTIONS",
    "AbstractDenoiser",
    "Denoiser",
    "Given",
    "Wrapper",
    "count_evaluation",
    "counted",
    "evaluating",
    "of_batch",
]

PREDICTIONS = (*VIEWS, "edm")


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
        self._least_log_snr = float(sde.log_snr(torch.tensor(sde.t_max, dtype=torch.float64)))

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        """Evaluate the network once.

        Raises:
            InputError: if its output has neither the shape of ``x`` nor twice its channels.
        """
        level = self.level(t)
        label = per_sample(self.noise_label(self._told(level), self.sde.T), x)
        level = level.like(x)
        seen = x if self.sigma_data is None else x / _size(level, self.sigma_data)
        own = self._first[0].dtype if self._first else x.dtype
        raw = self.net(seen.to(own), label.to(own), **conditions).to(x.dtype)
        count_evaluation(x.shape[0])
        raw, fraction = (raw, None) if raw.shape == x.shape else _halves(raw, x)
        if self.sigma_data is None or self.prediction != "edm":
            return Prediction(x, level, {self.prediction: raw}, None, fraction)
        return Prediction(x, level, {"x0": _edm(x, level, raw, self.sigma_data)}, None, fraction)

    def _told(self, level: NoiseLevel) -> NoiseLevel:
        """Return the level of which the network is told: λ, which is −∞ where α is 0, is no less than at t_max."""
        if self.sde.t_max == self.sde.T:
            return level
        log_snr = at_least(level.log_snr, self._least_log_snr)
        return NoiseLevel(level.t, level.alpha, level.sigma, log_snr, level.rates)

    @property
    def from_pure_noise(self) -> bool:
        return self.prediction not in ("eps", "score")

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
