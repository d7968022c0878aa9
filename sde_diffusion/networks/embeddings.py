"""How a network reads its time label: a number becomes a vector of waves, and the waves a learned code.

A label may be 999 t, a DDPM index in 0 … 999 or log σ in about −5 … 4. The sinusoidal embedding has wave lengths from
2π to 2π·10⁴ and tells labels of all three kinds apart; Gaussian Fourier features are meant for log σ.

References:
    A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, Section 3.5.
    M. Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", 2020,
    arXiv:2006.10739; as time embedding Y. Song et al., 2021, arXiv:2011.13456 (NCSN++, scale 16).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.registry import Registry

EMBEDDINGS: Registry[nn.Module] = Registry("embedding")


@EMBEDDINGS.register("sinusoidal")
class Sinusoidal(nn.Module):
    """(sin ω_i c, cos ω_i c) with ω_i = max_period^(−i/(features/2 − shift)): (B,) → (B, features).

    The frequencies are computed on the spot, so a network built on the meta device has nothing to restore.

    Args:
        features: an even number of at least 4.
        max_period: the longest wave is 2π times this, with ``shift`` 1.
        shift: a number below features/2.
    """

    def __init__(self, features: int, max_period: float = 10_000.0, shift: float = 1.0) -> None:
        super().__init__()
        require_int("features", features, 4)
        require(features % 2 == 0, "features", features, "an even number")
        require_float("max_period", max_period, 1.0, open_low=True)
        require_float("shift", shift)
        require(2.0 * shift < features, "shift", shift, f"a number below half of {features} features")
        self.features = features
        self.max_period = max_period
        self.shift = shift

    def forward(self, label: Tensor) -> Tensor:
        half = self.features // 2
        i = torch.arange(half, device=label.device, dtype=label.dtype)
        angle = label[:, None] * torch.exp(i * (-math.log(self.max_period) / (half - self.shift)))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


@EMBEDDINGS.register("fourier")
class GaussianFourier(nn.Module):
    """(sin 2π w_i c, cos 2π w_i c) with fixed w_i ~ N(0, scale²): (B,) → (B, features).

    The frequencies are drawn once from torch's global generator and saved with the weights.

    Args:
        features: an even number of at least 2.
        scale: standard deviation of the frequencies; 16 suits labels log σ, whose useful differences are about 1/16.
    """

    frequencies: Tensor

    def __init__(self, features: int, scale: float = 16.0) -> None:
        super().__init__()
        require_int("features", features, 2)
        require(features % 2 == 0, "features", features, "an even number")
        require_float("scale", scale, 0.0, open_low=True)
        self.register_buffer("frequencies", torch.randn(features // 2) * scale)

    def forward(self, label: Tensor) -> Tensor:
        angle = label[:, None] * self.frequencies * (2.0 * math.pi)  # in this order: angles of 1000 feel the rounding
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """The waves of a label through two dense layers with SiLU after each: (B,) → (B, width).

    Args:
        embedding: "sinusoidal" or "fourier".
        features: number of waves, even.
        width: size of the code.
    """

    def __init__(self, embedding: str, features: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            EMBEDDINGS.build(embedding, features=features),
            nn.Linear(features, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )

    def forward(self, label: Tensor) -> Tensor:
        code: Tensor = self.layers(label)
        return code
