"""Karras' stochastic sampler: Heun's method with churn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.base import SAMPLERS
from samplers.grid import GridSampler
from samplers.heun import trapezoid
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import require_float
from sde_diffusion.levels import NoiseLevel, transition
from sde_diffusion.ops import Number, add_scaled_, sqrt
from sde_diffusion.types import NoiseFn

LARGEST_CHURN = math.sqrt(2.0) - 1.0
"""Largest γ: no step adds more noise than there is."""


@SAMPLERS.register("edm")
@dataclass(frozen=True, kw_only=True)
class StochasticHeun(GridSampler[Mapping[Number, NoiseLevel]]):
    """Before each step the noise is raised, ρ̂ = (1 + γ) ρ_t, then Heun's method goes from ρ̂ to ρ_s.

    With ρ = σ/α, on every SDE: x̂/α̂ = x_t/α_t + √(ρ̂² − ρ_t²) S_noise z, γ = min(S_churn/N, √2 − 1) where ρ_t lies in
    [S_min, S_max], else 0; N is the number of steps, the denoising step included, which is without churn. The state is
    raised by the SDE's own forward transition: with S_noise = 1 the law stays exact. ρ̂ belongs to a time up to T: γ is
    smaller where it would lie beyond, so that the first step has none; where the network was trained at some times
    alone, ρ̂ is the nearest of theirs. The noise of churn belongs to no interval of the reverse process: it is fresh on
    a Brownian path too. S_churn = 0 is "heun".

    Args:
        s_churn: S_churn ≥ 0, in units of γ N: how much noise all steps together add.
        s_min, s_max: S_min ≥ 0 and S_max ≥ S_min, in σ/α: churn between them alone.
        s_noise: S_noise > 0, which scales the noise; slightly above 1 it makes up for a network that removes too much.

    References:
        Karras et al. 2022, arXiv:2206.00364, Algorithm 2 and Table 5 (their values; σ/α is their σ).
    """

    order = 2
    nfe_per_step = 2
    reference = "Karras et al. 2022, arXiv:2206.00364, Alg. 2"

    grid: str = "log_snr"
    s_churn: float = 10.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_float("s_churn", self.s_churn, 0.0)
        require_float("s_min", self.s_min, 0.0)
        require_float("s_max", self.s_max, self.s_min, remedy=f"s_min is {self.s_min:g}")
        require_float("s_noise", self.s_noise, 0.0, open_low=True)

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0.0

    def init(self, denoiser: AbstractDenoiser, x: Tensor, levels: Sequence[NoiseLevel]) -> Mapping[Number, NoiseLevel]:
        """Return the level that each time is raised to; times without churn are left out."""
        num_steps = max(1, len(levels) - 1 + self.denoise)
        churned = [level for level in levels if self.s_churn and self.s_min <= level.ratio <= self.s_max]
        t = torch.tensor([level.t for level in churned], dtype=torch.float64)
        log_snr = torch.tensor([level.log_snr for level in churned], dtype=torch.float64)
        log_snr -= 2.0 * math.log1p(min(self.s_churn / num_steps, LARGEST_CHURN))
        raised = denoiser.round_t(denoiser.sde.time_of_log_snr(log_snr)).clamp_max(denoiser.sde.t_max)
        above = raised > t
        return dict(zip(t[above].tolist(), denoiser.sde.levels(raised[above]), strict=True))

    def step(
        self,
        denoiser: AbstractDenoiser,
        x: Tensor,
        t: NoiseLevel,
        s: NoiseLevel,
        state: Mapping[Number, NoiseLevel],
        noise: NoiseFn,
    ) -> tuple[Tensor, Mapping[Number, NoiseLevel]]:
        raised = state.get(t.t, t)
        if raised is not t:
            alpha_ts, added = transition(raised, t)
            x = add_scaled_(alpha_ts * x, self.s_noise * sqrt(added), noise(x, t, t))
        return trapezoid(denoiser, x, raised, s), state
