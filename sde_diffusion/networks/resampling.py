"""Half and twice the size: averages and repeated pixels, convolutions, and a filter that smooths before subsampling.

What may stand in the place of a residual block is called as one, with a time code that it does not read.

References:
    J. Ho, A. Jain, P. Abbeel, 2020, arXiv:2006.11239, Appendix B (convolutions). R. Zhang, "Making Convolutional
    Networks Shift-Invariant Again", 2019, arXiv:1904.11486 (FIR resampling: smoothing before subsampling). T. Karras et
    al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, arXiv:1912.04958, Section 4.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.networks.layers import conv

AVERAGES = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}


def halve(x: Tensor) -> Tensor:
    """Average over pairs, squares or cubes of side 2: (B, C, *sides) → (B, C, *sides/2), of 1, 2 or 3 sides."""
    return AVERAGES[x.dim()](x, 2)


def double(x: Tensor) -> Tensor:
    """Repeat each pixel twice along every side: (B, C, *sides) → (B, C, *2 sides), of 1, 2 or 3 sides."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ConvHalve(nn.Module):
    """DDPM's way down, a convolution of stride 2: (B, C, H, W) → (B, C, H/2, W/2); the code is not read.

    Args:
        channels: C.
        padding: 0 for zeros below and to the right, as in DDPM; 1 for zeros all around.
    """

    def __init__(self, channels: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = conv(channels, channels)
        self.conv.stride, self.conv.padding = (2, 2), (padding, padding)
        self.padding = padding

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        out: Tensor = self.conv(h if self.padding else F.pad(h, (0, 1, 0, 1)))
        return out


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


class FIRConvHalve(nn.Module):
    """The input residual's way down: filter, then a convolution of stride 2: (B, in, H, W) → (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels)
        self.conv.stride, self.conv.padding = (2, 2), (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(fir_blur(x))
        return out
