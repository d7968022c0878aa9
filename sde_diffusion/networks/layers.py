"""What the networks share: their registry, the check of their shape, and the blocks of U-Nets.

References:
    J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239, Appendix B.
    Y. Song et al., 2021, arXiv:2011.13456, Appendix H (DDPM++, NCSN++: residual sums scaled by 1/√2, min(C/4, 32)
    groups, blocks that resample). R. Zhang, "Making Convolutional Networks Shift-Invariant Again", 2019,
    arXiv:1904.11486 (FIR resampling: smoothing before subsampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.errors import require, require_int
from sde_diffusion.networks import winograd
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


def require_levels(
    shape: Sequence[int], channels: int, channel_mults: Sequence[int]
) -> tuple[int, int, tuple[int, ...]]:
    """Check what all U-Nets are given; returns the image's channels and height, and the multiples of the levels.

    Raises:
        InputError: if one is out of range, or the sides cannot be halved often enough.
    """
    image_channels, height, width = require_sizes("shape", shape, "(channels, height, width)", 3)
    mults = require_sizes("channel_mults", channel_mults, "one whole number of at least 1 for each level")
    factor = 2 ** (len(mults) - 1)
    halvable = height % factor == 0 and width % factor == 0
    expected = f"sides divisible by {factor} for {len(mults)} levels"
    require(halvable, "shape", tuple(shape), expected, "give fewer channel_mults")
    require_int("channels", channels, 4)
    require(channels % 4 == 0, "channels", channels, "a multiple of 4")
    return image_channels, height, mults


Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def zero_init(layer: Layer) -> Layer:
    """Set weights and bias to zero: the branch that ends in this layer starts as if it were not there."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Conv(nn.Conv2d):
    """A convolution with a bias that takes the way with fewer multiplications where that is there and pays."""

    def forward(self, x: Tensor) -> Tensor:
        plain = self.kernel_size == (3, 3) and self.stride == self.padding == (1, 1)
        if plain and self.bias is not None and winograd.pays(x, self.weight):
            out: Tensor = winograd.convolve(x, self.weight, self.bias)
            return out
        return super().forward(x)


def conv(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps the size, with Xavier weights and no bias at first."""
    layer = zero_init(Conv(in_channels, out_channels, kernel, padding=kernel // 2))
    nn.init.xavier_uniform_(layer.weight)
    return layer


class GroupNorm(nn.GroupNorm):
    """Group normalisation that leaves channels-last layout where PyTorch's kernel for it is slow.

    On a CPU, with few channels a group and small pictures, it takes up to ten times as long as the plain layout's.
    """

    def forward(self, x: Tensor) -> Tensor:
        slow = x.device.type == "cpu" and x.shape[1] < 8 * self.num_groups and x.shape[2:].numel() < 1024
        return super().forward(x.contiguous() if slow and not torch.compiler.is_compiling() else x)


def group_norm(channels: int, group_size: int = 4) -> nn.GroupNorm:
    """Group normalisation with as many groups as divide the channels, min(channels/group_size, 32) at most."""
    require_int("channels", channels, group_size)
    groups = max(g for g in range(1, min(channels // group_size, 32) + 1) if channels % g == 0)
    return GroupNorm(groups, channels, eps=1e-6)


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else needs: in place where no gradient needs it either, which saves its memory."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def halve(x: Tensor) -> Tensor:
    """Average over squares of 2×2: (B, C, H, W) → (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Repeat each pixel over a square of 2×2: (B, C, H, W) → (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ConvDouble(nn.Module):
    """DDPM's way up: repeat the pixels, then a convolution: (B, C, H, W) → (B, C, 2H, 2W); the code is not read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        out: Tensor = self.conv(double(h))
        return out


def _fir(x: Tensor) -> Tensor:
    """The filter (1, 3, 3, 1)/8 along both sides, for each channel of ``x``: (C, 1, 4, 4).

    Computed on the spot and on the device, so that a network has no constants to copy or to restore.
    """
    i = torch.arange(4, device=x.device, dtype=x.dtype)
    row = (1.0 + i * (3.0 - i)) / 8.0
    return (row[:, None] * row).expand(x.shape[1], 1, 4, 4)


def fir_blur(x: Tensor) -> Tensor:
    """Filter by (1, 3, 3, 1)/8 along both sides, two zeros around the picture: (B, C, H, W) → (B, C, H+1, W+1)."""
    return F.conv2d(x, _fir(x), padding=2, groups=x.shape[1])


def fir_halve(x: Tensor) -> Tensor:
    """Filter by (1, 3, 3, 1)/8 along both sides and keep every other pixel: (B, C, H, W) → (B, C, H/2, W/2)."""
    return F.conv2d(x, _fir(x), stride=2, padding=1, groups=x.shape[1])


def fir_double(x: Tensor) -> Tensor:
    """Put zeros between the pixels and filter by (1, 3, 3, 1)/4 along both sides: (B, C, H, W) → (B, C, 2H, 2W)."""
    return F.conv_transpose2d(x, 4.0 * _fir(x), stride=2, padding=1, groups=x.shape[1])


class Attention(nn.Module):
    """Self-attention of all pixels, one head, in a residual sum: (B, C, H, W) → (B, C, H, W).

    The last projection starts at zero.

    Args:
        channels: C, at least ``group_size``.
        rescale: whether the sum is scaled by 1/√2.
        group_size: channels that a group of the normalisation has at least.
    """

    def __init__(self, channels: int, rescale: bool = True, group_size: int = 4) -> None:
        super().__init__()
        self.scale = math.sqrt(0.5) if rescale else 1.0
        self.norm = group_norm(channels, group_size)
        self.qkv = conv(channels, 3 * channels, kernel=1)
        self.out = zero_init(conv(channels, channels, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, HW, C) each
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.reshape(x.shape)
        mixed: Tensor = (x + self.out(attended)) * self.scale
        return mixed


class ResBlock(nn.Module):
    """Two convolutions with normalisation and time code in a residual sum, then attention if asked for.

        h = conv(SiLU(norm(x))) + dense(code);  h = conv₀(dropout(SiLU(norm(h))));  out = (x + h)/√2

    conv₀ starts at zero. Where the channels or the size change, x passes a 1×1 convolution.

    Args:
        in_channels, out_channels: (B, in, H, W) → (B, out, H, W).
        code_width: size of the time code, (B, code_width).
        dropout: probability of dropping a feature.
        attention: whether :class:`Attention` follows.
        resample: changes the size of both branches, the residual one before its first convolution.
        rescale: whether the sums are scaled by 1/√2.
        group_size: channels that a group of the normalisation has at least.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        code_width: int,
        dropout: float = 0.0,
        attention: bool = False,
        resample: Callable[[Tensor], Tensor] | None = None,
        rescale: bool = True,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.scale = math.sqrt(0.5) if rescale else 1.0
        self.norm_in = group_norm(in_channels, group_size)
        self.conv_in = conv(in_channels, out_channels)
        self.code = nn.Linear(code_width, out_channels)
        self.norm_out = group_norm(out_channels, group_size)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero_init(conv(out_channels, out_channels))
        changed = in_channels != out_channels or resample is not None
        self.skip = conv(in_channels, out_channels, kernel=1) if changed else nn.Identity()
        self.attention = Attention(out_channels, rescale, group_size) if attention else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = silu(self.norm_in(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv_in(h) + self.code(code)[:, :, None, None]
        h = self.conv_out(self.dropout(silu(self.norm_out(h))))
        out: Tensor = self.attention((self.skip(x) + h) * self.scale)
        return out
