"""The levels of the general U-Net: what is done at one size on the way down, in the middle and on the way up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require
from sde_diffusion.networks.blocks import Attention, ResBlock, Style
from sde_diffusion.networks.layers import conv, silu, zero_init
from sde_diffusion.networks.resampling import ConvDouble, ConvHalve, double, fir_double, fir_halve, halve
from sde_diffusion.registry import hint

LEVELS = ("conv", "conv+attention", "block", "block+attention", "fir", "fir+attention")


def require_kinds(name: str, kinds: Sequence[str], number: int) -> tuple[str, ...]:
    """Return the kinds of the levels; all or none of them carry the picture along.

    Raises:
        InputError: naming the kind that is unknown.
    """
    ok = isinstance(kinds, Sequence) and not isinstance(kinds, str) and len(kinds) == number
    require(ok, name, kinds, f"{number} kinds of levels, one for each of widths")
    for kind in kinds:
        if kind not in LEVELS:
            raise InputError(f"{name}={kind!r}: unknown{hint(str(kind), list(LEVELS))} known: {', '.join(LEVELS)}")
    fir = [kind.startswith("fir") for kind in kinds]
    require(all(fir) or not any(fir), name, tuple(kinds), "either only levels of kind 'fir' or none")
    return tuple(kinds)


def _read_kind(kind: str, style: Style) -> tuple[str, bool, Style]:
    """Return how a level changes its size, whether it attends, and the style of its blocks."""
    resample, _, attention = kind.partition("+")
    own = replace(style, groups=0, scale=math.sqrt(0.5)) if resample == "fir" else style
    return resample, bool(attention), own


class Down(nn.Module):
    """One level on the way down: blocks, and then, unless it is the last, half the size.

    Args:
        kind: one of ``LEVELS``.
        in_channels, out_channels: (B, in, H, W) → (B, out, H/2, W/2).
        picture_channels: channels of the picture that a "fir" level carries along at its own size.
        num_blocks: residual blocks.
        style: what blocks share.
        padding: of :class:`~sde_diffusion.networks.resampling.ConvHalve`.
        last: no change of size.
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        out_channels: int,
        picture_channels: int,
        num_blocks: int,
        style: Style,
        padding: int,
        last: bool,
    ) -> None:
        super().__init__()
        resample, attention, style = _read_kind(kind, style)
        fir = resample == "fir"
        blocks = [ResBlock(out_channels if i else in_channels, out_channels, style) for i in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(
            [Attention(out_channels, style, 32 if fir else 0) if attention else nn.Identity() for _ in blocks]
        )
        self.resample: nn.Module | None = None
        self.from_picture = conv(picture_channels, out_channels, kernel=1) if fir and not last else None
        if not last and resample == "conv":
            self.resample = ConvHalve(out_channels, padding)
        elif not last:
            self.resample = ResBlock(
                out_channels, out_channels, style, resample=fir_halve if fir else halve, project=fir
            )

    def forward(self, h: Tensor, code: Tensor, picture: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the features, all states that the way up meets, and the picture at the new size."""
        states = []
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(h, code))
            states.append(h)
        if self.resample is not None:
            h = self.resample(h, code)
            if self.from_picture is not None:
                picture = fir_halve(picture)
                h = self.from_picture(picture) + h
            states.append(h)
        return h, states, picture


class Up(nn.Module):
    """One level on the way up: blocks that meet the states of the way down, then, unless it is last, twice the size.

    Args:
        kind: one of ``LEVELS``; a "fir" level adds what it sees of the picture, and attends once, after its blocks.
        in_channels, out_channels: (B, in, H, W) → (B, out, 2H, 2W).
        met_channels: channels of the states, the next one to be met first.
        picture_channels: channels of the picture.
        style: what blocks share.
        last: no change of size.
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        out_channels: int,
        met_channels: Sequence[int],
        picture_channels: int,
        style: Style,
        last: bool,
    ) -> None:
        super().__init__()
        resample, attention, style = _read_kind(kind, style)
        fir = resample == "fir"
        blocks, attentions = [], []
        for i, met in enumerate(met_channels):
            below = out_channels if i else in_channels
            # Not a quarter of the sum: so it is in the networks that were trained.
            groups = min(below + met // 4, 32) if fir and attention else 0
            blocks.append(ResBlock(below + met, out_channels, style, groups_in=groups))
            attends = attention and not (fir and i + 1 < len(met_channels))
            attentions.append(Attention(out_channels, style, 32 if fir else 0) if attends else nn.Identity())
        self.blocks, self.attention = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resample: nn.Module | None = None
        self.picture_norm = style.norm(out_channels) if fir and not last else None
        self.to_picture = zero_init(conv(out_channels, picture_channels)) if fir and not last else None
        if not last and resample == "conv":
            self.resample = ConvDouble(out_channels)
        elif not last:
            self.resample = ResBlock(
                out_channels, out_channels, style, resample=fir_double if fir else double, project=fir
            )

    def forward(
        self, h: Tensor, code: Tensor, states: list[Tensor], picture: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the features and the picture so far; takes the last of ``states`` away."""
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(torch.cat([h, states.pop()], dim=1), code))
        picture = None if picture is None else fir_double(picture)
        if self.picture_norm is not None and self.to_picture is not None:
            seen = self.to_picture(silu(self.picture_norm(h)))
            picture = seen if picture is None else picture + seen
        return (h if self.resample is None else self.resample(h, code)), picture


class Middle(nn.Module):
    """A block, attention if asked for, a block: (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, channels: int, style: Style, attention: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ResBlock(channels, channels, style) for _ in range(2)])
        self.attention = attention

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        out: Tensor = self.blocks[1](self.attention(self.blocks[0](h, code)), code)
        return out
