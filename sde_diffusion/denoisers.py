"""The one contract between networks and everything else: a prediction with four views.

A network is trained to predict one of x₀, ε, v or the score from x_t = α x₀ + σ ε. All four carry the same information:

    given      x₀                        ε                       v = α ε − σ x₀          score = −ε/σ
    x₀         x₀                        (x − α x₀)/σ            from x₀, ε              (α x₀ − x)/σ²
    ε          (x − σ ε)/α               ε                       from x₀, ε              −ε/σ
    v          (α x − σ v)/(α² + σ²)     (σ x + α v)/(α² + σ²)   v                       −ε/σ
    score      (x + σ² score)/α          −σ score                from x₀, ε              score

What differs between the networks of DDPM, NCSN and their successors is which of the four they predict and how they are
told the time; both are arguments of :class:`Denoiser`.

References:
    P. Vincent, "A Connection Between Score Matching & Denoising Autoencoders", 2011, Neural Computation 23(7), Eq. 10.
    B. Efron, "Tweedie's Formula and Selection Bias", 2011; C. Luo, "Understanding Diffusion Models: A Unified
    Perspective", 2022, arXiv:2208.11970, Eqs. 131-133. v: T. Salimans, J. Ho, 2022, arXiv:2202.00512, Appendix D.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.ops import expand
from sde_diffusion.registry import Registry, hint
from sde_diffusion.sdes import SDE

PREDICTIONS = ("x0", "eps", "v", "score")

CONDITIONINGS: Registry[TimeConditioning] = Registry("conditioning")


class Prediction:
    """One network output at (x, t), seen as ``x0``, ``eps``, ``v`` or ``score``; each is computed when asked for.

    Args:
        raw: the output, shape (B, *).
        kind: what it predicts, one of ``PREDICTIONS``.
        x: the state, shape (B, *).
        alpha, sigma: α(t) and σ(t), numbers or tensors that broadcast against ``x``.
    """

    __slots__ = ("alpha", "kind", "raw", "sigma", "x")

    def __init__(self, raw: Tensor, kind: str, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> None:
        self.raw, self.kind, self.x, self.alpha, self.sigma = raw, kind, x, alpha, sigma

    def _terms(self, view: str) -> tuple[float | Tensor, float | Tensor]:
        """Return p and q such that the view is p·x + q·raw: the table at the top of this file."""
        alpha, sigma = self.alpha, self.sigma
        if view == self.kind:
            return 0.0, 1.0
        if view == "score":
            p, q = self._terms("eps")
            return -p / sigma, -q / sigma
        if view == "v":
            (p_eps, q_eps), (p_x0, q_x0) = self._terms("eps"), self._terms("x0")
            return alpha * p_eps - sigma * p_x0, alpha * q_eps - sigma * q_x0
        if self.kind == "v":
            norm = alpha**2 + sigma**2
            return (alpha / norm, -sigma / norm) if view == "x0" else (sigma / norm, alpha / norm)
        if view == "x0":
            return 1.0 / alpha, sigma**2 / alpha if self.kind == "score" else -sigma / alpha
        return (0.0, -sigma) if self.kind == "score" else (1.0 / sigma, -alpha / sigma)

    def _view(self, view: str) -> Tensor:
        if view == self.kind:
            return self.raw
        p, q = self._terms(view)
        return q * self.raw if isinstance(p, float) else p * self.x + q * self.raw

    @property
    def x0(self) -> Tensor:
        """The posterior mean E[x₀ | x_t]."""
        return self._view("x0")

    @property
    def eps(self) -> Tensor:
        """The expected noise E[ε | x_t]."""
        return self._view("eps")

    @property
    def v(self) -> Tensor:
        """The velocity v = α ε − σ x₀."""
        return self._view("v")

    @property
    def score(self) -> Tensor:
        """The score ∇ log p_t(x) = −ε/σ, straight from the raw output where it is ε."""
        return self._view("score")

    def mix(self, view: str, a: float, b: float) -> Tensor:
        """Return a·x + b·view as a new tensor, in two passes over the state instead of up to six."""
        p, q = self._terms(view)
        of_x, of_raw = a + b * p, b * q
        mixed = self.x * of_x
        if isinstance(of_raw, Tensor) and (of_raw.ndim > 0 or of_raw.device.type != "cpu"):
            return mixed.add_(self.raw * of_raw)
        return mixed.add_(self.raw, alpha=float(of_raw))


class TimeConditioning(ABC):
    """How a network is told the time."""

    @abstractmethod
    def label(self, t: Tensor, sde: SDE) -> Tensor:
        """Return the number the network is given for time ``t``, in the shape of ``t``."""

    def round_t(self, t: Tensor) -> Tensor:
        """Return the nearest time that the network was trained on; the identity for continuous time."""
        return t


@CONDITIONINGS.register("scaled")
@dataclass(frozen=True)
class Scaled(TimeConditioning):
    """label = scale · t; 999 t is what the continuous VP networks of score SDE are given."""

    scale: float = 999.0

    def __post_init__(self) -> None:
        require_float("scale", self.scale, 0.0, open_low=True)

    def label(self, t: Tensor, sde: SDE) -> Tensor:
        return self.scale * t


@CONDITIONINGS.register("discrete")
@dataclass(frozen=True)
class Discrete(TimeConditioning):
    """label = N t − 1, the index 0 … N − 1 of DDPM's chain at t = i/N. Between those times the label is fractional."""

    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        require_int("num_train_steps", self.num_train_steps, 1)

    def label(self, t: Tensor, sde: SDE) -> Tensor:
        return self.num_train_steps * t - 1.0

    def round_t(self, t: Tensor) -> Tensor:
        return (t * self.num_train_steps).round().clamp(1, self.num_train_steps) / self.num_train_steps


