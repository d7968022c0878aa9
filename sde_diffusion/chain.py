"""The discrete DDPM chain as an exact SDE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion.errors import InputError, require, require_int, shortened
from sde_diffusion.sde import SDE, SDES

LEAST_BETA = 1e-12
"""The least β of a chain: of less, float64 holds no more than a few digits of what it changes in ᾱ."""
LONGEST_CHAIN = 1_000_000
"""Most steps of a chain: a thousand times those of any paper, and still read in a second."""


def require_chain(name: str, value: int) -> None:
    """Require a number of steps that a chain may have."""
    require_int(name, value, 1)
    require(value <= LONGEST_CHAIN, name, value, f"at most {LONGEST_CHAIN:,} steps")


class DDPMChain(SDE):
    """The discrete DDPM chain as an exact SDE.

    A rate β(t) that is constant, −N log(1 − β_i), on ((i−1)/N, i/N] gives α(i/N)² = ᾱ_i = Π_{j≤i}(1 − β_j): the chain
    *is* the SDE seen at t = i/N, not its limit. The linear :class:`VPSDE` only approximates it.

    Args:
        betas: β_1 … β_N, each in [1e-12, 1).

    Raises:
        InputError: if ``betas`` is empty or one lies outside [1e-12, 1).

    References:
        Ho et al. 2020, arXiv:2006.11239, Eqs. 2 and 4 and Section 4; Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17.
    """

    smooth = False

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        try:
            self.betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu").clone()
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise InputError(f"betas={shortened(repr(betas))}: expected numbers") from None
        require(self.betas.ndim == 1 and len(self.betas) > 0, "betas", tuple(self.betas.shape), "a non-empty list")
        for i, beta in enumerate(self.betas.tolist(), start=1):
            if not LEAST_BETA <= beta < 1.0:
                raise InputError(f"betas[{i - 1}]={beta!r}: expected every beta in [{LEAST_BETA:g}, 1)")
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.num_train_steps = len(self.betas)
        self.t_min = 1.0 / self.num_train_steps

    @classmethod
    def linear(cls, num_train_steps: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02) -> DDPMChain:
        """DDPM's own schedule: ``num_train_steps`` betas evenly from ``beta_first`` to ``beta_last``."""
        require_chain("num_train_steps", num_train_steps)
        return cls(torch.linspace(beta_first, beta_last, num_train_steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, num_train_steps: int = 1000, beta_last: float = 0.999) -> DDPMChain:
        """Improved DDPM's schedule, β_i = 1 − ᾱ_i/ᾱ_{i−1}, clipped at ``beta_last``."""
        require_chain("num_train_steps", num_train_steps)
        t = torch.linspace(0.0, 1.0, num_train_steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls((1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp_max(beta_last))

    def __repr__(self) -> str:
        return f"DDPMChain({self.num_train_steps} betas, {self.betas[0]:.3g} … {self.betas[-1]:.3g})"

    @cached_property
    def _log_rates(self) -> Tensor:
        return -torch.log1p(-self.betas)  # −log(1 − β_i) > 0, (N,)

    @cached_property
    def _integrals(self) -> Tensor:
        return torch.cat([self._log_rates.new_zeros(1), self._log_rates.cumsum(0)])  # B(i/N), (N + 1,)

    def _tables(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return B(i/N) and the rates in the dtype and on the device of ``t``, copied there once."""
        key = t.device, t.dtype
        if key not in self._copies:
            self._copies[key] = self._integrals.to(t), self._log_rates.to(t)
        return self._copies[key]

    def _integral(self, t: Tensor) -> Tensor:
        position = t * self.num_train_steps
        index = position.floor().clamp(0, self.num_train_steps - 1)
        i = index.long()
        table, rates = self._tables(t)
        return table[i] + (position - index) * rates[i]

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        integral = F.softplus(-log_snr)
        table, rates = self._tables(integral)
        i = torch.searchsorted(table, integral.contiguous()).clamp(1, self.num_train_steps) - 1
        return (i + (integral - table[i]) / rates[i]) / self.num_train_steps

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # i/N·N may exceed i by rounding; the slack keeps t = i/N in the interval that ends there.
        index = (t * self.num_train_steps - 1e-6).ceil().long().clamp(1, self.num_train_steps) - 1
        rate = self.num_train_steps * self._tables(t)[1][index]
        return -0.5 * rate, rate.sqrt()


@SDES.register("ddpm")
def ddpm_chain(
    schedule: str = "linear",
    num_train_steps: int = 1000,
    beta_first: float = 1e-4,
    beta_last: float = 0.02,
    betas: Sequence[float] = (),
) -> DDPMChain:
    """The DDPM chain for configs: ``schedule`` "linear", "cosine" which needs no betas, or its ``betas`` one by one."""
    if betas:
        return DDPMChain(betas)
    require(schedule in ("linear", "cosine"), "schedule", schedule, "'linear' or 'cosine'")
    if schedule == "cosine":
        return DDPMChain.cosine(num_train_steps)
    return DDPMChain.linear(num_train_steps, beta_first, beta_last)
