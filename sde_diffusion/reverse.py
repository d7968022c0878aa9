"""Time reversal: the reverse SDE, the probability-flow ODE and the adapter to torchsde.

    reverse SDE              dx = [f x − g² ∇log p_t(x)] dt + g dw̄        (time runs from T to 0)
    probability-flow ODE     dx = [f x − ½ g² ∇log p_t(x)] dt             (the same marginals, no noise)

References:
    B. Anderson, "Reverse-time diffusion equation models", 1982; Song et al. 2021, arXiv:2011.13456, Eqs. 6 and 13.

In discrete time the reversal is the forward posterior q(x_s | x_t, x₀) with x₀ predicted (Ho et al. 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import InputError
from sde_diffusion.levels import NoiseLevel, transition
from sde_diffusion.ops import Number, expand, like
from sde_diffusion.predictions import Prediction
from sde_diffusion.sde import SDE

PREDICTED = "predicted"
"""The reverse variance that the prediction tells."""


def reverse_drift(denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel | Number) -> Tensor:
    """Return the drift f x − g² score of the reverse SDE, shape (B, *), at ``x`` (B, *) and ``t`` (a level or time)."""
    level = denoiser.level(t)
    here = level.like(x)
    return denoiser(x, level).combine(x=here.f, score=-(here.g**2))


def posterior_coefficients(t: NoiseLevel, s: NoiseLevel) -> tuple[Number, Number, Number]:
    """Return a, b and β̃ of the forward posterior q(x_s | x_t, x₀) = N(a x_t + b x₀, β̃ I), s < t.

    a = α_{t|s} σ_s²/σ_t²,  b = α_s σ²_{t|s}/σ_t²,  β̃ = σ²_{t|s} σ_s²/σ_t².
    """
    alpha_ts, beta = transition(t, s)
    ratio = (s.sigma / t.sigma) ** 2
    return alpha_ts * ratio, s.alpha * beta / t.sigma**2, beta * ratio


def forward_posterior(sde: SDE, x: Tensor, x0: Tensor, t: Number, s: Number) -> tuple[Tensor, Tensor]:
    """Return mean, (B, *), and variance, shape of ``t``, of q(x_s | x_t, x₀) for every linear SDE and any s < t.

    Args:
        x: x_t, (B, *).
        x0: x₀, (B, *).
        t, s: times: numbers, or tensors () or (B,).

    References:
        Ho et al. 2020, arXiv:2006.11239, Eqs. 6 and 7; for any two times Kingma et al. 2021, arXiv:2107.00630, Eq. 27.
    """
    of_x, of_x0, variance = posterior_coefficients(sde.at(t), sde.at(s))
    mean = like(of_x, x) * x + like(of_x0, x) * x0
    return mean, variance if isinstance(variance, Tensor) else torch.tensor(variance, dtype=torch.float64)


def reverse_variance(prediction: Prediction, t: NoiseLevel, s: NoiseLevel, variance: str | float) -> Number:
    """Return the variance of the reverse step from ``t`` to ``s``, a number or (B, *).

    With β = σ²_{t|s} and β̃ of the forward posterior it is β^w β̃^{1−w}, where w is 0 for "posterior", 1 for "beta", or
    the number that ``variance`` is. "predicted" takes what the prediction tells: w from its ``variance_fraction``, or
    from Cov[x₀ | x_t] the exact variance of x_s given x_t, β̃ + b² Var[x₀ | x_t] with b = α_s σ²_{t|s}/σ_t².

    Raises:
        InputError: if ``variance`` is none of these, or the prediction tells nothing of its variance.

    References:
        Ho et al. 2020, arXiv:2006.11239, Section 3.2. Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15. F. Bao et al.,
        "Analytic-DPM", 2022, arXiv:2201.06503, Theorem 1.
    """
    _, beta = transition(t, s)
    _, of_x0, exact = posterior_coefficients(t, s)
    weight: Number
    if variance != PREDICTED:
        weight = variance_weight(variance)
    elif prediction.variance_fraction is not None:
        weight = prediction.variance_fraction
    elif prediction.variance is not None:
        return exact + of_x0**2 * prediction.variance
    else:
        raise InputError(
            f"variance={variance!r}: expected a network with a variance among its outputs, or a law; take 'posterior'"
        )
    return beta * (exact / beta) ** (1.0 - weight)


def variance_weight(variance: str | float) -> float:
    """Return the weight w of log β in the log reverse variance β^w β̃^{1−w}: 0 for "posterior", 1 for "beta".

    Raises:
        InputError: unless it is one of the two or a number in [0, 1].
    """
    try:
        weight = float({"posterior": 0.0, "beta": 1.0}.get(str(variance), variance))
    except (TypeError, ValueError):
        weight = math.nan
    if not 0.0 <= weight <= 1.0:
        raise InputError(f"variance={variance!r}: expected 'posterior', 'beta', 'predicted' or a number in [0, 1]")
    return weight


def require_variance(variance: str | float) -> None:
    """Refuse what :func:`reverse_variance` has no meaning for.

    Raises:
        InputError: names it.
    """
    if variance != PREDICTED:
        variance_weight(variance)


class AngularFlow:
    """The probability-flow ODE in the angle φ = atan(σ/α), where it is the same for every SDE.

    With r = √(α² + σ²), α = r cos φ, σ = r sin φ and the state w = x/r = cos φ x₀ + sin φ ε,

        dw/dφ = cos φ ε̂ − sin φ x̂₀.

    Neither f nor g appears: states and slopes have unit size under every SDE, and coefficients that jump (a discrete
    chain's) or vary fast do not disturb an adaptive solver. Time is recovered from log SNR = −2 log tan φ.

    References:
        T. Salimans, J. Ho, 2022, arXiv:2202.00512, Appendix D (the angle, for VP); Song et al. 2021, Eq. 13.

    Args:
        denoiser: the model.
    """

    def __init__(self, denoiser: AbstractDenoiser) -> None:
        self.denoiser = denoiser

    def angle(self, t: Tensor) -> Tensor:
        """Return φ at times ``t``."""
        return torch.atan2(self.denoiser.sde.sigma(t), self.denoiser.sde.alpha(t))

    def time(self, angle: Tensor) -> Tensor:
        """Return the times at which the angle is φ."""
        return self.denoiser.sde.time_of_log_snr(-2.0 * angle.tan().log())

    def radius(self, t: Tensor) -> Tensor:
        """Return r = √(α² + σ²) at times ``t``."""
        return (self.denoiser.sde.alpha(t) ** 2 + self.denoiser.sde.sigma(t) ** 2).sqrt()

    def __call__(self, angle: Tensor, w: Tensor) -> Tensor:
        """Return dw/dφ, shape (B, *), at angles () or (B,) and states ``w`` (B, *); one evaluation of the denoiser."""
        level = self.denoiser.sde.at(self.time(angle))
        prediction = self.denoiser(w * like(level.radius, w), level)
        return expand(angle.cos(), w) * prediction.eps - expand(angle.sin(), w) * prediction.x0


class TorchSDEReverse:
    """The reverse SDE as torchsde wants it: flat states (B, D), a clock that runs forward.

    The clock u counts steps, t = t_max − u h with h = (t_max − t_min)/num_steps, so that torchsde takes steps of
    exactly 1 (steps that are not dyadic make its Brownian paths cost up to 100 times more). Noise is additive and the
    same for all components, so the diffusion is a product and never a D × D matrix. torchsde asks for the drift at one
    point several times (its shape check, its stages): the last few are kept, so that each costs one evaluation.

    Args:
        denoiser: the model.
        shape: shape (B, *) of the state.
        num_steps: steps from ``t_max`` to ``t_min``.
        t_max, t_min: the first time and the last.
        sde_type: "ito" or "stratonovich"; the two agree because g does not depend on the state.
    """

    noise_type = "additive"

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        shape: tuple[int, ...],
        num_steps: int,
        t_max: float,
        t_min: float,
        sde_type: str = "ito",
    ) -> None:
        self.denoiser, self.shape, self.t_max, self.sde_type = denoiser, shape, t_max, sde_type
        self.step_size = (t_max - t_min) / num_steps
        self._recent: list[tuple[Tensor, Tensor, Tensor]] = []
        steps = torch.arange(num_steps + 1, dtype=torch.float64)
        self._levels: dict[float, NoiseLevel] = dict(
            zip(steps.tolist(), denoiser.sde.levels(self._time(steps)), strict=True)
        )

    def _time(self, u: Tensor) -> Tensor:
        return self.t_max - self.step_size * u

    def level(self, u: Tensor) -> NoiseLevel:
        """Return the noise level of clock ``u``: of whole steps all were computed at once."""
        clock = float(u)  # clocks live on the CPU
        if clock not in self._levels:
            self._levels[clock] = self.denoiser.sde.at(self._time(u))
        return self._levels[clock]

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """Drift −h (f x − g² score), shape (B, D)."""
        for seen_u, seen_y, drift in self._recent:
            if seen_y is y and bool(seen_u == u):  # clocks live on the CPU
                return drift
        drift = -self.step_size * reverse_drift(self.denoiser, y.reshape(self.shape), self.level(u)).reshape(y.shape)
        self._recent = [*self._recent[-3:], (u, y, drift)]
        return drift

    def scale(self, u: Tensor) -> Number:
        """Diffusion √h g of every component."""
        return self.level(u).g * math.sqrt(self.step_size)

    def g_prod(self, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Product √h g v, shape (B, D)."""
        return v * self.scale(u)

    def f_and_g_prod(self, u: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and product together."""
        return self.f(u, y), self.g_prod(u, y, v)