@CONDITIONINGS.register("log_sigma")
@dataclass(frozen=True)
class LogSigma(TimeConditioning):
    """label = log σ(t), what the continuous VE networks of score SDE are given."""

    def label(self, t: Tensor, sde: SDE) -> Tensor:
        return sde.sigma(t).log()


class Denoiser:
    """A network, the SDE it was trained for, what it predicts and how it is told the time.

    Args:
        net: called as ``net(x, label, **conditioning)`` with ``x`` (B, *) and ``label`` (B,) in ``x``'s dtype; returns
            (B, *).
        sde: the forward SDE.
        prediction: "x0", "eps", "v" or "score".
        conditioning: a :class:`TimeConditioning`, or the name of one ("scaled", "discrete", "log_sigma").
        sigma_data: standard deviation of the data; when given, the network sees x/√(α² sigma_data² + σ²), of variance
            1 at all times (Karras et al. 2022, arXiv:2206.00364, Table 1, c_in).

    Raises:
        InputError: on an unknown prediction or conditioning.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: SDE,
        prediction: str = "eps",
        conditioning: TimeConditioning | str = "scaled",
        sigma_data: float | None = None,
    ) -> None:
        if prediction not in PREDICTIONS:
            near = hint(str(prediction), list(PREDICTIONS))
            raise InputError(f"prediction={prediction!r}: unknown{near} known: {', '.join(PREDICTIONS)}")
        require(isinstance(sde, SDE), "sde", sde, "an SDE such as VPSDE()")
        if sigma_data is not None:
            require_float("sigma_data", sigma_data, 0.0, open_low=True)
        self.net = net
        self.sde = sde
        self.prediction = prediction
        self.conditioning = CONDITIONINGS.build(conditioning) if isinstance(conditioning, str) else conditioning
        self.sigma_data = sigma_data
        self._table: dict[float, tuple[float, float, float]] = {}

    def tabulated(self, times: Tensor) -> Denoiser:
        """Return this denoiser with α, σ and the label of all ``times`` (CPU, (N,)) computed at once, for a sampler.

        It gives the same predictions; at the small sizes the three cost more time than a step if computed one by one.
        """
        of_time = (times, self.sde.alpha(times), self.sde.sigma(times), self.conditioning.label(times, self.sde))
        columns = (a.tolist() for a in of_time)
        other = copy.copy(self)
        other._table = {t: (alpha, sigma, label) for t, alpha, sigma, label in zip(*columns, strict=True)}
        return other

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Prediction:
        """Evaluate the network once.

        Args:
            x: state, shape (B, *).
            t: time in (0, T], shape () or (B,).
            conditioning: passed on to the network.
        """
        row = self._table.get(t.item()) if self._table and t.ndim == 0 and t.device.type == "cpu" else None
        alpha: float | Tensor
        sigma: float | Tensor
        if row is not None:
            alpha, sigma, label = row[0], row[1], x.new_full((x.shape[0],), row[2])
        else:
            alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
            label = self.conditioning.label(t, self.sde)
            # A CPU scalar times a device tensor needs no copy and no sync; moving the scalar would.
            label = x.new_ones(x.shape[0]) * label if label.ndim == 0 else label.to(device=x.device, dtype=x.dtype)
        seen = x if self.sigma_data is None else x * ((alpha * self.sigma_data) ** 2 + sigma**2) ** -0.5
        return Prediction(self.net(seen, label, **conditioning), self.prediction, x, alpha, sigma)

    def round_t(self, t: Tensor) -> Tensor:
        """Return the times nearest to ``t`` that the network was trained on."""
        return self.conditioning.round_t(t)
