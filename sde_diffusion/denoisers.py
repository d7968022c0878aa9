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
    P. Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011, Neural Computation 23(7).
    B. Efron, "Tweedie's Formula and Selection Bias", 2011; C. Luo, "Understanding Diffusion Models: A Unified
    Perspective", 2022, arXiv:2208.11970, Eqs. 131-133. v: T. Salimans, J. Ho, 2022, arXiv:2202.00512, Appendix D.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.ops import expand
from sde_diffusion.registry import Registry, hint
from sde_diffusion.sdes import SDE
from sde_diffusion.types import DenoiserLike

PREDICTIONS = ("x0", "eps", "v", "score")

CONDITIONINGS: Registry[TimeConditioning] = Registry("conditioning")


def view_of(view: str, kind: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Return p and q such that the view is p·x + q·raw for a raw output of the given kind: the table above.

    Args:
        view, kind: each one of ``PREDICTIONS``.
        alpha, sigma: α and σ, of any shape.
    """
    if view == kind:
        return 0.0, 1.0
    if view == "score":
        p, q = view_of("eps", kind, alpha, sigma)
        return -p / sigma, -q / sigma
    if view == "v":
        (p_eps, q_eps), (p_x0, q_x0) = view_of("eps", kind, alpha, sigma), view_of("x0", kind, alpha, sigma)
        return alpha * p_eps - sigma * p_x0, alpha * q_eps - sigma * q_x0
    if kind == "v":
        norm = alpha**2 + sigma**2
        return (alpha / norm, -sigma / norm) if view == "x0" else (sigma / norm, alpha / norm)
    if view == "x0":
        return 1.0 / alpha, sigma**2 / alpha if kind == "score" else -sigma / alpha
    return (0.0, -sigma) if kind == "score" else (1.0 / sigma, -alpha / sigma)


class Prediction:
    """One network output at (x, t), seen as ``x0``, ``eps``, ``v`` or ``score``; each is computed when asked for.

    Args:
        raw: the output, shape (B, *).
        kind: what it predicts, one of ``PREDICTIONS``.
        x: the state, shape (B, *).
        alpha, sigma: α(t) and σ(t), 0-dimensional or broadcastable against ``x``.
    """

    __slots__ = ("alpha", "kind", "raw", "sigma", "x")

    def __init__(self, raw: Tensor, kind: str, x: Tensor, alpha: Tensor, sigma: Tensor) -> None:
        self.raw, self.kind, self.x, self.alpha, self.sigma = raw, kind, x, alpha, sigma

    def _view(self, view: str) -> Tensor:
        if view == self.kind:
            return self.raw
        p, q = view_of(view, self.kind, self.alpha, self.sigma)
        return p * self.x + q * self.raw

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
        """The score ∇ log p_t(x) = −ε/σ."""
        return self._view("score")


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


@CONDITIONINGS.register("reversed")
@dataclass(frozen=True)
class Reversed(TimeConditioning):
    """label = (N − 1)(1 − t), which counts NCSN's noise levels t = i/(N − 1) from the largest; fractional in between.

    The last of them, t = 0, is no time of an SDE here: the smallest level is the one before it.
    """

    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        require_int("num_train_steps", self.num_train_steps, 2)

    def label(self, t: Tensor, sde: SDE) -> Tensor:
        return (self.num_train_steps - 1) * (1.0 - t)

    def round_t(self, t: Tensor) -> Tensor:
        last = self.num_train_steps - 1
        return (t * last).round().clamp(1, last) / last


@CONDITIONINGS.register("log_sigma")
@dataclass(frozen=True)
class LogSigma(TimeConditioning):
    """label = log(scale·σ(t)), what the continuous VE networks of score SDE are given.

    Theirs have data in [0, 1]. Data in [−1, 1] are twice as large, and so is their noise: the label is then log(σ/2),
    scale ½.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        require_float("scale", self.scale, 0.0, open_low=True)

    def label(self, t: Tensor, sde: SDE) -> Tensor:
        return (self.scale * sde.sigma(t)).log()


@CONDITIONINGS.register("log_snr")
@dataclass(frozen=True)
class LogSNR(TimeConditioning):
    """label = −scale · λ(t) with λ = log(α²/σ²), the same for every SDE; EDM's ¼ log σ is scale ⅛.

    The network then changes with the noise level alone, and as slowly as the noise does: label 999 t turns the fastest
    feature of a sinusoidal embedding 159 times between 0 and T, which an ODE solver has to follow (see the findings).

    References:
        Karras et al. 2022, arXiv:2206.00364, Table 1 (c_noise); Kingma et al. 2021, arXiv:2107.00630, Section 3.3.
    """

    scale: float = 0.125

    def __post_init__(self) -> None:
        require_float("scale", self.scale, 0.0, open_low=True)

    def label(self, t: Tensor, sde: SDE) -> Tensor:
        return -self.scale * sde.log_snr(t)


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
        self._table: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._points: Sequence[Tensor] = ()

    def tabulated(self, grid: Tensor, points: Sequence[Tensor]) -> Denoiser:
        """Return this denoiser with α, σ and label of a whole grid computed at once; its predictions are the same.

        One by one, these dozens of operations on single numbers cost more than a sampler's step on the state.

        Args:
            grid: times (N,) on the CPU.
            points: the same times as N 0-dimensional tensors, which later calls must pass as they are.
        """
        other = copy.copy(self)
        rows = zip(*(column.unbind() for column in self._at(grid)), strict=True)
        other._table = {id(t): row for t, row in zip(points, rows, strict=True)}
        other._points = points  # keeps the ids theirs
        return other

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return α, σ and the label at ``t``."""
        return self.sde.alpha(t), self.sde.sigma(t), self.conditioning.label(t, self.sde)

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Prediction:
        """Evaluate the network once.

        Args:
            x: state, shape (B, *).
            t: time in (0, T], shape () or (B,).
            conditioning: passed on to the network.
        """
        alpha, sigma, label = self._table.get(id(t)) or self._at(t)
        alpha, sigma = expand(alpha, x), expand(sigma, x)
        # A CPU scalar times a device tensor needs no copy and no sync; moving the scalar would.
        label = x.new_ones(x.shape[0]) * label if label.ndim == 0 else label.to(device=x.device, dtype=x.dtype)
        seen = x if self.sigma_data is None else x * ((alpha * self.sigma_data) ** 2 + sigma**2).rsqrt()
        return Prediction(self.net(seen, label, **conditioning), self.prediction, x, alpha, sigma)

    def round_t(self, t: Tensor) -> Tensor:
        """Return the times nearest to ``t`` that the network was trained on."""
        return self.conditioning.round_t(t)


class CountedDenoiser:
    """A denoiser with its conditioning filled in, its evaluations counted and its x₀ kept within ±``clip`` if not 0."""

    def __init__(self, denoiser: DenoiserLike, conditioning: dict[str, Any], clip: float = 0.0) -> None:
        self._denoiser, self._conditioning, self._clip = denoiser, conditioning, clip
        self.nfe = 0

    @property
    def sde(self) -> SDE:
        return self._denoiser.sde

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Prediction:
        self.nfe += 1
        prediction = self._denoiser(x, t, **self._conditioning, **conditioning)
        if not self._clip:
            return prediction
        x0 = prediction.x0.clamp(-self._clip, self._clip)
        return Prediction(x0, "x0", x, prediction.alpha, prediction.sigma)

    def round_t(self, t: Tensor) -> Tensor:
        return self._denoiser.round_t(t)

    def tabulate(self, grid: Tensor, points: Sequence[Tensor]) -> None:
        """Let a network's denoiser compute what depends on time alone for the whole grid at once."""
        if isinstance(self._denoiser, Denoiser):
            self._denoiser = self._denoiser.tabulated(grid, points)
