"""The U-Net: DDPM++ made small enough for a CPU, for series, images and volumes.

Like DDPM++ it has residual sums scaled by 1/√2, groups of at least four channels, a time code added in every block,
attention at chosen sizes and in the middle, and last convolutions that start at zero. To be cheap, it resamples between
blocks, by plain average and nearest neighbour, instead of in blocks of their own, and each block on the way up meets
the output of one block from the way down.

References:
    O. Ronneberger, P. Fischer, T. Brox, "U-Net", 2015, arXiv:1505.04597.
    Y. Song et al., 2021, arXiv:2011.13456 (DDPM++); J. Ho et al., 2020, arXiv:2006.11239, Appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require, require_int
from sde_diffusion.networks.blocks import ResBlock, Style
from sde_diffusion.networks.embeddings import ClassConditional, TimeEmbedding
from sde_diffusion.networks.layers import GRIDS, NETWORKS, require_levels, require_sizes, silu, zero_init
from sde_diffusion.networks.resampling import double, halve


@NETWORKS.register("unet")
class UNet(ClassConditional):
    """A time-conditioned U-Net: x (B, *shape), label (B,) → (B, *shape); zero at first.

    A class-conditional network also takes ``classes`` (B,), whole numbers from 0; without them it is unconditional.

    Args:
        shape: of one example: (C, L) of a series, (C, H, W) of an image or (C, D, H, W) of a volume; its sides are
            halved once per level after the first.
        channels: features at full size, a multiple of 4.
        channel_mults: features of each level in units of ``channels``; as many entries as levels.
        num_blocks: residual blocks of each level, on the way down and again on the way up; one number is that of all
            levels. Blocks of small size hold as many parameters as others and cost little.
        attention: sizes of the first side (length, height or depth) at which every block ends in attention; the middle
            always does, sizes not met are ignored.
        dropout: probability of dropping a feature inside a block.
        embedding: how the label is read, "sinusoidal" (any label) or "fourier" (label log σ).
        num_classes: number of classes of a class-conditional network, else 0.
        dims: number of sides, 1, 2 or 3; 0 for as many as ``shape`` has.

    Raises:
        InputError: if an option is out of range, the shape has other sides, or they cannot be halved often enough.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 64,
        channel_mults: Sequence[int] = (1, 2),
        num_blocks: Sequence[int] = (2,),
        attention: Sequence[int] = (4,),
        dropout: float = 0.0,
        embedding: str = "sinusoidal",
        num_classes: int = 0,
        dims: int = 0,
    ) -> None:
        super().__init__()
        (image_channels, *sides), mults = require_levels(shape, channels, channel_mults, tuple(GRIDS))
        expected = f"{len(sides)}, for there are as many sides in shape {tuple(shape)}, or 0"
        require_int("dims", dims, 0)
        require(dims in (0, len(sides)), "dims", dims, expected)
        expected = f"one whole number of at least 1, or {len(mults)} for as many levels"
        counts = require_sizes("num_blocks", num_blocks, expected)
        require(len(counts) in (1, len(mults)), "num_blocks", num_blocks, expected)
        counts *= len(mults) // len(counts)
        sizes = require_sizes("attention", attention, "sizes of at least 1") if attention else ()

        style = Style(code_width=4 * channels, dropout=dropout, scale=math.sqrt(0.5), dims=len(sides))
        self.time = TimeEmbedding(embedding, channels, style.code_width)
        self.embed_classes(num_classes, style.code_width)
        self.stem = style.conv(image_channels, channels)
        levels = [(channels * mult, sides[0] // 2**depth in sizes, counts[depth]) for depth, mult in enumerate(mults)]
        down, up, below = [], [], channels
        for out, attend, count in levels:
            for _ in range(count):
                down.append(ResBlock(below, out, style, attend))
                below = out
        middle = [ResBlock(below, below, style, attend) for attend in (True, False)]
        for out, attend, count in reversed(levels):
            for _ in range(count):
                up.append(ResBlock(below + out, out, style, attend))
                below = out
        self.halved, self.doubled = set(accumulate(counts[:-1])), set(accumulate(counts[:0:-1]))
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.norm = style.norm(below)
        self.head = zero_init(style.conv(below, image_channels))

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        code = self.add_classes(self.time(label), classes)
        h = self.stem(x)
        skips = []
        for i, block in enumerate(self.down):
            if i in self.halved:
                h = halve(h)
            h = block(h, code)
            skips.append(h)
        for block in self.middle:
            h = block(h, code)
        for i, block in enumerate(self.up):
            if i in self.doubled:
                h = double(h)
            h = block(torch.cat([h, skips.pop()], dim=1), code)
        out: Tensor = self.head(silu(self.norm(h)))
        return out
