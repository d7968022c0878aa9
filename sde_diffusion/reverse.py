"""Time reversal: the reverse SDE, the probability-flow ODE and the adapter to torchsde.

    reverse SDE              dx = [f x − g² ∇log p_t(x)] dt + g dw̄        (time runs from T to 0)
    probability-flow ODE     dx = [f x − ½ g² ∇log p_t(x)] dt             (the same marginals, no noise)

References:
    B. Anderson, "Reverse-time diffusion equation models", 1982; Song et al. 2021, arXiv:2011.13456, Eqs. 6 and 13.
"""

from __future__ import annotations

import math

from torch import Tensor

from sde_diffusion.ops import expand
from sde_diffusion.types import DenoiserLike


def reverse_drift(denoiser: DenoiserLike, x: Tensor, t: Tensor, noise_level: float = 1.0) -> Tensor:
    """Return f x − ½ (1 + noise_level²) g² score, shape (B, *).

    Args:
        x: state, shape (B, *).
        t: time, shape () or (B,).
        noise_level: the SDE's noise as a multiple of g: 1 is the reverse SDE, 0 the probability-flow ODE (any value
            has the same marginals; Karras et al. 2022, arXiv:2206.00364, Eq. 6).
    """
    f, g = denoiser.sde.coefficients(t)
    half = 0.5 * (1.0 + noise_level**2)
    return expand(f, x) * x - expand(half * g**2, x) * denoiser(x, t).score


def probability_flow_drift(denoiser: DenoiserLike, x: Tensor, t: Tensor) -> Tensor:
    """Return the drift f x − ½ g² score of the probability-flow ODE, shape (B, *)."""
    return reverse_drift(denoiser, x, t, noise_level=0.0)


class TorchSDEReverse:
    """The reverse SDE as torchsde wants it: flat states (B, D), a clock that runs forward.

    The clock u counts steps, t = T − u h with h = (T − t_min)/num_steps, so that torchsde takes steps of exactly 1
    (steps that are not dyadic make its Brownian paths cost up to 100 times more). Noise is additive and the same for
    all components, so the diffusion is a product and never a D × D matrix. torchsde asks for the drift at one point
    several times (its shape check, its stages): the last few are kept, so that each costs one network evaluation.

    Args:
        denoiser: the model.
        shape: shape (B, *) of the state.
        num_steps: steps from T to ``t_min``.
        t_min: the last time.
        sde_type: "ito" or "stratonovich"; the two agree because g does not depend on the state.
    """

    noise_type = "additive"

    def __init__(
        self, denoiser: DenoiserLike, shape: tuple[int, ...], num_steps: int, t_min: float, sde_type: str = "ito"
    ) -> None:
        self.denoiser, self.shape, self.sde_type = denoiser, shape, sde_type
        self.step_size = (denoiser.sde.T - t_min) / num_steps
        self._recent: list[tuple[Tensor, Tensor, Tensor]] = []

    def time(self, u: Tensor) -> Tensor:
        """Return the diffusion time t of clock ``u``."""
        return self.denoiser.sde.T - self.step_size * u

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """Drift −h (f x − g² score), shape (B, D)."""
        for seen_u, seen_y, drift in self._recent:
            if seen_y is y and bool(seen_u == u):  # clocks live on the CPU
                return drift
        drift = -self.step_size * reverse_drift(self.denoiser, y.reshape(self.shape), self.time(u)).reshape(y.shape)
        self._recent = [*self._recent[-3:], (u, y, drift)]
        return drift

    def scale(self, u: Tensor) -> Tensor:
        """Diffusion √h g of every component, 0-dimensional."""
        return self.denoiser.sde.coefficients(self.time(u))[1] * math.sqrt(self.step_size)

    def g_prod(self, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Product √h g v, shape (B, D)."""
        return v * self.scale(u)

    def f_and_g_prod(self, u: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and product together."""
        return self.f(u, y), self.g_prod(u, y, v)


class TorchSDEReverseDiagonal(TorchSDEReverse):
    """The same for schemes that need the diffusion itself (reversible Heun): a diagonal."""

    noise_type = "diagonal"

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """Diffusion √h g, shape (B, D)."""
        return y.new_ones(y.shape) * self.scale(u)
