"""The networks of the papers: DDPM's U-Net, and DDPM++ and NCSN++ that grew out of it.

All three hand every feature map of the way down to the way up, which has therefore one block more on each level:

    down   stem, then a level: ``num_blocks`` blocks (with attention at chosen sizes), then half the size
    middle a block with attention, a block
    up     a level: ``num_blocks`` + 1 blocks, each meeting a map from the way down, attention after the last, then
           twice the size

    name     residual sums   groups            resampling                 input
    ddpm     plain           32                strided convolution        at the top
    ddpmpp   scaled by 1/√2  min(C/4, 32)      in a block, plain average  at the top
    ncsnpp   scaled by 1/√2  min(C/4, 32)      in a block, FIR            added again on every level, filtered

For large pictures NCSN++ takes the input, merely filtered and halved, to every level by a 1×1 convolution
("input_skip"), and its output is a picture that every level adds to, doubled from level to level ("output_skip").

On CIFAR-10 DDPM's has two blocks a level, the others four, or eight where they are called deep.

References:
    J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239, Appendix B.
    Y. Song et al., 2021, arXiv:2011.13456, Section 4.4 and Appendix H. Residual blocks that resample: A. Brock, J.
    Donahue, K. Simonyan, "Large Scale GAN Training", 2019, arXiv:1809.11096. FIR, the input residual, input and
    output skips: T. Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, arXiv:1912.04958,
    Section 4.1 and Figure 7.
    Checkpointed activations: T. Chen et al., 2016, arXiv:1604.06174.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sde_diffusion.errors import require, require_int
from sde_diffusion.networks.blocks import ResBlock, Style
from sde_diffusion.networks.embeddings import ClassConditional, TimeEmbedding
from sde_diffusion.networks.layers import NETWORKS, conv, require_levels, require_sizes, silu, zero_init
from sde_diffusion.networks.resampling import (
    ConvDouble,
    ConvHalve,
    FIRConvHalve,
    double,
    fir_double,
    fir_halve,
    halve,
)

INPUTS, OUTPUTS = ("none", "residual", "input_skip"), ("none", "output_skip")


class ToPicture(nn.Module):
    """What a level contributes to the picture: (B, C, H, W) → (B, image channels, H, W); zero at first."""

    def __init__(self, channels: int, image_channels: int, style: Style) -> None:
        super().__init__()
        self.norm, self.conv = style.norm(channels), zero_init(conv(channels, image_channels))

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.conv(silu(self.norm(h)))
        return out


class SkipUNet(ClassConditional, ABC):
    """What the three networks share: x (B, C, H, W), label (B,) → (B, C, H, W); zero at first.

    A class-conditional network also takes ``classes`` (B,), whole numbers from 0; without them it is unconditional.

    Args:
        shape: (C, H, W) of one image; H and W are halved once per level after the first.
        channels: features at full size, a multiple of 4.
        channel_mults: features of each level in units of ``channels``; as many entries as levels.
        num_blocks: residual blocks of each level on the way down; one more on the way up.
        attention: heights at which there is attention; the middle always has it, heights not met are ignored.
        dropout: probability of dropping a feature inside a block.
        embedding: how the label is read, "sinusoidal" (any label) or "fourier" (label log σ).
        num_classes: number of classes of a class-conditional network, else 0.
        checkpoint_activations: compute the insides of blocks again in the backward pass instead of keeping them, which
            trades time for memory; outputs and gradients stay the same.

    Raises:
        InputError: if an option is out of range or the sides cannot be halved often enough.
    """

    scale: ClassVar[float] = math.sqrt(0.5)
    group_size: ClassVar[int] = 4
    progressive: str = "none"
    progressive_input: str = "none"

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding: str = "sinusoidal",
        num_classes: int = 0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        (image_channels, height, _), mults = require_levels(shape, channels, channel_mults)
        require_int("num_blocks", num_blocks, 1)
        sizes = require_sizes("attention", attention, "heights of at least 1") if attention else ()
        ok = isinstance(checkpoint_activations, bool)
        require(ok, "checkpoint_activations", checkpoint_activations, "True or False")

        self.num_blocks, self.checkpoint_activations = num_blocks, checkpoint_activations
        self.style = Style(code_width=4 * channels, dropout=dropout, scale=self.scale, group_size=self.group_size)
        # As in the papers, both sines and cosines of ``channels`` random frequencies, but half as many of fixed ones.
        waves = 2 * channels if embedding == "fourier" else channels
        self.time = TimeEmbedding(embedding, waves, self.style.code_width)
        self.embed_classes(num_classes, self.style.code_width)
        self.stem = conv(image_channels, channels)

        levels = [(channels * mult, height // 2**depth in sizes) for depth, mult in enumerate(mults)]
        below = self._add_levels(levels, channels, image_channels)
        self.norm = self.style.norm(below)
        self.head = zero_init(conv(below, image_channels))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def _add_levels(self, levels: Sequence[tuple[int, bool]], channels: int, image_channels: int) -> int:
        """Make both ways and the middle from the features of each level and whether it attends; return the last's."""
        down: list[nn.Module] = []
        inputs: list[nn.Module] = []
        outputs: list[nn.Module] = []
        below, skips, seen = channels, [channels], image_channels
        for depth, (out, attend) in enumerate(levels):
            if depth:
                down.append(self._halve(below))
                skips.append(below)
                if self.progressive_input == "residual":
                    inputs.append(FIRConvHalve(seen, below))
                    seen = below
                elif self.progressive_input == "input_skip":
                    inputs.append(conv(image_channels, below, kernel=1))
            for _ in range(self.num_blocks):
                down.append(self._block(below, out, attend))
                skips.append(out)
                below = out
        middle = [self._block(below, below, attend) for attend in (True, False)]
        up: list[nn.Module] = []
        for depth, (out, attend) in reversed(list(enumerate(levels))):
            for i in range(self.num_blocks + 1):
                up.append(self._block(below + skips.pop(), out, attend and i == self.num_blocks))
                below = out
            if depth:
                if self.progressive == "output_skip":
                    outputs.append(ToPicture(below, image_channels, self.style))
                up.append(self._double(below))
        self.down, self.inputs = nn.ModuleList(down), nn.ModuleList(inputs)
        self.outputs = nn.ModuleList(outputs)
        self.middle, self.up = nn.ModuleList(middle), nn.ModuleList(up)
        return below

    def _block(
        self,
        in_channels: int,
        out_channels: int,
        attention: bool = False,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> nn.Module:
        return ResBlock(in_channels, out_channels, self.style, attention, resample, project=resample is not None)

    @abstractmethod
    def _halve(self, channels: int) -> nn.Module:
        """Make what leads down to the next level, called as a block."""

    @abstractmethod
    def _double(self, channels: int) -> nn.Module:
        """Make what leads up to the next level, called as a block."""

    def _run(self, block: nn.Module, h: Tensor, code: Tensor) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, h, code, use_reentrant=False))
        return cast(Tensor, block(h, code))

    def adds_input(self, i: int) -> bool:
        """Return whether the input is added after block ``i`` of the way down: the one that leads to the next level."""
        return self.progressive_input != "none" and i % (self.num_blocks + 1) == self.num_blocks

    def _add_input(self, layer: nn.Module, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features with the input added, and the input at their size."""
        if self.progressive_input == "residual":
            h = (layer(x) + h) * math.sqrt(0.5)
            return h, h
        x = fir_halve(x)
        return layer(x) + h, x

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        code = self.add_classes(self.time(label), classes)
        h = self.stem(x)
        skips, inputs = [h], iter(self.inputs)
        for i, block in enumerate(self.down):
            h = self._run(block, h, code)
            if self.adds_input(i):
                h, x = self._add_input(next(inputs), h, x)
            skips.append(h)
        for block in self.middle:
            h = self._run(block, h, code)
        picture: Tensor | None = None
        outputs = iter(self.outputs)
        for i, block in enumerate(self.up):
            joins = i % (self.num_blocks + 2) <= self.num_blocks  # the others double the size
            if not joins and self.outputs:
                seen = next(outputs)(h)
                picture = seen if picture is None else fir_double(picture) + seen
            h = self._run(block, torch.cat([h, skips.pop()], dim=1) if joins else h, code)
        out: Tensor = self.head(silu(self.norm(h)))
        return out if picture is None else fir_double(picture) + out


@NETWORKS.register("ddpm")
class DDPM(SkipUNet):
    """DDPM's U-Net (Ho et al. 2020): plain sums, 32 groups, and convolutions between the levels."""

    scale, group_size = 1.0, 1

    def _halve(self, channels: int) -> nn.Module:
        return ConvHalve(channels)

    def _double(self, channels: int) -> nn.Module:
        return ConvDouble(channels)


@NETWORKS.register("ddpmpp")
class DDPMpp(SkipUNet):
    """DDPM++ (Song et al. 2021, Section 4.4): DDPM's U-Net with scaled sums and blocks that resample by averages."""

    def _halve(self, channels: int) -> nn.Module:
        return self._block(channels, channels, resample=halve)

    def _double(self, channels: int) -> nn.Module:
        return self._block(channels, channels, resample=double)


@NETWORKS.register("ncsnpp")
class NCSNpp(SkipUNet):
    """NCSN++ (Song et al. 2021, Section 4.4 and Appendix H): DDPM++ with FIR resampling, and the input on all levels.

    Args:
        progressive: how the output is made: "none", at the top, or "output_skip", a sum over the levels.
        progressive_input: how the input meets the lower levels: "none", "residual", or "input_skip".

    The others are those of :class:`SkipUNet`. On pictures of 256×256 and more the paper's networks of the VE SDE have
    "output_skip" and "input_skip".
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding: str = "sinusoidal",
        num_classes: int = 0,
        checkpoint_activations: bool = False,
        progressive: str = "none",
        progressive_input: str = "residual",
    ) -> None:
        require(progressive in OUTPUTS, "progressive", progressive, f"one of {', '.join(OUTPUTS)}")
        require(progressive_input in INPUTS, "progressive_input", progressive_input, f"one of {', '.join(INPUTS)}")
        self.progressive, self.progressive_input = progressive, progressive_input
        size = (shape, channels, channel_mults, num_blocks, attention)
        super().__init__(*size, dropout, embedding, num_classes, checkpoint_activations)

    def _halve(self, channels: int) -> nn.Module:
        return self._block(channels, channels, resample=fir_halve)

    def _double(self, channels: int) -> nn.Module:
        return self._block(channels, channels, resample=fir_double)
