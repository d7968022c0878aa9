"""What the networks share: their registry, the check of their shape, and the blocks of U-Nets.

References:
    J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239, Appendix B.
    Y. Song et al., 2021, arXiv:2011.13456 (DDPM++: residual sums scaled by 1/√2, min(C/4, 32) groups).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.errors import require, require_int
from sde_diffusion.registry import Registry

NETWORKS: Registry[nn.Module] = Registry("network")
"""Networks by name; each takes ``shape``, that of one example, and options with defaults, and is ``net(x, label)``."""


def require_sizes(name: str, sizes: Sequence[int], expected: str, length: int | None = None) -> tuple[int, ...]:
    """Return whole numbers ≥ 1 as a tuple.

    Raises:
        InputError: if ``sizes`` is anything else, is empty, or has not ``length`` entries where that is given.
    """
    ok = isinstance(sizes, Sequence) and not isinstance(sizes, str) and len(sizes) > 0
    ok = ok and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in sizes)
    require(ok and length in (None, len(sizes)), name, sizes, expected)
    return tuple(sizes)


Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def zero_init(layer: Layer) -> Layer:
    """Set weights and bias to zero: the branch that ends in this layer starts as if it were not there."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps the size, with Xavier weights and no bias at first."""
    layer = zero_init(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2))
    nn.init.xavier_uniform_(layer.weight)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with as many groups as divide the channels, min(channels/4, 32) at most."""
    require_int("channels", channels, 4)
    groups = max(g for g in range(1, min(channels // 4, 32) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Attention(nn.Module):
    """Self-attention of all pixels, one head, in a residual sum scaled by 1/√2: (B, C, H, W) → (B, C, H, W).

    The last projection starts at zero.

    Args:
        channels: C, at least 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = conv(channels, 3 * channels, kernel=1)
        self.out = zero_init(conv(channels, channels, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, HW, C) each
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.reshape(x.shape)
        mixed: Tensor = (x + self.out(attended)) * math.sqrt(0.5)
        return mixed


class ResBlock(nn.Module):
    """Two convolutions with normalisation and time code in a residual sum scaled by 1/√2, then attention if asked for.

        h = conv(SiLU(norm(x))) + dense(code);  h = conv₀(dropout(SiLU(norm(h))));  out = (x + h)/√2

    conv₀ starts at zero. Where the channels change, x passes a 1×1 convolution.

    Args:
        in_channels, out_channels: (B, in, H, W) → (B, out, H, W).
        code_width: size of the time code, (B, code_width).
        dropout: probability of dropping a feature.
        attention: whether :class:`Attention` follows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, code_width: int, dropout: float = 0.0, attention: bool = False
    ) -> None:
        super().__init__()
        self.norm_in = group_norm(in_channels)
        self.conv_in = conv(in_channels, out_channels)
        self.code = nn.Linear(code_width, out_channels)
        self.norm_out = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero_init(conv(out_channels, out_channels))
        self.skip = conv(in_channels, out_channels, kernel=1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x))) + self.code(code)[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        out: Tensor = self.attention((self.skip(x) + h) * math.sqrt(0.5))
        return out
